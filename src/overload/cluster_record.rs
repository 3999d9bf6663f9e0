//! What all workers know of one cluster: one record in shared data, written a few times a second.

use serde::{Deserialize, Serialize};

use super::shared::Gauges;
use super::{ConcurrencyLimit, Observations, Parameters};
use crate::time::StoreTime;

/// Turns in a second, in which parts of a place go round.
const TURNS: f64 = 10.0;
/// Most workers in a record.
const MAX_WORKERS: usize = 256;

/// What one worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerEntry {
    /// The worker: a random number.
    pub worker: u64,
    /// When this was written, in microseconds.
    pub at_us: u64,
    /// Its requests in flight.
    pub in_flight: u32,
    /// Its requests in the queue.
    pub waiting: u32,
    /// What it has published of its queue in the gauges.
    pub priorities: u64,
    /// Requests that arrive in it, as a share of what counts.
    pub demand: f64,
}

/// The record of one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// How many may be in flight.
    pub limit: ConcurrencyLimit,
    /// Requests that were shed since the record began.
    pub shed: f64,
    workers: Vec<WorkerEntry>,
    /// What the gauges have held beyond all workers at each flush since then, in microseconds.
    excess_since_us: u64,
    excess: Gauges,
    flushes: u32,
}

impl ClusterRecord {
    /// Nothing known yet.
    pub fn new(parameters: &Parameters, now: StoreTime) -> Self {
        Self {
            limit: ConcurrencyLimit::new(parameters, now),
            shed: 0.0,
            workers: Vec::new(),
            excess_since_us: now.as_micros(),
            excess: Gauges::default(),
            flushes: 0,
        }
    }

    /// The record that these bytes are; `None` where another version of the program has written them.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// As bytes, for [`ClusterRecord::decode`].
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Requests in flight of all workers.
    pub fn in_flight(&self) -> u64 {
        self.workers.iter().map(|entry| u64::from(entry.in_flight)).sum()
    }

    /// Requests in the queues of all workers.
    pub fn waiting(&self) -> u64 {
        self.workers.iter().map(|entry| u64::from(entry.waiting)).sum()
    }

    /// Takes in what one worker observed and holds. Returns what the gauges hold too much and has to be taken off.
    ///
    /// A worker that traps never gives its places back. So each worker says what it holds, and what the gauges hold beyond
    /// all that are alive, at every flush of two seconds, belongs to none. A worker that was taken for dead and is not
    /// leaves the gauges too low in the same way, and that is put right in the same way.
    pub fn update(
        &mut self,
        observations: &Observations,
        entry: WorkerEntry,
        gauges: Option<Gauges>,
        parameters: &Parameters,
        now: StoreTime,
    ) -> Gauges {
        let dead_after = 10 * parameters.flush_interval;
        let is_alive = |entry: &WorkerEntry| now.since(StoreTime::from_micros(entry.at_us)) < dead_after;
        self.workers.retain(|other| other.worker != entry.worker && is_alive(other));
        if self.workers.len() < MAX_WORKERS {
            self.workers.push(entry);
        }
        self.shed += observations.shed;
        let in_flight = gauges.map_or(self.in_flight() as f64, |gauges| f64::from(gauges.in_flight));
        self.limit.update(observations, in_flight, parameters, now);
        gauges.map_or(Gauges::default(), |gauges| self.find_excess(gauges, parameters, now))
    }

    /// Of `limit` places, those that are the worker's own, by its share of the demand. What is less than a place goes
    /// round, so that over a second each worker has its share.
    pub fn share(&self, worker: u64, limit: f64, parameters: &Parameters, now: StoreTime) -> f64 {
        let whole: f64 = self.workers.iter().map(|entry| entry.demand).sum();
        let demand = |of: fn(&u64, &u64) -> bool| -> f64 {
            self.workers.iter().filter(|entry| of(&entry.worker, &worker)).map(|entry| entry.demand).sum()
        };
        let turn = (now.as_micros() as f64 / parameters.max_wait.as_micros() as f64 * TURNS).floor();
        let places =
            |demand: f64| (limit.ceil() * demand / whole.max(f64::MIN_POSITIVE) + turn / TURNS).floor();
        places(demand(u64::le)) - places(demand(u64::lt))
    }

    fn find_excess(&mut self, gauges: Gauges, parameters: &Parameters, now: StoreTime) -> Gauges {
        let held = self.workers.iter().fold(Gauges::default(), |sum, entry| {
            let queues = u64::from(entry.priorities != 0) << 32;
            sum.zip(Gauges::new(queues + u64::from(entry.in_flight), entry.priorities), i32::saturating_add)
        });
        let excess = gauges.zip(held, i32::saturating_sub);
        self.excess = if self.flushes == 0 { excess } else { self.excess.zip(excess, nearer_to_zero) };
        self.flushes = self.flushes.saturating_add(1);
        if now.since(StoreTime::from_micros(self.excess_since_us)) < 10 * parameters.flush_interval
            || f64::from(self.flushes) < parameters.min_samples
        {
            return Gauges::default();
        }
        (self.excess_since_us, self.flushes) = (now.as_micros(), 0);
        self.excess
    }
}

/// Of two numbers of one sign, that which is nearer to zero; zero if their signs differ.
fn nearer_to_zero(one: i32, other: i32) -> i32 {
    match (one.signum(), other.signum()) {
        (1, 1) => one.min(other),
        (-1, -1) => one.max(other),
        _ => 0,
    }
}
