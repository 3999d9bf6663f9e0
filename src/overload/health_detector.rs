//! Whether the upstream is healthy, from what all workers of one Envoy observe of all clusters.
//!
//! Callers are weighed: none counts for more than the median caller, so that one among many decides nothing.

use serde::{Deserialize, Serialize};

use super::Parameters;
use super::window::{CallerCounts, CallerObservations};
use crate::config::Measured;
use crate::health::Health;
use crate::time::StoreTime;

/// Why health is `DEGRADED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Too many server errors.
    ErrorRatio,
    /// More than a tenth of requests took longer than `latency_ms`, or `latency_ratio` times what is usual.
    Latency,
    /// More than a tenth of requests were shed.
    Shed,
}

/// The signals of the window. Each caller counts for no more than the median caller does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Requests that ended or were shed.
    pub requests: f64,
    /// The share of server errors, 0 to 1.
    pub error_ratio: f64,
    /// The share of requests that took longer than the bounds.
    pub slow_ratio: f64,
    /// The share of requests that were shed.
    pub shed_ratio: f64,
}

/// What the detector does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// All bounds hold, or one has been broken since some moment.
    Normal {
        /// Since when, in microseconds.
        broken_since: Option<u64>,
    },
    /// A bound was broken for long enough, or all hold again since some moment.
    Degraded {
        /// Which bound.
        reason: Reason,
        /// Since when all hold, in microseconds.
        held_since: Option<u64>,
        /// Requests that ended since then.
        ended: f64,
    },
}

/// `NORMAL` or `DEGRADED`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthDetector {
    state: State,
    window: CallerObservations,
    updated_us: u64,
    signals: Signals,
}

impl HealthDetector {
    /// Nothing observed yet.
    pub fn new(now: StoreTime) -> Self {
        let state = State::Normal { broken_since: None };
        let signals = Signals::default();
        Self { state, window: CallerObservations::default(), updated_us: now.as_micros(), signals }
    }

    /// What the signals say.
    pub fn health(&self) -> Health {
        match self.state {
            State::Normal { .. } => Health::Normal,
            State::Degraded { .. } => Health::Degraded,
        }
    }

    /// Why it is `DEGRADED`.
    pub fn reason(&self) -> Option<Reason> {
        match self.state {
            State::Normal { .. } => None,
            State::Degraded { reason, .. } => Some(reason),
        }
    }

    /// Whether health is `NORMAL` and no bound is broken: then latency is usual.
    pub fn is_calm(&self) -> bool {
        matches!(self.state, State::Normal { broken_since: None })
    }

    /// The signals as they were last.
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// Takes in what one worker observed.
    pub fn update(
        &mut self,
        observed: &CallerObservations,
        bounds: &Measured,
        parameters: &Parameters,
        now: StoreTime,
    ) {
        let elapsed_s = now.since(StoreTime::from_micros(self.updated_us)).as_secs_f64();
        self.updated_us = now.as_micros();
        // The way back is judged by the newer half.
        let window_s = f64::from(bounds.window_seconds.max(1));
        let memory_s = if self.health() == Health::Normal { window_s } else { window_s / 2.0 };
        self.window.fade_and_merge((-elapsed_s / memory_s).exp(), observed);
        let new = observed.total();
        self.signals = Signals::new(self.window.total(), self.window.balanced());
        let is_enough = self.signals.requests >= f64::from(bounds.min_requests);
        let broken = self.signals.worst(bounds, parameters);
        self.state = match (self.state, broken) {
            (State::Normal { broken_since }, Some((reason, pressure))) if is_enough && pressure > 1.0 => {
                let since = broken_since.unwrap_or(now.as_micros());
                let broken_s = now.since(StoreTime::from_micros(since)).as_secs_f64();
                if broken_s >= f64::from(bounds.degrade_after_seconds) {
                    State::Degraded { reason, held_since: None, ended: 0.0 }
                } else {
                    State::Normal { broken_since: Some(since) }
                }
            }
            (State::Normal { .. }, _) => State::Normal { broken_since: None },
            (State::Degraded { reason, .. }, Some((_, pressure)))
                if pressure > 1.0 - parameters.share || new.shed > 0.0 =>
            {
                State::Degraded { reason, held_since: None, ended: 0.0 }
            }
            (State::Degraded { reason, held_since, ended }, _) => {
                let (since, ended) = (held_since.unwrap_or(now.as_micros()), ended + new.requests);
                let held_s = now.since(StoreTime::from_micros(since)).as_secs_f64();
                if held_s >= f64::from(bounds.recover_after_seconds)
                    && ended >= f64::from(bounds.min_requests)
                {
                    State::Normal { broken_since: None }
                } else {
                    State::Degraded { reason, held_since: Some(since), ended }
                }
            }
        };
    }
}

impl Signals {
    fn new(total: CallerCounts, balanced: CallerCounts) -> Self {
        let ratio = |part: f64, whole: f64| if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
        Self {
            requests: total.requests + total.shed,
            error_ratio: ratio(balanced.errors, balanced.requests),
            slow_ratio: ratio(balanced.slow, balanced.requests),
            shed_ratio: ratio(balanced.shed, balanced.requests + balanced.shed),
        }
    }

    /// The signal that is worst, in multiples of its bound.
    fn worst(&self, bounds: &Measured, parameters: &Parameters) -> Option<(Reason, f64)> {
        let all = [
            (Reason::ErrorRatio, self.error_ratio / bounds.error_ratio),
            (Reason::Latency, self.slow_ratio / parameters.share),
            (Reason::Shed, self.shed_ratio / parameters.share),
        ];
        all.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other))
    }
}
