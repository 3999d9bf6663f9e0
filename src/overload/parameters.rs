//! Everything that steers the overload control.

use std::time::Duration;

/// The parameters of the overload control. No other constant steers it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// Requests in flight that are allowed before anything is known.
    pub initial_limit: f64,
    /// The mean latency that the limit aims at, in multiples of the baseline.
    pub latency_target: f64,
    /// Shortest time between two decisions about a limit, and the longest between two flushes of a worker.
    pub interval: Duration,
    /// Fewest samples that decide something about a limit.
    pub min_samples: f64,
    /// The limit while it is not reached, in multiples of the highest number in flight.
    pub headroom: f64,
    /// Longest time between two probes.
    pub probe_interval: Duration,
    /// How often a worker with a queue looks for a place that another worker gave back.
    pub tick: Duration,
    /// Longest time in the queue.
    pub max_wait: Duration,
    /// Shortest queue of a cluster in a worker.
    pub min_queue: usize,
    /// Most requests in the queues of a worker.
    pub max_queue: usize,
    /// Of the places that are given back while the limit falls, the share that stays free.
    pub drain: f64,
    /// The share of requests shed that turns health `DEGRADED`.
    pub shed_ratio: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            initial_limit: 20.0,
            latency_target: 1.5,
            interval: Duration::from_millis(50),
            min_samples: 8.0,
            headroom: 4.0,
            probe_interval: Duration::from_secs(20),
            tick: Duration::from_millis(5),
            max_wait: Duration::from_secs(1),
            min_queue: 16,
            max_queue: 1_024,
            drain: 0.4,
            shed_ratio: 0.1,
        }
    }
}
