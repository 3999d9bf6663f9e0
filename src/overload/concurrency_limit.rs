//! How many requests may be in flight to one cluster.

use super::{Observations, Parameters};
use crate::time::StoreTime;

/// The limit of one cluster, as all workers share it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConcurrencyLimit {
    limit: f64,
}

impl ConcurrencyLimit {
    /// The limit before anything is known.
    pub fn new(parameters: &Parameters, _now: StoreTime) -> Self {
        Self { limit: parameters.initial_limit }
    }

    /// How many requests may be in flight.
    pub fn limit(&self, _now: StoreTime) -> f64 {
        self.limit
    }

    /// One interval further.
    pub fn update(&mut self, _observations: &Observations, _parameters: &Parameters, _now: StoreTime) {}
}
