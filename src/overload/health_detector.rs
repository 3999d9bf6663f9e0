//! Whether the upstream is healthy, from what all workers of one Envoy observe of all clusters.
//!
//! One caller among others decides nothing, whatever it sends.

use serde::{Deserialize, Serialize};

use super::observations::{CallerCounts, CallerObservations, count};
use super::parameters::*;
use crate::config::HealthThresholds;
use crate::time::StoreTime;

/// What has faded to less is no caller any more, in requests.
const MIN_SIZE: f64 = 0.5;

/// Why health is `DEGRADED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DegradeReason {
    ErrorRatio,
    /// More than a tenth of requests took longer than `latency_ms`, or `latency_ratio` times what is usual.
    Latency,
    /// More than a tenth of requests were shed.
    Shed,
}

/// The signals of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Requests that ended or were shed, of all callers.
    pub requests: f64,
    /// The share of server errors, 0 to 1.
    pub error_ratio: f64,
    /// The share of requests that took longer than the thresholds.
    pub slow_ratio: f64,
    pub shed_ratio: f64,
}

/// `NORMAL`, or `DEGRADED` for a reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthDetector {
    pub reason: Option<DegradeReason>,
    pub signals: Signals,
    /// Since when a threshold is exceeded or, while `DEGRADED`, none is; and the requests since then.
    pending: Option<(StoreTime, f64)>,
    window: CallerObservations,
    updated: StoreTime,
}

impl HealthDetector {
    /// Whether health is `NORMAL` and no threshold is exceeded: then latency is usual.
    pub fn is_calm(&self) -> bool {
        self.reason.is_none() && self.pending.is_none()
    }

    /// Takes in what one worker observed.
    pub fn update(&mut self, observed: &CallerObservations, thresholds: &HealthThresholds, now: StoreTime) {
        let elapsed_s = now.since(self.updated).as_secs_f64();
        if elapsed_s > f64::from(thresholds.window_seconds.max(1)) {
            // Health was not measured meanwhile.
            *self = Self::default();
        }
        let is_degraded = self.reason.is_some();
        // Recovery is judged by what was observed since, not before.
        let memory_s = if is_degraded { thresholds.degrade_after_seconds } else { thresholds.window_seconds };
        let factor = (-elapsed_s / f64::from(memory_s.max(1))).exp();
        self.window.values_mut().for_each(|sum| *sum = *sum * factor);
        observed.iter().for_each(|(slot, newer)| count(&mut self.window, (*slot).into(), *newer));
        (self.updated, self.signals) = (now, Signals::of(&self.window));
        let Signals { requests, error_ratio, slow_ratio, shed_ratio } = self.signals;
        let (mut reason, mut pressure) = (DegradeReason::ErrorRatio, error_ratio / thresholds.error_ratio);
        for (other, ratio) in [(DegradeReason::Latency, slow_ratio), (DegradeReason::Shed, shed_ratio)] {
            if ratio / TOLERANCE >= pressure {
                (reason, pressure) = (other, ratio / TOLERANCE);
            }
        }
        let new = total(observed, f64::INFINITY);
        let min_requests = f64::from(thresholds.min_requests);
        let (is_wanted, after_seconds) = if is_degraded {
            (pressure <= 1.0 - TOLERANCE && new.shed == 0.0, thresholds.recover_after_seconds)
        } else {
            (pressure > 1.0 && requests >= min_requests, thresholds.degrade_after_seconds)
        };
        let (since, requests_before) = self.pending.unwrap_or((now, 0.0));
        let requests_since = requests_before + new.requests;
        self.pending = is_wanted.then_some((since, requests_since));
        let lasts = now.since(since).as_secs_f64() >= f64::from(after_seconds);
        if is_wanted && lasts && (!is_degraded || requests_since >= min_requests) {
            self.reason = (!is_degraded).then_some(reason);
            self.pending = None;
        }
    }
}

impl Signals {
    /// Each share is the least of three: of all requests, of all where no caller counts for more than the median
    /// caller, and without the caller that has most of the errors (slow requests, shed requests). Requests that were
    /// shed while that caller had more places than the median one count as its own.
    fn of(window: &CallerObservations) -> Self {
        let sizes = window.values().map(CallerCounts::size).filter(|size| *size >= MIN_SIZE);
        let mut sizes: Vec<f64> = sizes.collect();
        sizes.sort_unstable_by(f64::total_cmp);
        let median = sizes.get(sizes.len().saturating_sub(1) / 2).copied().unwrap_or_default().max(1.0);
        let (all, weighted) = (total(window, f64::INFINITY), total(window, median));
        type Count<'a> = &'a dyn Fn(&CallerCounts) -> f64;
        let least = |part: Count, whole: Count, due_to: Count| {
            let share = |part: f64, counts: &CallerCounts| (part / whole(counts).max(1e-9)).clamp(0.0, 1.0);
            let largest = window.values().max_by(|one, other| due_to(one).total_cmp(&due_to(other)));
            let largest = largest.copied().unwrap_or_default();
            let others = all - largest;
            let of_others = share(part(&all) - due_to(&largest), &others);
            let of_others = if others.size() < MIN_SIZE { 1.0 } else { of_others };
            share(part(&all), &all).min(share(part(&weighted), &weighted)).min(of_others)
        };
        let due_to = |counts: &CallerCounts| counts.shed + (counts.requests - median).max(0.0);
        Self {
            requests: all.size(),
            error_ratio: least(&|counts| counts.errors, &|counts| counts.requests, &|counts| counts.errors),
            slow_ratio: least(&|counts| counts.slow, &|counts| counts.requests, &|counts| counts.slow),
            shed_ratio: least(&|counts| counts.shed, &CallerCounts::size, &due_to),
        }
    }
}

/// All callers together, where none counts for more than `most`.
fn total(callers: &CallerObservations, most: f64) -> CallerCounts {
    let weight = |counts: &CallerCounts| (most / counts.size().max(1e-9)).min(1.0);
    let used = callers.values().filter(|counts| counts.size() > 0.0);
    used.fold(CallerCounts::default(), |sum, counts| sum + *counts * weight(counts))
}
