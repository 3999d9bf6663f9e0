//! One worker's view of one cluster: its queue, its observations, and the record as it was last read.

use std::time::Duration;

use super::admission_queue::AdmissionQueue;
use super::cluster_record::{ClusterRecord, WorkerEntry};
use super::observations::{Observations, RequestOutcome};
use super::parameters::*;
use super::shared::{ClusterId, Gauge, Gauges, MAX_QUEUES, Shared, change, decode};
use crate::time::StoreTime;

#[derive(Debug)]
pub struct ClusterControl {
    pub name: Vec<u8>,
    pub queue: AdmissionQueue,
    pub observations: Observations,
    pub record: ClusterRecord,
    /// The limit, or this worker's share of it.
    pub limit: f64,
    /// Workers that had a queue when that was last looked at.
    pub queues: i32,
    /// What this worker holds; `at` and `waiting` are those of the last flush.
    pub entry: WorkerEntry,
    pub yields_until: StoreTime,
    id: ClusterId,
    key: String,
    places_in_a_row: u32,
}

impl ClusterControl {
    pub fn new(name: &[u8], id: ClusterId, key: String, worker: u64, now: StoreTime) -> Self {
        let record = ClusterRecord::new(now);
        Self {
            name: name.to_vec(),
            queue: AdmissionQueue::default(),
            observations: Observations::default(),
            limit: record.limit.limit(),
            record,
            queues: 0,
            entry: WorkerEntry { worker, ..WorkerEntry::default() },
            yields_until: now,
            id,
            key,
            places_in_a_row: 0,
        }
    }

    /// Takes a place in flight, if one is free and no worker has a more important request in its queue.
    pub fn take_place(&mut self, priority: u8, shared: &impl Shared) -> bool {
        self.take_place_anyway(shared);
        let keeps = self.keeps_place(priority, shared);
        if !keeps {
            self.give_back(shared);
        }
        keeps
    }

    /// Whether the place just taken was free, and no worker has a more important request in its queue.
    fn keeps_place(&mut self, priority: u8, shared: &impl Shared) -> bool {
        let Some(in_flight) = shared.read(self.id, Gauge::InFlight) else {
            return f64::from(self.entry.in_flight) <= self.limit;
        };
        let mut gauges = Gauges::new(in_flight, 0);
        let is_free = f64::from(gauges.in_flight) <= self.limit.ceil();
        self.queues = gauges.queues;
        if is_free && gauges.queues > 0 {
            gauges = Gauges::new(in_flight, shared.read(self.id, Gauge::Waiting).unwrap_or_default());
        }
        let is_next = gauges.highest_waiting().is_none_or(|highest| highest <= priority);
        is_free && is_next
    }

    pub fn take_place_anyway(&mut self, shared: &impl Shared) {
        shared.add(self.id, Gauge::InFlight, 1);
        self.entry.in_flight = self.entry.in_flight.saturating_add(1);
    }

    pub fn give_back(&mut self, shared: &impl Shared) {
        shared.add(self.id, Gauge::InFlight, -1);
        self.entry.in_flight = self.entry.in_flight.saturating_sub(1);
    }

    /// Leaves the place that was just given back to the other workers that wait, one time in ten: else those with many
    /// requests in flight would take every place again before the others look for one.
    pub fn yield_place(&mut self, now: StoreTime, shared: &impl Shared) {
        let Some(priority) = self.queue.best_priority() else { return };
        let waiting = Gauges::new(0, shared.read(self.id, Gauge::Waiting).unwrap_or_default()).waiting;
        let has_others = waiting.get(usize::from(priority)).is_some_and(|workers| *workers > 1);
        self.places_in_a_row = if has_others { self.places_in_a_row + 1 } else { 0 };
        if f64::from(self.places_in_a_row) * TOLERANCE >= 1.0 {
            self.places_in_a_row = 0;
            self.yields_until = now.after(2 * TICK);
        }
    }

    /// Publishes which priorities wait here, unless so many workers have a queue that their numbers would not fit.
    pub fn publish_queue(&mut self, shared: &impl Shared) {
        let before = self.entry.priorities;
        let now = if before == 0 && self.queues >= MAX_QUEUES { 0 } else { self.queue.priorities() };
        if now != before {
            self.entry.priorities = now;
            shared.add(self.id, Gauge::Waiting, now.wrapping_sub(before) as i64);
            shared.add(self.id, Gauge::InFlight, (i64::from(now != 0) - i64::from(before != 0)) << 32);
        }
    }

    /// Counts the time since the last flush that a request was in flight which was sent at `since`.
    pub fn note_in_flight(&mut self, since: StoreTime, until: StoreTime) {
        self.observations.in_flight_s += until.since(since.max(self.entry.at)).as_secs_f64();
    }

    /// Counts the end of a request that had a place or, with a slow upload, none.
    pub fn note_end(&mut self, outcome: RequestOutcome, is_complete: bool) {
        let counts = &mut self.observations;
        match outcome {
            RequestOutcome::NotSent => counts.arrivals -= 1.0,
            RequestOutcome::Response { .. } => counts.answered += 1.0,
            RequestOutcome::NoResponse | RequestOutcome::ClientLeft => {}
        }
        if is_complete && outcome != RequestOutcome::NotSent {
            counts.ended += 1.0;
        }
    }

    /// Counts a response that is no server error.
    pub fn note_response(&mut self, since: StoreTime, latency: Duration) {
        self.note_in_flight(since, since.after(latency));
        self.observations.responses += 1.0;
        if self.record.limit.exceeds_usual(latency) {
            self.observations.over_usual += 1.0;
        }
        self.observations.samples += 1.0;
        self.observations.latency_s += latency.as_secs_f64();
    }

    /// Takes back the time in flight of a request without such a response.
    pub fn note_no_response(&mut self, since: StoreTime) {
        let from = since.max(self.record.limit.begun);
        self.observations.in_flight_s -= self.entry.at.since(from).as_secs_f64();
    }

    /// Reads the record again if this worker was idle for some time: others may have changed the limit.
    pub fn catch_up(&mut self, now: StoreTime, shared: &impl Shared) -> bool {
        let record = (now.since(self.entry.at) > 2 * FLUSH_INTERVAL).then(|| shared.get(&self.key)).flatten();
        let Some(record) = record.and_then(|(bytes, _)| decode(&bytes)) else { return false };
        (self.record, self.entry.at) = (record, now);
        self.refresh(now, shared);
        true
    }

    /// Looks how many requests may be in flight now.
    pub fn refresh(&mut self, now: StoreTime, shared: &impl Shared) {
        let limit = self.record.limit.limit();
        let has_gauges = shared.read(self.id, Gauge::InFlight).is_some();
        self.limit = if has_gauges { limit } else { self.record.share(self.entry.worker, limit, now) };
    }

    pub fn is_idle(&self) -> bool {
        self.entry.in_flight == 0 && self.queue.len() == 0 && self.observations == Observations::default()
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
        let new = || ClusterRecord::new(now);
        let changed = change(shared, &self.key, new, |record| {
            let mut observed = observed;
            if from < record.limit.begun {
                (observed.samples, observed.latency_s, observed.in_flight_s) = (0.0, 0.0, 0.0);
            }
            if learns {
                record.limit.learn_usual(&observed, now);
            }
            record.update(&observed, entry, gauges, now)
        });
        // Where all attempts were lost to other workers, these observations are lost, and the next ones are not.
        let Some((record, excess)) = changed else { return };
        if excess != Gauges::default() {
            let (in_flight, waiting) = excess.values();
            shared.add(self.id, Gauge::InFlight, in_flight.saturating_neg());
            shared.add(self.id, Gauge::Waiting, waiting.saturating_neg());
        }
        self.record = record;
        self.refresh(now, shared);
    }
}
