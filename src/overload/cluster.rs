//! One worker's view of one cluster.

use std::time::Duration;

use super::admission_queue::AdmissionQueue;
use super::cluster_record::{ClusterRecord, WorkerEntry};
use super::shared::{ClusterId, Gauge, Gauges, Shared};
use super::{Observations, Parameters};
use crate::store::update;
use crate::time::StoreTime;

/// One worker's view of one cluster: its queue, its observations, and the record as it was last read.
#[derive(Debug)]
pub(super) struct ClusterControl {
    pub(super) name: Vec<u8>,
    pub(super) is_used: bool,
    pub(super) queue: AdmissionQueue,
    pub(super) observations: Observations,
    pub(super) record: ClusterRecord,
    id: ClusterId,
    worker: u64,
    key: String,
    /// The limit, or this worker's share of it.
    pub(super) limit: f64,
    in_flight: u32,
    /// Workers that had a queue when that was last looked at.
    queues: i32,
    sampled_since: StoreTime,
    demand: f64,
    published: u64,
    places_in_a_row: u32,
    yields_until: StoreTime,
    flushed: StoreTime,
}

impl ClusterControl {
    pub(super) fn new(
        id: ClusterId,
        name: &[u8],
        key: String,
        worker: u64,
        parameters: &Parameters,
        now: StoreTime,
    ) -> Self {
        Self {
            name: name.to_vec(),
            is_used: false,
            queue: AdmissionQueue::default(),
            observations: Observations::default(),
            record: ClusterRecord::new(parameters, now),
            id,
            worker,
            key,
            limit: parameters.initial_limit,
            in_flight: 0,
            queues: 0,
            sampled_since: now,
            demand: 0.0,
            published: 0,
            places_in_a_row: 0,
            yields_until: now,
            flushed: StoreTime::default(),
        }
    }

    /// Takes a place in flight, if one is free and no worker has a more important request in its queue.
    pub(super) fn take_place(&mut self, priority: u8, shared: &impl Shared) -> bool {
        shared.add(self.id, Gauge::InFlight, 1);
        let Some(in_flight) = shared.read(self.id, Gauge::InFlight) else {
            let is_free = f64::from(self.in_flight) < self.limit;
            self.note_taken(is_free);
            return is_free;
        };
        let mut gauges = Gauges::new(in_flight, 0);
        let is_free = f64::from(gauges.in_flight) <= self.limit.ceil();
        if is_free && gauges.queues > 0 {
            gauges = Gauges::new(in_flight, shared.read(self.id, Gauge::Waiting).unwrap_or_default());
        }
        self.queues = gauges.queues;
        let is_next = gauges.highest_waiting().is_none_or(|highest| highest <= priority);
        if !(is_free && is_next) {
            shared.add(self.id, Gauge::InFlight, -1);
        }
        self.note_taken(is_free && is_next);
        is_free && is_next
    }

    fn note_taken(&mut self, is_taken: bool) {
        if is_taken {
            self.in_flight = self.in_flight.saturating_add(1);
            self.observations.sent += 1.0;
        }
    }

    /// Takes a place whether one is free or not.
    pub(super) fn take_place_anyway(&mut self, shared: &impl Shared) {
        shared.add(self.id, Gauge::InFlight, 1);
        self.note_taken(true);
    }

    /// Gives a place back.
    pub(super) fn give_back(&mut self, shared: &impl Shared) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.observations.ended += 1.0;
        shared.add(self.id, Gauge::InFlight, -1);
    }

    /// Whether the place that was just given back is left to the other workers that wait: else those with many requests
    /// in flight would take every place again before the others look for one.
    pub(super) fn leaves_place(
        &mut self,
        parameters: &Parameters,
        now: StoreTime,
        shared: &impl Shared,
    ) -> bool {
        let Some(priority) = self.queue.best_priority() else { return false };
        if now < self.yields_until {
            return true;
        }
        let waiting = shared.read(self.id, Gauge::Waiting).unwrap_or_default();
        let workers = Gauges::new(0, waiting).waiting.get(usize::from(priority)).copied().unwrap_or_default();
        self.places_in_a_row = if workers > 1 { self.places_in_a_row.saturating_add(1) } else { 0 };
        if f64::from(self.places_in_a_row) * parameters.share < 1.0 {
            return false;
        }
        self.places_in_a_row = 0;
        self.yields_until = now.after(2 * parameters.tick);
        true
    }

    /// Whether it still leaves places to others.
    pub(super) fn is_yielding(&self, now: StoreTime) -> bool {
        now < self.yields_until
    }

    /// How many may wait here: as many as may be in flight, divided among the workers that have a queue.
    pub(super) fn room(&self, least: usize) -> usize {
        let queues = usize::try_from(self.queues).unwrap_or_default().max(1);
        (self.record.limit.queue_limit() as usize).max(least) / queues
    }

    /// Publishes which priorities wait here.
    pub(super) fn publish_queue(&mut self, shared: &impl Shared) {
        let waiting = self.queue.priorities();
        if waiting == self.published {
            return;
        }
        shared.add(self.id, Gauge::Waiting, waiting.wrapping_sub(self.published) as i64);
        let queues = i64::from(waiting != 0) - i64::from(self.published != 0);
        if queues != 0 {
            shared.add(self.id, Gauge::InFlight, queues << 32);
        }
        self.published = waiting;
    }

    /// Counts a response that is no server error.
    pub(super) fn note_response(&mut self, latency: Duration, now: StoreTime) {
        self.observations.responses += 1.0;
        if self.record.limit.usual_s().is_some_and(|usual_s| latency.as_secs_f64() > usual_s) {
            self.observations.over_usual += 1.0;
        }
        if now >= self.sampled_since {
            self.observations.sample(latency);
        }
    }

    /// How many requests may be in flight, as of now.
    pub(super) fn refresh(&mut self, parameters: &Parameters, now: StoreTime, shared: &impl Shared) {
        let limit = self.record.limit.limit(now);
        let has_gauge = shared.read(self.id, Gauge::InFlight).is_some();
        self.limit = if has_gauge { limit } else { self.record.share(self.worker, limit, parameters, now) };
    }

    /// Writes into the record what was observed here, and reads what follows from what all workers observed.
    ///
    /// A cluster without a request is looked at once in `max_wait` only.
    pub(super) fn flush(
        &mut self,
        learns: bool,
        parameters: &Parameters,
        now: StoreTime,
        shared: &impl Shared,
    ) {
        let is_idle =
            self.in_flight == 0 && self.queue.is_empty() && self.observations == Observations::default();
        if is_idle && now.since(self.flushed) < parameters.max_wait {
            return;
        }
        self.flushed = now;
        let observations = std::mem::take(&mut self.observations);
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        self.demand += parameters.share * (observations.arrivals - self.demand);
        let entry = WorkerEntry {
            worker: self.worker,
            at_us: now.as_micros(),
            in_flight: self.in_flight,
            waiting,
            priorities: self.published,
            demand: self.demand,
        };
        let read = |gauge| shared.read(self.id, gauge);
        let gauges = read(Gauge::InFlight)
            .map(|in_flight| Gauges::new(in_flight, read(Gauge::Waiting).unwrap_or_default()));
        let epoch = self.record.limit.epoch().0;
        let updated = update(shared, &self.key, |bytes, _| {
            let stored = bytes.and_then(ClusterRecord::decode);
            let mut record = stored.unwrap_or_else(|| ClusterRecord::new(parameters, now));
            let is_same_epoch = record.limit.epoch().0 == epoch;
            let observations = if is_same_epoch { observations } else { observations.without_samples() };
            if learns {
                record.limit.learn_usual(&observations, parameters, now);
            }
            let excess = record.update(&observations, entry, gauges, parameters, now);
            let bytes = record.encode();
            ((record, excess), Some(bytes))
        });
        // Where all attempts were lost to other workers, these observations are lost, and the next ones are not.
        let Ok(updated) = updated else { return };
        let (record, excess) = updated.value;
        let (in_flight, waiting) = excess.values();
        if in_flight != 0 {
            shared.add(self.id, Gauge::InFlight, in_flight.saturating_neg());
        }
        if waiting != 0 {
            shared.add(self.id, Gauge::Waiting, waiting.saturating_neg());
        }
        let (now_epoch, since) = record.limit.epoch();
        if now_epoch != epoch {
            self.sampled_since = since.max(now);
        }
        self.record = record;
        self.refresh(parameters, now, shared);
    }
}
