//! What a worker observes between two flushes.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::concurrency_limit::Estimate;

/// How a request that was sent to the upstream ended, for the overload control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Response headers of the upstream; `failed`: a 5xx status.
    Response {
        /// Whether it is a server error.
        failed: bool,
    },
    /// No response: a timeout, a reset, no healthy host.
    NoResponse,
    /// The client left before the response headers.
    ClientLeft,
    /// It ended without having been sent to the upstream, such as by a local reply of another filter.
    NotSent,
}

/// What one worker has observed of one cluster since its last flush. Two of them add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observations {
    /// The epoch of the samples.
    pub epoch: u32,
    /// Requests that arrived.
    pub arrivals: f64,
    /// Requests that had to wait.
    pub waited: f64,
    /// Requests that were shed.
    pub shed: f64,
    /// Requests sent.
    pub sent: f64,
    /// Places given back.
    pub ended: f64,
    /// Responses of the upstream that count as samples.
    pub samples: f64,
    /// Their latencies, in seconds, added up.
    pub latency_s: f64,
    /// And their squares.
    pub latency_s2: f64,
    /// Highest number in flight of all workers that was seen.
    pub peak: f64,
    /// The last number in flight that was seen.
    pub in_flight: f64,
}

impl Observations {
    /// Adds what was observed elsewhere or at another time.
    pub fn merge(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.waited += other.waited;
        self.shed += other.shed;
        self.sent += other.sent;
        self.ended += other.ended;
        self.samples += other.samples;
        self.latency_s += other.latency_s;
        self.latency_s2 += other.latency_s2;
        self.peak = self.peak.max(other.peak);
        self.in_flight = other.in_flight;
    }

    /// Counts a response after `latency`.
    pub fn sample(&mut self, latency: Duration) {
        self.samples += 1.0;
        self.latency_s += latency.as_secs_f64();
        self.latency_s2 += latency.as_secs_f64().powi(2);
    }

    /// The mean latency. Few samples are taken to vary as an exponential distribution does.
    pub fn latency(&self) -> Estimate {
        let n = self.samples.max(1.0);
        let mean_s = (self.latency_s / n).max(1e-6);
        let variance = (self.latency_s2 / n / mean_s.powi(2) - 1.0).max(0.0);
        let variance = (variance * n + 4.0) / (n + 4.0);
        Estimate { mean_s, error: (variance / n).sqrt(), samples: self.samples }
    }
}
