//! The parts of the overload control, and workers that share memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use harness::random::Random;

use super::cluster::{ClusterRecord, Rank, WorkerEntry};
use super::concurrency_limit::{ConcurrencyLimit, LimitState};
use super::health_detector::HealthDetector;
use super::observations::{CallerCounts, CallerObservations, Observations, count};
use super::parameters::INITIAL_LIMIT;
use super::shared::{Gauges, change, decode, key};
use super::{
    ClusterId, DegradeReason, Gauge, Output, OverloadControl, PlaceRequest, RequestOutcome, Shared,
    rotating_order,
};
use crate::config::HealthThresholds;
use crate::control::Control;
use crate::generation::Role;
use crate::health::Health;
use crate::limit::Limit;
use crate::measured_health::put_into_force;
use crate::metrics::Metrics;
use crate::request::RequestId;
use crate::store::{Conflict, SharedData};
use crate::tier::Tier;
use crate::time::StoreTime;

mod health;
mod limit;
mod queue;
mod record;
mod workers;

fn at(ms: u64) -> StoreTime {
    StoreTime::from_micros(1_000_000_000 + ms * 1_000)
}
