//! Reports one below the other, as an SVG: the served requests by second and tier.

use anyhow::Result;
use plotters::prelude::*;

use crate::plan::{TIER_NAMES, TIERS};
use crate::report::{Fate, Report, Second};

const WIDTH: u32 = 760;
const TITLE_HEIGHT: u32 = 30;
const PANEL_HEIGHT: u32 = 190;

/// The tiers' colours, the least important first; distinguishable with colour blindness.
const COLOURS: [RGBColor; TIERS] =
    [RGBColor(0x9e, 0xca, 0xe1), RGBColor(0xfd, 0xae, 0x61), RGBColor(0x1b, 0x78, 0x37)];
const OVERLOAD: RGBColor = RGBColor(0xee, 0xee, 0xee);

/// The plot with one panel for each report, all on one scale.
pub fn svg(reports: &[Report]) -> Result<String> {
    let mut text = String::new();
    let height = TITLE_HEIGHT + PANEL_HEIGHT * reports.len() as u32;
    let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = "Requests served, by the second in which they were sent";
    let panels = root.titled(title, ("sans-serif", 16))?.split_evenly((reports.len(), 1));
    let served = reports.iter().flat_map(|report| &report.seconds).map(|second| second.sum(Fate::Served));
    let capacity = reports.iter().map(|report| report.plan.capacity).fold(0.0, f64::max);
    let most = f64::from(served.max().unwrap_or(0)).max(capacity) * 1.05;
    for (report, panel) in reports.iter().zip(&panels) {
        draw(report, most, panel)?;
    }
    root.present()?;
    drop((panels, root));
    Ok(text)
}

fn draw(report: &Report, most: f64, panel: &DrawingArea<SVGBackend, plotters::coord::Shift>) -> Result<()> {
    let plan = &report.plan;
    let end = report.seconds.len() as f64;
    let mut chart = ChartBuilder::on(panel)
        .caption(&report.name, ("sans-serif", 14))
        .margin_right(20)
        .x_label_area_size(20)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..end, 0.0..most)?;
    let key = |colour: RGBColor| {
        move |(x, y): (i32, i32)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
    };
    let (from, to) = (f64::from(plan.before), f64::from(plan.before + plan.overload));
    let overload = Rectangle::new([(from, 0.0), (to, most)], OVERLOAD.filled());
    chart.draw_series([overload])?.label("overload").legend(key(OVERLOAD));
    for (tier, colour) in COLOURS.into_iter().enumerate() {
        // The most important tier is at the bottom, where losses are visible.
        let bar = |(second, counts): (u32, &Second)| {
            let served: u32 = counts.of(Fate::Served)[tier..].iter().sum();
            let (from, to) = (f64::from(second), f64::from(second + 1));
            Rectangle::new([(from, 0.0), (to, f64::from(served))], colour.filled())
        };
        chart.draw_series((0..).zip(&report.seconds).map(bar))?.label(TIER_NAMES[tier]).legend(key(colour));
    }
    let capacity = [(0.0, plan.capacity), (end, plan.capacity)];
    chart
        .draw_series(DashedLineSeries::new(capacity, 4, 3, BLACK.into()))?
        .label("capacity")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 12, y)], BLACK));
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(3)
        .x_label_formatter(&|second| format!("{second} s"))
        .y_label_formatter(&|served| format!("{served}/s"))
        .draw()?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn every_report_has_a_panel_with_a_bar_for_each_second_and_tier() {
        let reports = ["nothing", "a < b & c"].map(|name| Report::new(name, Plan::example()));
        let text = svg(&reports).expect("a plot");
        for colour in ["#9ECAE1", "#FDAE61", "#1B7837"] {
            assert_eq!(text.matches(colour).count(), 2 * (70 + 1), "with the legend");
        }
        assert!(text.contains("a &lt; b &amp; c"));
    }
}
