//! What a worker observes between two flushes. All of it adds up, over workers and over time.

use serde::{Deserialize, Serialize};

/// How a request that needed a place ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// Response headers of the upstream.
    Response {
        /// Whether the status is 5xx.
        failed: bool,
    },
    /// None, as Envoy says: a timeout, a reset, no healthy host.
    NoResponse,
    /// The client left before the response headers.
    ClientLeft,
    /// It was not sent to the upstream after all: another filter answered it.
    NotSent,
}

/// What was observed of one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observations {
    /// Requests that needed a place. One that is not sent for another reason than the limit is subtracted later, so the
    /// number may be negative.
    pub arrivals: f64,
    /// Of the arrivals, those that had to wait.
    pub waited: f64,
    pub shed: f64,
    /// Requests that were sent whole, and have ended in any way.
    pub ended: f64,
    /// Requests that got response headers of the upstream.
    pub answered: f64,
    /// Responses to whole requests that are no server errors.
    pub responses: f64,
    /// Of the responses, those that took longer than nine in ten usually do.
    pub over_usual: f64,
    /// Of the responses, those of the current epoch.
    pub samples: f64,
    /// Sum of the samples' latencies.
    pub latency_s: f64,
    /// Sum of the times that requests were in flight in the current epoch, without those that got no such response.
    pub in_flight_s: f64,
}

impl Observations {
    pub fn merge(&mut self, other: &Self) {
        self.arrivals += other.arrivals;
        self.waited += other.waited;
        self.shed += other.shed;
        self.ended += other.ended;
        self.answered += other.answered;
        self.responses += other.responses;
        self.over_usual += other.over_usual;
        self.samples += other.samples;
        self.latency_s += other.latency_s;
        self.in_flight_s += other.in_flight_s;
    }
}

/// Slots for callers, chosen by hash; callers may share one.
const CALLERS: usize = 64;
/// What has faded to less is no caller any more, in requests.
pub const MIN_SIZE: f64 = 0.5;

/// What was observed of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CallerCounts {
    /// Requests that got a response or failed, or take too long already.
    pub requests: f64,
    pub errors: f64,
    /// Requests that took longer than a threshold.
    pub slow: f64,
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
    pub fn count(&mut self, caller: u64, counts: CallerCounts) {
        if let Some(sum) = self.0.get_mut((caller % CALLERS as u64) as usize) {
            *sum = sum.plus(&counts, 1.0);
        }
    }

    /// Adds what was observed since. What was observed before counts by `factor` only.
    pub fn fade_and_merge(&mut self, factor: f64, newer: &Self) {
        self.0.iter_mut().zip(&newer.0).for_each(|(mine, newer)| *mine = newer.plus(mine, factor));
    }

    /// All together, where no caller counts for more than `most`.
    pub fn total(&self, most: f64) -> CallerCounts {
        let weight = |counts: &CallerCounts| (most / counts.size().max(1e-9)).min(1.0);
        let used = self.0.iter().filter(|counts| counts.size() > 0.0);
        used.fold(CallerCounts::default(), |sum, counts| sum.plus(counts, weight(counts)))
    }

    /// The counts of the caller with the largest `part`.
    pub fn largest(&self, part: fn(&CallerCounts) -> f64) -> CallerCounts {
        let larger = |largest, counts| if part(&counts) > part(&largest) { counts } else { largest };
        self.0.iter().copied().fold(CallerCounts::default(), larger)
    }

    /// What the median caller counts for.
    pub fn median(&self) -> f64 {
        let mut sizes: Vec<f64> =
            self.0.iter().map(CallerCounts::size).filter(|size| *size >= MIN_SIZE).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        sizes.get(sizes.len() / 2).copied().unwrap_or_default().max(1.0)
    }
}

impl CallerCounts {
    /// Requests that ended or were shed.
    pub fn size(&self) -> f64 {
        self.requests + self.shed
    }

    pub fn plus(self, other: &Self, weight: f64) -> Self {
        Self {
            requests: self.requests + weight * other.requests,
            errors: self.errors + weight * other.errors,
            slow: self.slow + weight * other.slow,
            shed: self.shed + weight * other.shed,
        }
    }
}
