//! What a worker observes between two flushes.

use std::time::Duration;

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
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observations {
    /// Requests that arrived.
    pub arrivals: f64,
    /// Requests that had to wait.
    pub waited: f64,
    /// Requests that were shed.
    pub shed: f64,
    /// Responses of the upstream that count as samples.
    pub samples: f64,
    /// Their latencies, in seconds, added up.
    pub latency_s: f64,
    /// Highest number in flight of all workers that was seen.
    pub peak: f64,
}

impl Observations {
    /// Adds what was observed elsewhere or at another time.
    pub fn merge(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.waited += other.waited;
        self.shed += other.shed;
        self.samples += other.samples;
        self.latency_s += other.latency_s;
        self.peak = self.peak.max(other.peak);
    }

    /// Counts a response after `latency`.
    pub fn sample(&mut self, latency: Duration) {
        self.samples += 1.0;
        self.latency_s += latency.as_secs_f64();
    }
}
