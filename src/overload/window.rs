//! What a worker observes between two flushes. All of it adds up, over workers and over time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    /// Responses that are no server errors.
    pub responses: f64,
    /// Of these, those that took longer than nine in ten usually do.
    pub over_usual: f64,
    /// Of these, those that count for the limit as it is now.
    pub samples: f64,
    /// The latencies of the samples, in seconds, added up.
    pub latency_s: f64,
    /// The squares of these.
    pub latency_s2: f64,
}

impl Observations {
    /// Adds what was observed elsewhere or later.
    pub fn merge(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.waited += other.waited;
        self.shed += other.shed;
        self.sent += other.sent;
        self.ended += other.ended;
        self.responses += other.responses;
        self.over_usual += other.over_usual;
        self.samples += other.samples;
        self.latency_s += other.latency_s;
        self.latency_s2 += other.latency_s2;
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
    /// Requests that got a response or failed, or take too long already.
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
pub struct CallerObservations(Vec<CallerCounts>);

impl Default for CallerObservations {
    fn default() -> Self {
        Self(vec![CallerCounts::default(); CALLERS])
    }
}

impl CallerObservations {
    /// The counts of a caller, by its hash.
    pub fn of(&mut self, caller: u64) -> Option<&mut CallerCounts> {
        self.0.get_mut((caller % CALLERS as u64) as usize)
    }

    /// Adds what was observed since. What was observed before counts by `factor` only.
    pub fn fade_and_merge(&mut self, factor: f64, newer: &Self) {
        for (mine, newer) in self.0.iter_mut().zip(&newer.0) {
            *mine = mine.times(factor).plus(newer.times(1.0));
        }
    }

    /// All together.
    pub fn total(&self) -> CallerCounts {
        self.0.iter().fold(CallerCounts::default(), |sum, counts| sum.plus(*counts))
    }

    /// All together, where no caller counts for more than the median caller does.
    pub fn balanced(&self) -> CallerCounts {
        let all = |counts: &CallerCounts| counts.requests + counts.shed;
        let mut sizes: Vec<f64> = self.0.iter().map(all).filter(|size| *size >= 0.5).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        let most = sizes.get(sizes.len() / 2).copied().unwrap_or_default().max(1.0);
        self.0.iter().fold(CallerCounts::default(), |sum, counts| {
            sum.plus(counts.times((most / all(counts).max(1e-9)).min(1.0)))
        })
    }
}

impl CallerCounts {
    fn times(self, factor: f64) -> Self {
        let Self { requests, errors, slow, shed } = self;
        Self {
            requests: requests * factor,
            errors: errors * factor,
            slow: slow * factor,
            shed: shed * factor,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            errors: self.errors + other.errors,
            slow: self.slow + other.slow,
            shed: self.shed + other.shed,
        }
    }
}
