//! What a worker observes between two flushes. All of it adds up, over workers and over time.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a request that asked for a place ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Response headers of the upstream. `failed`: a server error.
    Response {
        /// Whether the status is 5xx.
        failed: bool,
    },
    /// None: a timeout, a reset, no healthy host.
    NoResponse,
    /// The client left before the response headers.
    ClientLeft,
    /// It was not sent to the upstream after all: another filter answered it.
    NotSent,
}

/// What was observed of one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observations {
    /// Requests that arrived.
    pub arrivals: f64,
    /// Of these, those that had to wait.
    pub waited: f64,
    /// Requests that were shed.
    pub shed: f64,
    /// Places that were taken.
    pub sent: f64,
    /// Places that were given back.
    pub ended: f64,
    /// Responses to requests that were sent in this epoch of the limit and are no server errors.
    pub samples: f64,
    /// Their latencies, in seconds, added up.
    pub latency_s: f64,
    /// The squares of these.
    pub latency_s2: f64,
    /// Responses that took longer than nine in ten usually do.
    pub over_usual: f64,
    /// Responses that are no server errors.
    pub responses: f64,
    /// The highest number in flight that was seen.
    pub peak: f64,
}

impl Observations {
    /// Adds what was observed elsewhere or later.
    pub fn merge(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.waited += other.waited;
        self.shed += other.shed;
        self.sent += other.sent;
        self.ended += other.ended;
        self.samples += other.samples;
        self.latency_s += other.latency_s;
        self.latency_s2 += other.latency_s2;
        self.over_usual += other.over_usual;
        self.responses += other.responses;
        self.peak = self.peak.max(other.peak);
    }

    /// Counts a sample.
    pub fn sample(&mut self, latency: Duration) {
        self.samples += 1.0;
        self.latency_s += latency.as_secs_f64();
        self.latency_s2 += latency.as_secs_f64().powi(2);
    }

    /// The same without its samples.
    pub fn without_samples(self) -> Self {
        Self { samples: 0.0, latency_s: 0.0, latency_s2: 0.0, ..self }
    }
}

/// Callers whose observations are kept apart. More share a number, by their hash.
const CALLERS: usize = 64;

/// What was observed of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CallerCounts {
    /// Requests that ended in a response or a failure, or take too long already.
    pub requests: f64,
    /// Of these, server errors.
    pub errors: f64,
    /// Of these, those that took longer than a bound.
    pub slow: f64,
    /// Requests that were shed.
    pub shed: f64,
}

/// What was observed of all callers, in bounded memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallerObservations {
    callers: Vec<CallerCounts>,
}

impl Default for CallerObservations {
    fn default() -> Self {
        Self { callers: vec![CallerCounts::default(); CALLERS] }
    }
}

impl CallerObservations {
    /// The counts of a caller.
    pub fn of(&mut self, caller: u64) -> Option<&mut CallerCounts> {
        let caller = caller.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.callers.get_mut(caller as usize % CALLERS)
    }

    /// Adds what was observed elsewhere or later.
    pub fn merge(&mut self, other: &Self) {
        for (mine, more) in self.callers.iter_mut().zip(&other.callers) {
            mine.requests += more.requests;
            mine.errors += more.errors;
            mine.slow += more.slow;
            mine.shed += more.shed;
        }
    }

    /// Lets what was observed until now count by `factor` only.
    pub fn fade(&mut self, factor: f64) {
        for counts in &mut self.callers {
            counts.requests *= factor;
            counts.errors *= factor;
            counts.slow *= factor;
            counts.shed *= factor;
        }
    }

    /// All together.
    pub fn total(&self) -> CallerCounts {
        self.weighed(f64::INFINITY)
    }

    /// All together, where no caller counts for more than the median caller does.
    pub fn balanced(&self) -> CallerCounts {
        let mut all: Vec<f64> =
            self.callers.iter().map(CallerCounts::all).filter(|all| *all >= 0.5).collect();
        all.sort_unstable_by(f64::total_cmp);
        self.weighed(all.get(all.len() / 2).copied().unwrap_or(1.0).max(1.0))
    }

    fn weighed(&self, most: f64) -> CallerCounts {
        let mut sum = CallerCounts::default();
        for counts in self.callers.iter().filter(|counts| counts.all() > 0.0) {
            let weight = (most / counts.all()).min(1.0);
            sum.requests += counts.requests * weight;
            sum.errors += counts.errors * weight;
            sum.slow += counts.slow * weight;
            sum.shed += counts.shed * weight;
        }
        sum
    }
}

impl CallerCounts {
    fn all(&self) -> f64 {
        self.requests + self.shed
    }
}
