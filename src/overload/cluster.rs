//! One worker's view of one cluster.

use std::time::Duration;

use super::admission_queue::AdmissionQueue;
use super::cluster_record::{ClusterRecord, WorkerEntry};
use super::parameters::*;
use super::shared::{ClusterId, Gauge, Gauges, Shared};
use super::window::Observations;
use crate::store::update;
use crate::time::StoreTime;

/// One worker's view of one cluster: its queue, its observations, and the record as it was last read.
#[derive(Debug)]
pub struct ClusterControl {
    pub name: Vec<u8>,
    pub is_used: bool,
    pub queue: AdmissionQueue,
    pub observations: Observations,
    pub record: ClusterRecord,
    /// The limit, or this worker's share of it.
    pub limit: f64,
    /// Workers that had a queue when that was last looked at.
    pub queues: i32,
    id: ClusterId,
    worker: u64,
    key: String,
    in_flight: u32,
    is_sample: bool,
    /// What requests in flight of this epoch have taken so far, in seconds.
    pub open_s: f64,
    demand: f64,
    published: u64,
    places_in_a_row: f64,
    pub yields_until: StoreTime,
    flushed: StoreTime,
}

impl ClusterControl {
    pub fn new(
        name: &[u8],
        id: ClusterId,
        key: String,
        worker: u64,
        record: ClusterRecord,
        now: StoreTime,
    ) -> Self {
        Self {
            name: name.to_vec(),
            is_used: false,
            queue: AdmissionQueue::default(),
            observations: Observations::default(),
            limit: record.limit.limit(now),
            record,
            queues: 0,
            id,
            worker,
            key,
            in_flight: 0,
            is_sample: true,
            open_s: 0.0,
            demand: 0.0,
            published: 0,
            places_in_a_row: 0.0,
            yields_until: now,
            flushed: StoreTime::default(),
        }
    }

    /// Takes a place in flight, if one is free and no worker has a more important request in its queue.
    pub fn take_place(&mut self, priority: u8, shared: &impl Shared) -> bool {
        self.take_place_anyway(shared);
        let Some(in_flight) = shared.read(self.id, Gauge::InFlight) else {
            self.is_sample = true;
            let is_free = f64::from(self.in_flight) <= self.limit;
            return is_free || self.return_place(shared);
        };
        let mut gauges = Gauges::new(in_flight, 0);
        let is_free = f64::from(gauges.in_flight) <= self.limit.ceil();
        self.is_sample = f64::from(gauges.in_flight) <= self.record.limit.epoch().1.ceil();
        self.queues = gauges.queues;
        if is_free && gauges.queues > 0 {
            gauges = Gauges::new(in_flight, shared.read(self.id, Gauge::Waiting).unwrap_or_default());
        }
        let is_next = gauges.highest_waiting().is_none_or(|highest| highest <= priority);
        is_free && is_next || self.return_place(shared)
    }

    pub fn take_place_anyway(&mut self, shared: &impl Shared) {
        shared.add(self.id, Gauge::InFlight, 1);
        self.in_flight = self.in_flight.saturating_add(1);
        self.observations.sent += 1.0;
    }

    pub fn give_back(&mut self, shared: &impl Shared) {
        self.return_place(shared);
        self.observations.sent += 1.0;
        self.observations.ended += 1.0;
    }

    fn return_place(&mut self, shared: &impl Shared) -> bool {
        shared.add(self.id, Gauge::InFlight, -1);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.observations.sent -= 1.0;
        false
    }

    /// Leaves the place that was just given back to the other workers that wait, one time in ten: else those with many
    /// requests in flight would take every place again before the others look for one.
    pub fn yield_place(&mut self, now: StoreTime, shared: &impl Shared) {
        let Some(priority) = self.queue.best_priority() else { return };
        let waiting = Gauges::new(0, shared.read(self.id, Gauge::Waiting).unwrap_or_default()).waiting;
        let has_others = waiting.get(usize::from(priority)).is_some_and(|workers| *workers > 1);
        self.places_in_a_row = if has_others { self.places_in_a_row + 1.0 } else { 0.0 };
        if self.places_in_a_row * TOLERANCE >= 1.0 {
            self.places_in_a_row = 0.0;
            self.yields_until = now.after(2 * TICK);
        }
    }

    /// Publishes which priorities wait here.
    pub fn publish_queue(&mut self, shared: &impl Shared) {
        let before = std::mem::replace(&mut self.published, self.queue.priorities());
        if self.published != before {
            shared.add(self.id, Gauge::Waiting, self.published.wrapping_sub(before) as i64);
            let queues = i64::from(self.published != 0) - i64::from(before != 0);
            shared.add(self.id, Gauge::InFlight, queues << 32);
        }
    }

    /// The epoch that the request which has just taken a place is a sample of: the latency is that of the limit as it is,
    /// if no more are in flight.
    pub fn epoch(&self) -> Option<u32> {
        self.is_sample.then(|| self.record.limit.epoch().0)
    }

    /// Counts a response that is no server error.
    pub fn note_response(&mut self, latency: Duration, epoch: Option<u32>) {
        self.observations.responses += 1.0;
        if self.record.limit.usual_s().is_some_and(|usual_s| latency.as_secs_f64() > usual_s) {
            self.observations.over_usual += 1.0;
        }
        if epoch == Some(self.record.limit.epoch().0) {
            self.observations.sample(latency);
        }
    }

    /// Looks how many requests may be in flight now.
    pub fn refresh(&mut self, now: StoreTime, shared: &impl Shared) {
        self.limit = self.record.limit.limit(now);
        if shared.read(self.id, Gauge::InFlight).is_none() {
            self.limit = self.record.share(self.worker, self.limit, now);
        }
    }

    /// Writes into the record what was observed here, and reads what follows from what all workers observed.
    pub fn flush(&mut self, learns: bool, now: StoreTime, shared: &impl Shared) {
        let is_idle = self.in_flight == 0 && self.observations == Observations::default();
        if is_idle && now.since(self.flushed) < MAX_WAIT {
            return;
        }
        self.flushed = now;
        let observed = std::mem::take(&mut self.observations);
        self.demand += TOLERANCE * (observed.arrivals - self.demand);
        let entry = WorkerEntry {
            worker: self.worker,
            at: now,
            in_flight: self.in_flight,
            waiting: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            priorities: self.published,
            demand: self.demand,
            epoch: self.record.limit.epoch().0,
            open_s: self.open_s,
        };
        let read = |gauge| shared.read(self.id, gauge);
        let gauges = read(Gauge::InFlight)
            .map(|in_flight| Gauges::new(in_flight, read(Gauge::Waiting).unwrap_or_default()));
        let epoch = self.record.limit.epoch().0;
        let updated = update(shared, &self.key, |bytes, _| {
            let stored = bytes.and_then(ClusterRecord::decode);
            let mut record = stored.unwrap_or_else(|| ClusterRecord::new(now));
            let mut observed = observed;
            if record.limit.epoch().0 != epoch {
                (observed.samples, observed.latency_s, observed.latency_s2) = (0.0, 0.0, 0.0);
            }
            if learns {
                record.limit.learn_usual(&observed, now);
            }
            let excess = record.update(&observed, entry, gauges, now);
            let bytes = record.encode();
            ((record, excess), Some(bytes))
        });
        // Where all attempts were lost to other workers, these observations are lost, and the next ones are not.
        let Ok(updated) = updated else { return };
        let (record, excess) = updated.value;
        let (in_flight, waiting) = excess.values();
        if (in_flight, waiting) != (0, 0) {
            shared.add(self.id, Gauge::InFlight, in_flight.saturating_neg());
            shared.add(self.id, Gauge::Waiting, waiting.saturating_neg());
        }
        self.record = record;
        self.refresh(now, shared);
    }
}
