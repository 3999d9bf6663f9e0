//! Whether the upstream is healthy, from what all workers of one Envoy observe.

use crate::health::Health;

/// Why health is `DEGRADED`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The share of server errors.
    ErrorRatio(f64),
    /// The 90th percentile of latency, in milliseconds.
    LatencyMs(f64),
    /// The 90th percentile of latency, in multiples of the baseline.
    LatencyRatio(f64),
    /// The share of requests that were shed.
    ShedRatio(f64),
}

/// The signals, as `GET /system/health` shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// Requests that ended in the window.
    pub requests: f64,
    /// The share of server errors, with each caller weighed.
    pub error_ratio: f64,
    /// The share of requests that were slower than the bounds, with each caller weighed.
    pub slow_ratio: f64,
    /// The share of requests that were shed, with each caller weighed.
    pub shed_ratio: f64,
}

/// `NORMAL` or `DEGRADED`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthDetector {
    health: Health,
    reason: Option<Reason>,
}

impl HealthDetector {
    /// What the signals say.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Why it is `DEGRADED`, or was the last time.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }
}
