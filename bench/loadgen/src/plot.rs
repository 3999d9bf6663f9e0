//! Reports one below the other, as an SVG: the served requests by second and tier.

use std::fmt::Write as _;

use crate::plan::{TIER_NAMES, TIERS};
use crate::report::{Fate, Report};

const WIDTH: f64 = 760.0;
const PANEL_HEIGHT: f64 = 120.0;
/// Around each panel: room for its title above, and for the numbers to its left.
const LEFT: f64 = 50.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 70.0;
const GAP: f64 = 46.0;
const BOTTOM: f64 = 40.0;

/// The tiers' colours, the least important first; distinguishable with colour blindness.
const COLOURS: [&str; TIERS] = ["#9ecae1", "#fdae61", "#1b7837"];

/// The plot with one panel for each report, all on one scale.
pub fn svg(reports: &[Report]) -> String {
    let height = TOP + reports.len() as f64 * (PANEL_HEIGHT + GAP) + BOTTOM - GAP;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>Requests served, by second and tier, with each kind of protection</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    legend(&mut text);
    let most = scale(reports);
    for (index, report) in reports.iter().enumerate() {
        let top = TOP + index as f64 * (PANEL_HEIGHT + GAP);
        Panel { report, top, most }.draw(&mut text);
    }
    text + "</svg>\n"
}

/// The value at the top of a panel.
fn scale(reports: &[Report]) -> f64 {
    let served = reports.iter().flat_map(|report| &report.seconds).map(|second| second.sum(Fate::Served));
    let capacity = reports.iter().map(|report| report.plan.capacity).fold(0.0, f64::max);
    f64::from(served.max().unwrap_or(0)).max(capacity) * 1.05
}

fn legend(text: &mut String) {
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"22\" font-size=\"14\" font-weight=\"bold\">Requests served, by the second in which they \
         were sent</text>"
    );
    for tier in (0..TIERS).rev() {
        let x = LEFT + (TIERS - 1 - tier) as f64 * 110.0;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"33\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"43\">{}</text>",
            COLOURS[tier],
            x + 17.0,
            TIER_NAMES[tier]
        );
    }
    let x = LEFT + TIERS as f64 * 110.0;
    let _ = writeln!(
        text,
        "<line x1=\"{x}\" x2=\"{}\" y1=\"39\" y2=\"39\" stroke=\"#333\" stroke-dasharray=\"4 3\"/><text x=\"{}\" y=\"43\">\
         capacity of the upstream</text><rect x=\"{}\" y=\"33\" width=\"12\" height=\"12\" fill=\"#eee\"/>\
         <text x=\"{}\" y=\"43\">overload</text>",
        x + 20.0,
        x + 25.0,
        x + 210.0,
        x + 227.0
    );
}

struct Panel<'a> {
    report: &'a Report,
    top: f64,
    most: f64,
}

impl Panel<'_> {
    fn draw(&self, text: &mut String) {
        let plan = &self.report.plan;
        let (right, bottom) = (WIDTH - RIGHT, self.top + PANEL_HEIGHT);
        let from = self.x(plan.before as usize);
        let width = self.x((plan.before + plan.overload) as usize) - from;
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>\n\
             <rect x=\"{from:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{PANEL_HEIGHT}\" fill=\"#eee\"/>",
            self.top - 7.0,
            escaped(&self.report.name),
            self.top
        );
        for (tier, colour) in COLOURS.iter().enumerate() {
            // The most important tier is at the bottom, where losses are visible.
            let _ = writeln!(text, "<path d=\"{}\" fill=\"{colour}\"/>", self.area(tier));
        }
        let capacity = self.y(plan.capacity);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{capacity:.1}\" y2=\"{capacity:.1}\" stroke=\"#333\" \
             stroke-dasharray=\"4 3\"/>\n\
             <line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\" stroke=\"#333\"/>"
        );
        for value in [0.0, plan.capacity] {
            let (x, y) = (LEFT - 6.0, self.y(value) + 4.0);
            let _ = writeln!(text, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{value:.0}/s</text>");
        }
        for second in (0..=self.report.seconds.len()).step_by(10) {
            let (x, y) = (self.x(second), bottom + 14.0);
            let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{second} s</text>");
        }
    }

    /// The area from the bottom up to the served requests of this tier and all more important ones.
    fn area(&self, tier: usize) -> String {
        let mut path = format!("M{LEFT} {:.1}", self.y(0.0));
        for (index, second) in self.report.seconds.iter().enumerate() {
            let served: u32 = second.of(Fate::Served)[tier..].iter().sum();
            let _ = write!(path, "V{:.1}H{:.1}", self.y(served.into()), self.x(index + 1));
        }
        let _ = write!(path, "V{:.1}Z", self.y(0.0));
        path
    }

    fn x(&self, second: usize) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * second as f64 / self.report.seconds.len().max(1) as f64
    }

    fn y(&self, a_second: f64) -> f64 {
        self.top + PANEL_HEIGHT * (1.0 - a_second / self.most)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::svg;
    use crate::plan::{Plan, TIERS};
    use crate::report::Report;

    #[test]
    fn every_report_has_a_panel_with_an_area_for_each_tier() {
        let reports = ["nothing", "a < b & c"].map(|name| Report::new(name, Plan::example()));
        let text = svg(&reports);
        assert_eq!(text.matches("<path").count(), 2 * TIERS);
        assert!(text.contains("a &lt; b &amp; c"));
        for tag in ["svg", "text", "title"] {
            let count = |tag: &str| text.matches(tag).count();
            assert_eq!(
                count(&format!("<{tag}>")) + count(&format!("<{tag} ")),
                count(&format!("</{tag}>")),
                "{tag}"
            );
        }
    }
}
