//! Whether the upstream is healthy, from what all workers of one Envoy observe of all clusters.
//!
//! Callers are weighed: none counts for more than the median caller, so that one among many decides nothing.

use serde::{Deserialize, Serialize};

use super::observations::CallerObservations;
use super::parameters::*;
use crate::config::HealthThresholds;
use crate::time::StoreTime;

/// Why health is `DEGRADED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DegradeReason {
    /// Too many server errors.
    ErrorRatio,
    /// More than a tenth of requests took longer than `latency_ms`, or `latency_ratio` times what is usual.
    Latency,
    /// More than a tenth of requests were shed.
    Shed,
}

/// The signals of the window. No caller counts for more than the median caller does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Requests that ended or were shed, of all callers.
    pub requests: f64,
    /// The share of server errors, 0 to 1.
    pub error_ratio: f64,
    /// The share of requests that took longer than the bounds.
    pub slow_ratio: f64,
    /// The share of requests that were shed.
    pub shed_ratio: f64,
}

/// `NORMAL`, or `DEGRADED` for a reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthDetector {
    pub reason: Option<DegradeReason>,
    pub signals: Signals,
    pending: Option<PendingTransition>,
    window: CallerObservations,
    updated: StoreTime,
}

/// What has to last for health to change: a broken bound, or that all hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct PendingTransition {
    since: StoreTime,
    requests: f64,
}

impl HealthDetector {
    pub fn new(now: StoreTime) -> Self {
        let (signals, window) = (Signals::default(), CallerObservations::default());
        Self { reason: None, signals, pending: None, window, updated: now }
    }

    /// Whether health is `NORMAL` and no bound is broken: then latency is usual.
    pub fn is_calm(&self) -> bool {
        self.reason.is_none() && self.pending.is_none()
    }

    /// Takes in what one worker observed.
    pub fn update(&mut self, observed: &CallerObservations, bounds: &HealthThresholds, now: StoreTime) {
        let is_degraded = self.reason.is_some();
        // The way back is judged by what came since, not by the window before it.
        let memory_s = if is_degraded { bounds.degrade_after_seconds } else { bounds.window_seconds };
        let elapsed_s = now.since(self.updated).as_secs_f64();
        self.window.fade_and_merge((-elapsed_s / f64::from(memory_s.max(1))).exp(), observed);
        self.updated = now;
        self.signals = Signals::of(&self.window);
        let Signals { requests, error_ratio, slow_ratio, shed_ratio } = self.signals;
        let (mut reason, mut pressure) = (DegradeReason::ErrorRatio, error_ratio / bounds.error_ratio);
        for (other, ratio) in [(DegradeReason::Latency, slow_ratio), (DegradeReason::Shed, shed_ratio)] {
            if ratio / TOLERANCE >= pressure {
                (reason, pressure) = (other, ratio / TOLERANCE);
            }
        }
        let new = observed.total(f64::INFINITY);
        let min_requests = f64::from(bounds.min_requests);
        let (is_wanted, after_seconds) = if is_degraded {
            (pressure <= 1.0 - TOLERANCE && new.shed == 0.0, bounds.recover_after_seconds)
        } else {
            (pressure > 1.0 && requests >= min_requests, bounds.degrade_after_seconds)
        };
        let mut pending =
            self.pending.filter(|_| is_wanted).unwrap_or(PendingTransition { since: now, requests: 0.0 });
        pending.requests += new.requests;
        self.pending = is_wanted.then_some(pending);
        let lasts = now.since(pending.since).as_secs_f64() >= f64::from(after_seconds);
        if is_wanted && lasts && (!is_degraded || pending.requests >= min_requests) {
            self.reason = (!is_degraded).then_some(reason);
            self.pending = None;
        }
    }
}

impl Signals {
    fn of(window: &CallerObservations) -> Self {
        let (all, counts) = (window.total(f64::INFINITY), window.total(window.median()));
        let ratio = |part: f64, whole: f64| if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
        Self {
            requests: all.requests + all.shed,
            error_ratio: ratio(counts.errors, counts.requests),
            slow_ratio: ratio(counts.slow, counts.requests),
            shed_ratio: ratio(counts.shed, counts.requests + counts.shed),
        }
    }
}
