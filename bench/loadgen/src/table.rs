//! A comparison of reports as a Markdown table.

use crate::plan::{Phase, Plan, TIER_NAMES, TIERS};
use crate::report::{BEGIN_SECONDS, Fate, Report, percentile};

/// If one request in a hundred is sent later than this, the machine is too busy for a measurement.
const LATE_MS: f32 = 50.0;

/// The length of the windows in which two protections are compared.
const WINDOW_SECONDS: u32 = 5;

/// The table, with the conditions before it, and a comparison of the last report with the others after it.
pub fn markdown(reports: &[Report]) -> String {
    let Some((last, others)) = reports.split_last() else { return "nothing was measured\n".to_owned() };
    let mut text = format!("{}\n\n", conditions(&last.plan));
    let [free, pro, important] = TIER_NAMES;
    text += &format!(
        "| protection | served/s, first {BEGIN_SECONDS} s | after | {important} | after {BEGIN_SECONDS} s | {pro} | {free} | \
         {important} p50 | p99 | limited or shed | failed | served after the overload | all served after |\n|---|"
    );
    text += &"--:|".repeat(12);
    text += "\n";
    for report in reports {
        text += &row(report);
    }
    for other in others {
        text += &format!("\n{}", comparison(last, other));
    }
    let late_ms = |report: &Report| percentile(&report.late_ms, 0.99).unwrap_or_default();
    for report in reports.iter().filter(|report| late_ms(report) > LATE_MS) {
        text += &format!(
            "\n{}: one request in a hundred was sent {:.0} ms late or more. This machine was too busy; measure again.\n",
            report.name,
            late_ms(report)
        );
    }
    text
}

fn conditions(plan: &Plan) -> String {
    let client = plan.client;
    format!(
        "An upstream with a capacity of {:.0} requests a second gets {:.0} a second for {} s, and {:.0} a second \
         for {} s before and {} s after. Clients time out after {} ms, retry up to {} times, and give up after {} ms; \
         seed {}.",
        plan.capacity,
        plan.rate(Phase::Overload),
        plan.overload,
        plan.rate(Phase::Before),
        plan.before,
        plan.after,
        client.timeout_ms,
        client.retries,
        client.deadline_ms,
        plan.seed,
    )
}

fn row(report: &Report) -> String {
    let [overload, after] =
        [report.plan.overload_seconds(), report.plan.after_seconds()].map(|seconds| report.during(seconds));
    let latency =
        |quantile: f64| match [&report.served_ms, &report.usual_ms].map(|ms| percentile(ms, quantile)) {
            [Some(latency), Some(usual)] => format!("{latency:.0} ms (usual {usual:.0})"),
            [Some(latency), None] => format!("{latency:.0} ms"),
            [None, _] => "–".to_owned(),
        };
    let [begin, rest] = report.goodput();
    let [free, pro, important] = [0, 1, 2].map(|tier| percent(overload.success(tier)));
    let never = format!("not within {} s", report.plan.after);
    let cells = [
        report.name.clone(),
        format!("{begin:.1}"),
        format!("{rest:.1}"),
        important,
        percent(report.settled_success(TIERS - 1)),
        pro,
        free,
        latency(0.5),
        latency(0.99),
        percent(overload.share(&[Fate::Shed, Fate::Limited])),
        percent(overload.share(&[Fate::Error, Fate::TimedOut, Fate::Broken])),
        percent(after.share(&[Fate::Served])),
        report.recovery_seconds().map_or(never, |seconds| format!("{seconds} s")),
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// In how many windows the first report has fewer served requests than the second, and the largest difference.
fn comparison(ours: &Report, other: &Report) -> String {
    let starts = 0..=ours.plan.seconds().saturating_sub(WINDOW_SECONDS);
    let window = |from: u32| from..from + WINDOW_SECONDS;
    let missing = |from: u32| other.served(window(from)) - ours.served(window(from));
    let fewer = starts.clone().filter(|from| missing(*from) > 0.0).count();
    let worst = starts.clone().max_by(|one, two| missing(*one).total_cmp(&missing(*two))).unwrap_or(0);
    format!(
        "{} beside {}: fewer served in {fewer} of {} windows of {WINDOW_SECONDS} s; at most {:.0} fewer, of {:.0}, from second {worst}.\n",
        ours.name,
        other.name,
        starts.count(),
        missing(worst).max(0.0),
        other.served(window(worst)),
    )
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::markdown;
    use crate::plan::Plan;
    use crate::report::Report;

    #[test]
    fn every_row_has_as_many_cells_as_the_header() {
        let reports = ["nothing", "ours"].map(|name| Report::new(name, Plan::example()));
        let text = markdown(&reports);
        let bars: Vec<_> =
            text.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert!(text.contains("ours beside nothing: fewer served in 0 of 66 windows"), "{text}");
        assert_eq!(bars, [14; 4], "{text}");
    }
}
