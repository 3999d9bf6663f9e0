//! One cluster: what all workers know of it, and one worker's part.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::concurrency_limit::ConcurrencyLimit;
use super::observations::{Observations, RequestOutcome};
use super::parameters::*;
use super::shared::{ClusterId, Gauge, Gauges, MAX_WORKERS_WAITING, Shared, change};
use crate::request::RequestId;
use crate::time::StoreTime;

/// An excess in the gauges is taken off after so many flushes of each worker.
const MIN_FLUSHES: u32 = 8;
/// A worker that has written nothing for so long is dead.
const WORKER_TIMEOUT: Duration = FLUSH_INTERVAL.saturating_mul(MIN_FLUSHES);

/// Priority, the caller's order, and age. The greatest is sent first.
pub type Rank = (u8, u64, Reverse<RequestId>);

/// What one worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerEntry {
    pub at: StoreTime,
    pub in_flight: u32,
    pub waiting: u32,
    /// What it has added to [`Gauge::Waiting`]: one for the most important priority in its queue.
    pub published: u64,
    /// Arrivals in a flush interval, on average.
    pub demand: f64,
}

/// What all workers know of one cluster: one record in shared data, written a few times a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub limit: ConcurrencyLimit,
    /// Requests that were shed since the record began.
    pub shed: f64,
    pub workers: BTreeMap<u64, WorkerEntry>,
    /// What the gauges hold beyond `workers`: the smallest difference of so many flushes.
    excess: Gauges,
    flushes: usize,
}

/// One worker's part.
#[derive(Debug, Default)]
pub struct ClusterControl {
    pub id: ClusterId,
    pub worker: u64,
    pub name: Vec<u8>,
    pub key: String,
    /// The requests that wait, and since when.
    pub queue: BTreeMap<Rank, StoreTime>,
    pub observations: Observations,
    /// The record at the last read.
    pub record: ClusterRecord,
    /// Workers that had a queue when that was last looked at.
    pub queues: i32,
    /// What this worker holds; `at` and `waiting` are those of the last flush.
    pub entry: WorkerEntry,
    pub yields_until: StoreTime,
}

impl ClusterRecord {
    /// Takes in what one worker observed and holds. Returns the excess to take off the gauges.
    ///
    /// A worker that traps never gives its places back. So each worker publishes what it holds. What the gauges hold
    /// beyond that at every flush for some time belongs to no worker, and is taken off. A live worker that was taken
    /// for dead makes the gauges too low; they are corrected in the same way.
    pub fn update(
        &mut self,
        observed: &Observations,
        worker: u64,
        entry: WorkerEntry,
        gauges: Option<Gauges>,
    ) -> Gauges {
        let now = entry.at;
        self.workers.insert(worker, entry);
        self.workers.retain(|_, entry| now.since(entry.at) < WORKER_TIMEOUT);
        self.shed += observed.shed;
        let held = self.workers.values().fold(Gauges::default(), |sum, entry| {
            let queues = u64::from(entry.published != 0) << 32;
            sum.zip(Gauges::new(queues + u64::from(entry.in_flight), entry.published), i32::saturating_add)
        });
        let gauges = gauges.unwrap_or(held);
        self.limit.update(observed, gauges.in_flight.into(), now);
        let excess = gauges.zip(held, i32::saturating_sub);
        if !self.has_excess() {
            (self.excess, self.flushes) = (excess, 0);
        }
        self.excess = self.excess.zip(excess, nearer_to_zero);
        self.flushes += 1;
        let is_lasting = self.flushes >= MIN_FLUSHES as usize * self.workers.len();
        if is_lasting { std::mem::take(&mut self.excess) } else { Gauges::default() }
    }

    /// Whether the gauges seem to hold more or less than all workers together.
    pub fn has_excess(&self) -> bool {
        self.excess != Gauges::default()
    }

    pub fn in_flight(&self) -> u64 {
        self.workers.values().map(|worker| u64::from(worker.in_flight)).sum()
    }

    pub fn waiting(&self) -> u64 {
        self.workers.values().map(|worker| u64::from(worker.waiting)).sum()
    }

    /// The places that are the worker's own, by its share of the demand. What is less than a place goes round, so that
    /// in `MAX_WAIT` each worker has its share.
    pub fn share(&self, worker: u64, now: StoreTime) -> f64 {
        let limit = self.limit.limit().ceil();
        let Some(own) = self.workers.get(&worker) else { return limit };
        let whole: f64 = self.workers.values().map(|entry| entry.demand).sum();
        let before: f64 = self.workers.range(..worker).map(|(_, entry)| entry.demand).sum();
        let rotation = (now.as_micros() * 10 / MAX_WAIT.as_micros() as u64 % 10) as f64 / 10.0;
        let places = |demand: f64| (limit * demand / whole.max(f64::MIN_POSITIVE) + rotation).floor();
        places(before + own.demand) - places(before)
    }
}

impl ClusterControl {
    pub fn best_priority(&self) -> Option<u8> {
        self.queue.last_key_value().map(|((priority, ..), _)| *priority)
    }

    /// Takes a place in flight: in any case or, with a priority, if one is free and no worker has a more important
    /// request in its queue.
    pub fn take_place(&mut self, priority: Option<u8>, now: StoreTime, shared: &impl Shared) -> bool {
        shared.add(self.id, Gauge::InFlight, 1);
        self.entry.in_flight = self.entry.in_flight.saturating_add(1);
        let keeps = priority.is_none_or(|priority| self.keeps_place(priority, now, shared));
        if !keeps {
            self.give_back(shared);
        }
        keeps
    }

    fn keeps_place(&mut self, priority: u8, now: StoreTime, shared: &impl Shared) -> bool {
        let Some(in_flight) = shared.read(self.id, Gauge::InFlight) else {
            return f64::from(self.entry.in_flight) <= self.record.share(self.worker, now).max(1.0);
        };
        let mut gauges = Gauges::new(in_flight, 0);
        let is_free = f64::from(gauges.in_flight) <= self.record.limit.limit().ceil();
        self.queues = gauges.queues;
        if is_free && gauges.queues > 0 {
            gauges = Gauges::new(in_flight, shared.read(self.id, Gauge::Waiting).unwrap_or_default());
        }
        is_free && gauges.highest_waiting().is_none_or(|highest| highest <= priority)
    }

    pub fn give_back(&mut self, shared: &impl Shared) {
        shared.add(self.id, Gauge::InFlight, -1);
        self.entry.in_flight = self.entry.in_flight.saturating_sub(1);
    }

    /// Leaves the place that was just given back to the other workers that wait, once in a tenth of the longest wait:
    /// else those with many requests in flight would take every place again before the others look for one.
    pub fn yield_place(&mut self, now: StoreTime, shared: &impl Shared) {
        let Some(priority) = self.best_priority() else { return };
        let is_due = now.since(self.yields_until) >= MAX_WAIT.mul_f64(TOLERANCE);
        if is_due && self.workers_waiting(priority, shared) > 1 {
            self.yields_until = now.after(2 * TICK);
        }
    }

    /// Publishes the most important priority that waits here, unless [`MAX_WORKERS_WAITING`] workers have published it.
    pub fn publish_queue(&mut self, shared: &impl Shared) {
        let (best, before) = (self.best_priority(), self.entry.published);
        let mut published = best.map_or(0, |priority| 1 << (6 * priority));
        let is_full = |priority| self.workers_waiting(priority, shared) >= MAX_WORKERS_WAITING;
        if published != before && best.is_some_and(is_full) {
            published = 0;
        }
        if published != before {
            self.entry.published = published;
            shared.add(self.id, Gauge::Waiting, published.wrapping_sub(before) as i64);
            let queues = i64::from(published != 0) - i64::from(before != 0);
            shared.add(self.id, Gauge::InFlight, queues << 32);
        }
    }

    /// How many workers have published this priority.
    fn workers_waiting(&self, priority: u8, shared: &impl Shared) -> i8 {
        let waiting = Gauges::new(0, shared.read(self.id, Gauge::Waiting).unwrap_or_default()).waiting;
        waiting.get(usize::from(priority)).copied().unwrap_or_default()
    }

    /// Counts the time since the last flush that a request was in flight which was sent at `since`.
    pub fn note_in_flight(&mut self, since: StoreTime, until: StoreTime) {
        self.observations.in_flight_s += until.since(since.max(self.entry.at)).as_secs_f64();
    }

    /// Counts the end of a request; if it was complete, `sample` is since when, and its latency.
    pub fn note_end(&mut self, outcome: RequestOutcome, sample: Option<(StoreTime, Duration)>) {
        match outcome {
            RequestOutcome::NotSent => self.observations.arrivals -= 1.0,
            RequestOutcome::Response { .. } => self.observations.answered += 1.0,
            RequestOutcome::NoResponse | RequestOutcome::ClientLeft => {}
        }
        let Some((since, latency)) = sample else { return };
        self.observations.ended += f64::from(outcome != RequestOutcome::NotSent);
        if outcome == (RequestOutcome::Response { failed: false }) {
            self.note_in_flight(since, since.after(latency));
            self.observations.over_usual += f64::from(self.record.limit.exceeds_usual(latency));
            self.observations.responses += 1.0;
            self.observations.samples += 1.0;
            self.observations.latency_s += latency.as_secs_f64();
        } else {
            // The time in flight of a request without such a response does not count.
            let from = since.max(self.record.limit.begun);
            self.observations.in_flight_s -= self.entry.at.since(from).as_secs_f64();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.entry.in_flight == 0 && self.queue.is_empty() && self.observations == Observations::default()
    }

    /// Writes into the record what was observed here, and reads what follows from what all workers observed.
    pub fn flush(&mut self, learns: bool, now: StoreTime, shared: &impl Shared) {
        if self.is_idle() && !self.record.has_excess() && now.since(self.entry.at) < MAX_WAIT {
            return;
        }
        let observed = std::mem::take(&mut self.observations);
        let from = std::mem::replace(&mut self.entry.at, now);
        self.entry.waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        self.entry.demand += TOLERANCE * (observed.arrivals - self.entry.demand);
        let (entry, read) = (self.entry, |gauge| shared.read(self.id, gauge));
        let gauges = read(Gauge::InFlight)
            .map(|in_flight| Gauges::new(in_flight, read(Gauge::Waiting).unwrap_or_default()));
        let changed = change(shared, &self.key, |record: &mut ClusterRecord| {
            let mut observed = observed;
            if from < record.limit.begun {
                (observed.samples, observed.latency_s, observed.in_flight_s) = (0.0, 0.0, 0.0);
            }
            if learns {
                record.limit.learn_usual(&observed, now);
            }
            record.update(&observed, self.worker, entry, gauges)
        });
        // Where all attempts were lost to other workers, these observations are lost, and the next ones are not.
        let Some((record, excess)) = changed else { return };
        if excess != Gauges::default() {
            let (in_flight, waiting) = excess.values();
            shared.add(self.id, Gauge::InFlight, in_flight.saturating_neg());
            shared.add(self.id, Gauge::Waiting, waiting.saturating_neg());
        }
        self.record = record;
    }
}

/// Of two numbers of one sign, that which is nearer to zero; zero if their signs differ.
fn nearer_to_zero(one: i32, other: i32) -> i32 {
    if one > 0 { one.min(other.max(0)) } else { one.max(other.min(0)) }
}
