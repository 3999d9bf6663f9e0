//! What a worker observes between two flushes. All of it adds up, over workers and over time.

use std::collections::BTreeMap;

use derive_more::{Add, AddAssign, Mul, Sub};
use serde::{Deserialize, Serialize};

/// How a request that needed a place ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// Response headers of the upstream; `failed`: with a status of 5xx.
    Response { failed: bool },
    /// None, as Envoy says: a timeout, a reset, no healthy host.
    NoResponse,
    /// The client left before the response headers.
    ClientLeft,
    /// It was not sent to the upstream after all: another filter answered it.
    NotSent,
}

/// What was observed of one cluster.
#[derive(AddAssign, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// Slots for callers, chosen by hash; callers may share one.
const CALLERS: u64 = 64;

/// What was observed of one caller.
#[derive(Add, AddAssign, Clone, Copy, Debug, Default, Mul, PartialEq, Serialize, Deserialize, Sub)]
pub struct CallerCounts {
    /// Requests that got a response or failed, or take too long already.
    pub requests: f64,
    pub errors: f64,
    /// Requests that took longer than a threshold.
    pub slow: f64,
    pub shed: f64,
}

/// What was observed of all callers, in bounded memory.
pub type CallerObservations = BTreeMap<u8, CallerCounts>;

pub fn count(callers: &mut CallerObservations, caller: u64, counts: CallerCounts) {
    *callers.entry((caller % CALLERS) as u8).or_default() += counts;
}

impl CallerCounts {
    pub fn size(&self) -> f64 {
        self.requests + self.shed
    }
}
