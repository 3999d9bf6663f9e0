//! Latency, as means with their errors.
//!
//! It is measured in two ways: the mean of the responses, and by Little's law the time in flight of all requests for
//! each response. Where latency rises, the first lags behind; where more are in flight than before, the second is too
//! high for one latency. The true mean lies between the two; a decision that has to be certain uses the less favourable
//! one. When the limit fell and no more are in flight than it allows, the second is right at once.

use serde::{Deserialize, Serialize};

use super::observations::Observations;
use super::parameters::*;

/// A mean of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    pub seconds: f64,
    pub samples: f64,
}

impl Mean {
    /// The standard error, as a share of the mean: latencies are taken to vary as an exponential distribution does.
    pub fn error(self) -> f64 {
        self.samples.max(1.0).sqrt().recip()
    }

    /// What the true mean surely is at least, and at most, in seconds.
    pub fn least_s(self) -> f64 {
        self.seconds / (1.0 + SIGMAS * self.error())
    }

    pub fn most_s(self) -> f64 {
        self.seconds * (1.0 + SIGMAS * self.error())
    }

    /// Takes in more samples; they count for no more than `most` of the mean.
    pub fn with(self, newer: Self, most: f64) -> Self {
        let samples = self.samples.min(BASELINE_SAMPLES) + newer.samples;
        let share = (newer.samples / samples.max(1.0)).min(most);
        Self { seconds: self.seconds + share * (newer.seconds - self.seconds), samples }
    }
}

/// The latency since the last decision.
#[derive(Clone, Copy)]
pub struct Estimate {
    /// By Little's law.
    pub little: Mean,
    /// The lower and the higher of the two, and the mean of both.
    pub low: Mean,
    pub high: Mean,
    pub mean: Mean,
}

impl Estimate {
    pub fn of(observed: &Observations) -> Self {
        let samples = observed.samples;
        let of = |seconds: f64| Mean { seconds, samples };
        let [responses_s, little_s] =
            [observed.latency_s, observed.in_flight_s].map(|sum| (sum / samples.max(1.0)).max(1e-6));
        Self {
            little: of(little_s),
            low: of(responses_s.min(little_s)),
            high: of(responses_s.max(little_s)),
            mean: of((responses_s * little_s).sqrt()),
        }
    }
}

/// The latency at a limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub limit: f64,
    pub latency: Mean,
}

impl Measurement {
    /// The latency below which a lower limit has helped. With a queue in the upstream, latency falls in proportion to
    /// the limit; half of that fall, on a logarithmic scale, is enough.
    pub fn helped_s(&self, limit: f64) -> f64 {
        self.latency.seconds * (limit / self.limit).sqrt()
    }

    /// By how many standard errors the latency at a lower limit exceeds what a queue would have left of it; 0 where the
    /// lower limit has helped.
    pub fn failed_by(&self, now: Self) -> f64 {
        let error = self.latency.error() + now.latency.error();
        let rise = now.latency.seconds / self.latency.seconds * self.limit / now.limit;
        if now.latency.seconds > self.helped_s(now.limit) { rise.ln() / error } else { 0.0 }
    }
}
