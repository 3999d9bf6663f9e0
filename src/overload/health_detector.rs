//! Whether the upstream is healthy, from what all workers of one Envoy observe of all clusters.
//!
//! Callers are weighed: none counts for more than the median caller, so that one among many decides nothing.

use serde::{Deserialize, Serialize};

use super::parameters::*;
use super::window::CallerObservations;
use crate::config::HealthThresholds;
use crate::health::Health;
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

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum DetectorState {
    Normal { broken_since: Option<StoreTime> },
    Degraded { reason: DegradeReason, held_since: Option<StoreTime>, ended: f64 },
}

/// `NORMAL` or `DEGRADED`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthDetector {
    state: DetectorState,
    window: CallerObservations,
    updated: StoreTime,
    signals: Signals,
}

impl HealthDetector {
    pub(super) fn new(now: StoreTime) -> Self {
        let (state, window) = (DetectorState::Normal { broken_since: None }, CallerObservations::default());
        Self { state, window, updated: now, signals: Signals::default() }
    }

    /// What the signals say.
    pub fn health(&self) -> Health {
        if self.reason().is_some() { Health::Degraded } else { Health::Normal }
    }

    /// Why it is `DEGRADED`.
    pub fn reason(&self) -> Option<DegradeReason> {
        match self.state {
            DetectorState::Normal { .. } => None,
            DetectorState::Degraded { reason, .. } => Some(reason),
        }
    }

    /// The signals as they were last.
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// Whether health is `NORMAL` and no bound is broken: then latency is usual.
    pub(super) fn is_calm(&self) -> bool {
        self.state == DetectorState::Normal { broken_since: None }
    }

    /// Takes in what one worker observed.
    pub(super) fn update(
        &mut self,
        observed: &CallerObservations,
        bounds: &HealthThresholds,
        now: StoreTime,
    ) {
        // The way back is judged by what came since, not by the window before it.
        let is_degraded = self.reason().is_some();
        let memory_s = if is_degraded { bounds.degrade_after_seconds } else { bounds.window_seconds };
        let elapsed_s = now.since(self.updated).as_secs_f64();
        let factor = (-elapsed_s / f64::from(memory_s.max(1))).exp();
        self.window.fade_and_merge(factor, observed);
        self.updated = now;
        self.signals = Signals::of(&self.window);
        let Signals { requests, error_ratio, slow_ratio, shed_ratio } = self.signals;
        let pressures = [
            (DegradeReason::ErrorRatio, error_ratio / bounds.error_ratio),
            (DegradeReason::Latency, slow_ratio / TOLERANCE),
            (DegradeReason::Shed, shed_ratio / TOLERANCE),
        ];
        let worst = pressures.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other));
        let (reason, pressure) = worst.unwrap_or((DegradeReason::ErrorRatio, 0.0));
        let is_broken = pressure > 1.0 && requests >= f64::from(bounds.min_requests);
        let new = observed.total(f64::INFINITY);
        let holds = pressure <= 1.0 - TOLERANCE && new.shed == 0.0;
        let lasted = |since: StoreTime, seconds: u32| now.since(since).as_secs_f64() >= f64::from(seconds);
        self.state = match self.state {
            DetectorState::Normal { broken_since } if is_broken => match broken_since.unwrap_or(now) {
                since if lasted(since, bounds.degrade_after_seconds) => {
                    DetectorState::Degraded { reason, held_since: None, ended: 0.0 }
                }
                since => DetectorState::Normal { broken_since: Some(since) },
            },
            DetectorState::Normal { .. } => DetectorState::Normal { broken_since: None },
            DetectorState::Degraded { reason, held_since, ended } if holds => {
                let (since, ended) = (held_since.unwrap_or(now), ended + new.requests);
                if lasted(since, bounds.recover_after_seconds) && ended >= f64::from(bounds.min_requests) {
                    DetectorState::Normal { broken_since: None }
                } else {
                    DetectorState::Degraded { reason, held_since: Some(since), ended }
                }
            }
            DetectorState::Degraded { reason, .. } => {
                DetectorState::Degraded { reason, held_since: None, ended: 0.0 }
            }
        };
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
