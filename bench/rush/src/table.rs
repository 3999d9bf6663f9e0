//! Reports side by side, as a Markdown table.

use crate::plan::{Phase, Plan, TIER_NAMES, TIERS};
use crate::report::{Fate, Report};

/// A request that is sent later than this was not asked when it was due, and a machine on which that happens to one in a
/// hundred is too busy to measure anything.
const LATE_MS: f32 = 50.0;

/// The table, with a line before it that says what was measured.
pub fn markdown(reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return "nothing was measured\n".to_owned() };
    let mut text = format!("{}\n\n", conditions(&first.plan));
    text += "| protection | served in overload, a second | p50 | p99 |";
    for tier in (0..TIERS).rev() {
        text += &format!(" {} served |", TIER_NAMES[tier]);
    }
    let important = TIER_NAMES[TIERS - 1];
    text +=
        &format!(" {important}, second half | told to wait | failed | recovered after |\n|---|--:|--:|--:|");
    text += &"--:|".repeat(TIERS + 4);
    text += "\n";
    for report in reports {
        text += &row(report);
    }
    for report in reports.iter().filter(|report| report.late_ms(0.99) > LATE_MS) {
        text += &format!(
            "\n{}: one request in a hundred was sent {:.0} ms late or more. This machine was too busy; measure again.\n",
            report.name,
            report.late_ms(0.99)
        );
    }
    text
}

fn conditions(plan: &Plan) -> String {
    let patience = plan.patience;
    format!(
        "An upstream that can serve {:.0} requests a second is asked for {:.0} a second for {} s, and for {:.0} a second \
         before and after. Callers wait {} ms for an answer, try again up to {} times, and want none after {} ms; seed {}.",
        plan.capacity,
        plan.rate(Phase::Overload),
        plan.overload,
        plan.rate(Phase::Before),
        patience.timeout_ms,
        patience.retries,
        patience.deadline_ms,
        plan.seed,
    )
}

fn row(report: &Report) -> String {
    let milliseconds =
        |quantile| report.latency_ms(quantile).map_or("–".to_owned(), |ms| format!("{ms:.0} ms"));
    let overload = report.phase(Phase::Overload);
    let asked = f64::from(overload.asked.iter().sum::<u32>().max(1));
    let share = |fates: &[Fate]| {
        let count: u32 = fates.iter().map(|fate| overload.sum(*fate)).sum();
        percent(f64::from(count) / asked)
    };
    let mut row = format!(
        "| {} | {:.0} | {} | {} |",
        report.name,
        report.goodput(),
        milliseconds(0.5),
        milliseconds(0.99)
    );
    for tier in (0..TIERS).rev() {
        row += &format!(" {} |", percent(report.success(tier)));
    }
    let recovery = report.recovery_seconds();
    row += &format!(
        " {} | {} | {} | {} |\n",
        percent(report.settled_success(TIERS - 1)),
        share(&[Fate::Shed, Fate::Limited]),
        share(&[Fate::Error, Fate::TimedOut, Fate::Broken]),
        recovery.map_or(format!("not within {} s", report.plan.after), |seconds| format!("{seconds} s")),
    );
    row
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
    fn every_row_has_as_many_cells_as_the_head() {
        let reports = ["nothing", "ours"].map(|name| Report::new(name, Plan::example()));
        let text = markdown(&reports);
        let bars: Vec<_> =
            text.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count()).collect();
        assert_eq!(bars, [12; 4], "{text}");
    }
}
