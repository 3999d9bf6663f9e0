//! The outcomes of all requests, counted by the second in which they were sent. Reports can be saved.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::{Arrival, Phase, Plan, TIER_NAMES, TIERS};

/// The final outcome of a request for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Served,
    Limited,
    /// 503 with `retry-after`.
    Shed,
    Error,
    /// No response in time, or a 504.
    TimedOut,
    Broken,
}

pub const FATES: usize = 6;

impl Fate {
    /// All but [`Fate::Served`], with their names in reports.
    const FAILURES: [(Fate, &'static str); FATES - 1] = [
        (Fate::Limited, "limited"),
        (Fate::Shed, "shed"),
        (Fate::Error, "error"),
        (Fate::TimedOut, "timed out"),
        (Fate::Broken, "broken"),
    ];

    /// Whether a client would retry.
    pub fn is_worth_a_retry(self) -> bool {
        !matches!(self, Fate::Served | Fate::Limited)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub arrival: Arrival,
    pub fate: Fate,
    /// The time from when it was due, including retries and pauses.
    pub took: Duration,
    /// How much later than due it was sent. If it is more than a few milliseconds, this machine is too slow for the
    /// load, and the measurement is invalid.
    pub late: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Second {
    /// Outcomes by fate and tier.
    pub fates: [[u32; TIERS]; FATES],
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub name: String,
    pub plan: Plan,
    pub seconds: Vec<Second>,
    /// Latency of served requests of the most important tier in the overload, in milliseconds.
    pub served_ms: Vec<f32>,
    /// Latency of served requests of all tiers before the overload, in milliseconds.
    pub usual_ms: Vec<f32>,
    /// How much later than due requests were sent, in milliseconds.
    pub late_ms: Vec<f32>,
}

/// The first seconds of an overload, reported separately.
pub const BEGIN_SECONDS: u32 = 5;

/// How many good seconds in a row count as recovered.
const GOOD_SECONDS: usize = 3;

/// The share of requests that must be served in a good second.
const GOOD_SHARE: f64 = 0.99;

impl Second {
    pub fn add(&mut self, outcome: &Outcome) {
        self.fates[outcome.fate as usize][outcome.arrival.tier] += 1;
    }

    pub fn of(&self, fate: Fate) -> [u32; TIERS] {
        self.fates[fate as usize]
    }

    pub fn sum(&self, fate: Fate) -> u32 {
        self.of(fate).iter().sum()
    }

    /// The requests sent by callers of a tier.
    pub fn sent(&self, tier: usize) -> u32 {
        self.fates.iter().map(|tiers| tiers[tier]).sum()
    }

    /// The share of a tier's requests that were served, 0 to 1.
    pub fn success(&self, tier: usize) -> f64 {
        f64::from(self.of(Fate::Served)[tier]) / f64::from(self.sent(tier).max(1))
    }

    /// The share of all requests with one of these fates, 0 to 1.
    pub fn share(&self, fates: &[Fate]) -> f64 {
        let count: u32 = fates.iter().map(|fate| self.sum(*fate)).sum();
        f64::from(count) / f64::from(self.all_sent().max(1))
    }

    fn all_sent(&self) -> u32 {
        self.fates.iter().flatten().sum()
    }

    fn is_good(&self) -> bool {
        f64::from(self.sum(Fate::Served)) >= GOOD_SHARE * f64::from(self.all_sent())
    }

    pub fn line(&self) -> String {
        let served = self.of(Fate::Served);
        let tiers = (0..TIERS)
            .rev()
            .map(|tier| format!("{} {:3} of {:4}", TIER_NAMES[tier], served[tier], self.sent(tier)));
        let rest = Fate::FAILURES.into_iter().map(|(fate, name)| (name, self.sum(fate)));
        let rest = rest.filter(|(_, sum)| *sum > 0).map(|(name, sum)| format!("{name} {sum}"));
        let served = tiers.collect::<Vec<_>>().join(", ");
        format!("served: {served} | {}", rest.collect::<Vec<_>>().join(", "))
    }
}

impl Report {
    pub fn new(name: &str, plan: Plan) -> Self {
        Self {
            name: name.to_owned(),
            plan,
            seconds: vec![Second::default(); plan.seconds() as usize],
            served_ms: Vec::new(),
            usual_ms: Vec::new(),
            late_ms: Vec::new(),
        }
    }

    pub fn add(&mut self, outcome: &Outcome) {
        let second = outcome.arrival.at.as_secs() as u32;
        let Some(counts) = self.seconds.get_mut(second as usize) else { return };
        counts.add(outcome);
        let took_ms = outcome.took.as_secs_f32() * 1_000.0;
        match (outcome.fate, self.plan.phase(second)) {
            (Fate::Served, Phase::Before) => self.usual_ms.push(took_ms),
            (Fate::Served, Phase::Overload) if outcome.arrival.tier == TIERS - 1 => {
                self.served_ms.push(took_ms)
            }
            _ => {}
        }
        self.late_ms.push(outcome.late.as_secs_f32() * 1_000.0);
    }

    /// The sum of these seconds.
    pub fn during(&self, seconds: Range<u32>) -> Second {
        let mut sum = Second::default();
        for second in self.seconds.get(seconds.start as usize..seconds.end as usize).unwrap_or_default() {
            let sums = sum.fates.iter_mut().flatten();
            sums.zip(second.fates.iter().flatten()).for_each(|(sum, more)| *sum += more);
        }
        sum
    }

    /// The share of this tier's requests in the overload that were served, 0 to 1.
    pub fn success(&self, tier: usize) -> f64 {
        self.during(self.plan.overload_seconds()).success(tier)
    }

    /// [`Self::success`] without the first [`BEGIN_SECONDS`].
    pub fn settled_success(&self, tier: usize) -> f64 {
        let [_, settled] = self.begin_and_rest();
        self.during(settled).success(tier)
    }

    /// Served requests a second: in the first [`BEGIN_SECONDS`] of the overload, and in the rest of it.
    pub fn goodput(&self) -> [f64; 2] {
        self.begin_and_rest().map(|seconds| self.served(seconds.clone()) / seconds.len().max(1) as f64)
    }

    fn begin_and_rest(&self) -> [Range<u32>; 2] {
        let Range { start, end } = self.plan.overload_seconds();
        let begun = (start + BEGIN_SECONDS).min(end);
        [start..begun, begun..end]
    }

    pub fn served(&self, seconds: Range<u32>) -> f64 {
        f64::from(self.during(seconds).sum(Fate::Served))
    }

    /// Seconds from the end of the overload until all requests are served again; `None` if that did not happen.
    pub fn recovery_seconds(&self) -> Option<usize> {
        let after = self.seconds.get(self.plan.after_seconds().start as usize..)?;
        after.windows(GOOD_SECONDS).position(|seconds| seconds.iter().all(Second::is_good))
    }
}

/// A quantile of values in any order; `None` if there are none.
pub fn percentile(values: &[f32], quantile: f64) -> Option<f32> {
    let mut values = values.to_vec();
    values.sort_by(f32::total_cmp);
    let index = (quantile * values.len() as f64).ceil() as usize;
    values.get(index.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Fate, Outcome, Report, percentile};
    use crate::plan::{Arrival, Plan};

    fn outcome(second: u64, tier: usize, fate: Fate, ms: u64) -> Outcome {
        Outcome {
            arrival: Arrival { at: Duration::from_millis(second * 1_000 + 500), tier, caller: 0 },
            fate,
            took: Duration::from_millis(ms),
            late: Duration::from_millis(1),
        }
    }

    #[test]
    fn goodput_success_and_latency_are_those_of_the_overload() {
        let mut report = Report::new("test", Plan::example());
        report.add(&outcome(5, 2, Fate::Served, 9_000));
        for index in 0..60 {
            report.add(&outcome(10 + index % 30, 2, Fate::Served, 100 + index));
            report.add(&outcome(10 + index % 30, 0, Fate::Shed, 1));
        }
        report.add(&outcome(39, 2, Fate::TimedOut, 3_000));
        assert_eq!((report.goodput(), report.served(0..10)), ([2.0, 2.0], 1.0));
        assert_eq!((report.success(2), report.success(0)), (60.0 / 61.0, 0.0));
        assert_eq!((report.settled_success(2), report.settled_success(0)), (50.0 / 51.0, 0.0));
        assert_eq!([0.5, 0.99].map(|q| percentile(&report.served_ms, q)), [Some(129.0), Some(159.0)]);
        assert_eq!(percentile(&report.usual_ms, 0.5), Some(9_000.0));
        assert_eq!(report.during(report.plan.overload_seconds()).sum(Fate::Shed), 60);
    }

    #[test]
    fn a_service_has_recovered_if_it_serves_all_requests_for_three_seconds() {
        let recovery = |failing: &[u64]| {
            let mut report = Report::new("test", Plan::example());
            for second in 40..70 {
                let fate = if failing.contains(&second) { Fate::Error } else { Fate::Served };
                report.add(&outcome(second, 0, fate, 1));
            }
            report.recovery_seconds()
        };
        assert_eq!(recovery(&[]), Some(0));
        assert_eq!(recovery(&[40, 43]), Some(4), "two good seconds are not enough");
        assert_eq!(recovery(&(40..70).step_by(3).collect::<Vec<_>>()), None);
    }
}
