//! What all workers know of one cluster: one record in shared data, written a few times a second.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::concurrency_limit::ConcurrencyLimit;
use super::observations::Observations;
use super::parameters::*;
use super::shared::Gauges;
use crate::time::StoreTime;

/// Most workers in a record.
const MAX_WORKERS: usize = 256;
/// A worker that has written nothing for so long is dead.
const WORKER_TIMEOUT: Duration = FLUSH_INTERVAL.saturating_mul(MIN_FLUSHES);
/// An excess in the gauges is taken off after at least so many flushes.
const MIN_FLUSHES: u32 = 8;

/// What one worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerEntry {
    pub worker: u64,
    pub at: StoreTime,
    pub in_flight: u32,
    pub waiting: u32,
    /// What it has published of its queue in the gauges.
    pub priorities: u64,
    /// Arrivals in a flush interval, on average.
    pub demand: f64,
}

/// The record of one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub limit: ConcurrencyLimit,
    /// Requests that were shed since the record began.
    pub shed: f64,
    pub workers: Vec<WorkerEntry>,
    /// What the gauges hold beyond `workers`: the smallest difference of all flushes since `excess_since`.
    excess: Gauges,
    excess_since: StoreTime,
    /// Flushes since then.
    flushes: u32,
}

impl ClusterRecord {
    pub fn new(now: StoreTime) -> Self {
        let limit = ConcurrencyLimit::new(now);
        let (workers, excess) = (Vec::new(), Gauges::default());
        Self { limit, shed: 0.0, workers, excess, excess_since: now, flushes: 0 }
    }

    /// Takes in what one worker observed and holds. Returns the excess to take off the gauges.
    ///
    /// A worker that traps never gives its places back. So each worker publishes what it holds. What the gauges hold
    /// beyond that at every flush for some time belongs to no worker, and is taken off. A live worker that was taken
    /// for dead makes the gauges too low; they are corrected in the same way.
    pub fn update(
        &mut self,
        observed: &Observations,
        entry: WorkerEntry,
        gauges: Option<Gauges>,
        now: StoreTime,
    ) -> Gauges {
        let is_recent = |at: StoreTime| now.since(at) < WORKER_TIMEOUT;
        self.workers.retain(|other| other.worker != entry.worker && is_recent(other.at));
        if self.workers.len() < MAX_WORKERS {
            self.workers.push(entry);
        }
        self.shed += observed.shed;
        let held = self.workers.iter().fold(Gauges::default(), |sum, entry| {
            let queues = u64::from(entry.priorities != 0) << 32;
            sum.zip(Gauges::new(queues + u64::from(entry.in_flight), entry.priorities), i32::saturating_add)
        });
        let gauges = gauges.unwrap_or(held);
        self.limit.update(observed, gauges.in_flight.into(), now);
        let excess = gauges.zip(held, i32::saturating_sub);
        self.excess = if self.flushes == 0 { excess } else { self.excess.zip(excess, nearer_to_zero) };
        self.flushes = self.flushes.saturating_add(1);
        if self.has_excess() && (is_recent(self.excess_since) || self.flushes < MIN_FLUSHES) {
            return Gauges::default();
        }
        (self.excess_since, self.flushes) = (now, 0);
        std::mem::take(&mut self.excess)
    }

    /// Whether the gauges seem to hold more or less than all workers together.
    pub fn has_excess(&self) -> bool {
        self.excess != Gauges::default()
    }

    pub fn in_flight(&self) -> u64 {
        self.workers.iter().map(|worker| u64::from(worker.in_flight)).sum()
    }

    pub fn waiting(&self) -> u64 {
        self.workers.iter().map(|worker| u64::from(worker.waiting)).sum()
    }

    /// Of `limit` places, those that are the worker's own, by its share of the demand. What is less than a place goes
    /// round, so that in `MAX_WAIT` each worker has its share.
    pub fn share(&self, worker: u64, limit: f64, now: StoreTime) -> f64 {
        let demand = |is_meant: fn(&u64, &u64) -> bool| -> f64 {
            let meant = self.workers.iter().filter(|entry| is_meant(&entry.worker, &worker));
            meant.map(|entry| entry.demand).sum()
        };
        let whole = demand(|_, _| true).max(f64::MIN_POSITIVE);
        let rotation = (now.as_micros() as f64 / MAX_WAIT.as_micros() as f64 * 10.0).floor() / 10.0;
        let places = |demand: f64| (limit.ceil() * demand / whole + rotation.fract()).floor();
        places(demand(u64::le)) - places(demand(u64::lt))
    }
}

/// Of two numbers of one sign, that which is nearer to zero; zero if their signs differ.
fn nearer_to_zero(one: i32, other: i32) -> i32 {
    if one > 0 { one.min(other.max(0)) } else { one.max(other.min(0)) }
}
