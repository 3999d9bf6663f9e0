//! Everything that steers the overload control.

use std::time::Duration;

/// The parameters of the overload control.
///
/// "Sweep" as a source means that the value was chosen by trial in the worlds of `tests/overload`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// Requests in flight before anything is known, and at least while the limit is not reached. Source: sweep.
    pub initial_limit: f64,
    /// The mean latency that the limit aims at, in multiples of the baseline. Source: the most important tier's latency
    /// may triple at most (SPEC, section 12), and its own wait comes on top.
    pub latency_target: f64,
    /// How many times the mean number in flight fits while the limit is not reached. Source: an upstream four times
    /// slower than usual under light load sheds nothing (SPEC, section 12).
    pub headroom: f64,
    /// Samples: fewer decide nothing. Source: the mean of eight exponential latencies varies by a third.
    pub min_samples: f64,
    /// Samples that the baseline remembers. Source: their mean varies by a fourteenth at most.
    pub baseline_samples: f64,
    /// Standard errors by which two means have to differ. Source: one time in forty by chance.
    pub sigmas: f64,
    /// Of places that are given back while the limit falls, the share that is not taken again. Source: at most this much is
    /// missing to the most important tier while a queue in the upstream is worked off; sweep.
    pub drain: f64,
    /// The share of requests that is not noticed: that wait, are shed, or are slower than a bound. Source: SPEC, section 12.
    pub share: f64,
    /// Time between two flushes of a worker. Source: a tenfold rise doubles the limit every two of them.
    pub flush_interval: Duration,
    /// Time between two measurements of the baseline under load. Source: each costs half of the throughput for a third of
    /// a second; 1 % in all.
    pub verify_interval: Duration,
    /// How often a worker with a queue looks for a free place. Source: "within milliseconds" (issue: across workers).
    pub tick: Duration,
    /// Longest wait in the queue; a worker that is silent for twice as long is dead. Source: SPEC, section 12.
    pub max_wait: Duration,
}

/// Their values.
pub const PARAMETERS: Parameters = Parameters {
    initial_limit: 20.0,
    latency_target: 1.4,
    headroom: 4.5,
    min_samples: 8.0,
    baseline_samples: 300.0,
    sigmas: 2.0,
    drain: 0.4,
    share: 0.1,
    flush_interval: Duration::from_millis(50),
    verify_interval: Duration::from_secs(20),
    tick: Duration::from_millis(2),
    max_wait: Duration::from_secs(1),
};
