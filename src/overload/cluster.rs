//! One worker's view of one cluster.

use super::admission_queue::AdmissionQueue;
use super::shared::{ClusterId, Gauge, Shared};
use super::{ConcurrencyLimit, Observations, Parameters};
use crate::store::update;
use crate::time::StoreTime;

/// One worker's view of one cluster: its queue, its observations, and the limit as it was last read.
#[derive(Debug)]
pub(super) struct ClusterControl {
    pub(super) id: ClusterId,
    pub(super) queue: AdmissionQueue,
    pub(super) observations: Observations,
    pub(super) limit: f64,
    pub(super) in_flight_here: u32,
    pub(super) is_used: bool,
    pub(super) queue_limit: f64,
    epoch: u32,
    sampled_since: StoreTime,
    key: String,
    pub(super) view: Option<ConcurrencyLimit>,
    published: i64,
}

impl ClusterControl {
    pub(super) fn new(id: ClusterId, key: String, parameters: &Parameters) -> Self {
        Self {
            id,
            queue: AdmissionQueue::default(),
            observations: Observations::default(),
            limit: parameters.initial_limit,
            in_flight_here: 0,
            is_used: id != ClusterId(0),
            queue_limit: parameters.initial_limit,
            epoch: 0,
            sampled_since: StoreTime::default(),
            key,
            view: None,
            published: 0,
        }
    }

    /// Takes a place in flight, if one is free and no worker has a more important request in its queue.
    pub(super) fn take_place(&mut self, priority: u8, shared: &impl Shared) -> bool {
        shared.add(self.id, Gauge::InFlight, 1);
        let Some(gauge) = shared.read(self.id, Gauge::InFlight) else {
            let is_free = f64::from(self.in_flight_here) < self.limit;
            self.in_flight_here = self.in_flight_here.saturating_add(is_free.into());
            return is_free;
        };
        // The low half is signed: an excess of one worker's subtractions must not look like 2³² in flight.
        let in_flight = f64::from(gauge as u32 as i32);
        let has_queues = gauge.wrapping_add(1 << 31) >> 32 != 0;
        let has_room = in_flight <= self.limit.ceil();
        if has_room && !(has_queues && self.is_outranked(priority, shared)) {
            self.in_flight_here = self.in_flight_here.saturating_add(1);
            self.observations.peak = self.observations.peak.max(in_flight);
            self.observations.sent += 1.0;
            return true;
        }
        shared.add(self.id, Gauge::InFlight, -1);
        false
    }

    pub(super) fn sample(&mut self, sent: StoreTime, now: StoreTime) {
        if sent >= self.sampled_since {
            self.observations.sample(now.since(sent));
        }
    }

    pub(super) fn refresh(&mut self, now: StoreTime) {
        if let Some(view) = &self.view {
            self.limit = view.limit(now);
        }
    }

    pub(super) fn flush(&mut self, parameters: &Parameters, now: StoreTime, shared: &impl Shared) {
        let mut observations = std::mem::take(&mut self.observations);
        observations.in_flight =
            shared.read(self.id, Gauge::InFlight).map_or(0.0, |g| f64::from(g as u32 as i32));
        let epoch = self.epoch;
        let updated = update(shared, &self.key, |bytes, _| {
            let stored = bytes.and_then(|bytes| serde_json::from_slice::<ConcurrencyLimit>(bytes).ok());
            let mut limit = stored.unwrap_or_else(|| ConcurrencyLimit::new(parameters, now));
            let mut mine = observations;
            if limit.epoch().0 != epoch {
                (mine.samples, mine.latency_s, mine.latency_s2) = (0.0, 0.0, 0.0);
            }
            limit.update(&mine, parameters, now);
            let bytes = serde_json::to_vec(&limit).unwrap_or_default();
            (limit, Some(bytes))
        });
        if let Ok(updated) = updated {
            let limit = updated.value;
            let (epoch, since) = limit.epoch();
            if epoch != self.epoch {
                self.epoch = epoch;
                self.sampled_since = since.max(now);
            }
            self.queue_limit = limit.queue_limit();
            self.view = Some(limit);
            self.refresh(now);
        }
    }

    /// Gives a place back.
    pub(super) fn give_back(&mut self, shared: &impl Shared) {
        self.in_flight_here = self.in_flight_here.saturating_sub(1);
        self.observations.ended += 1.0;
        shared.add(self.id, Gauge::InFlight, -1);
    }

    /// Publishes which priorities wait here.
    pub(super) fn publish_queue(&mut self, shared: &impl Shared) {
        let waiting = self.queue.priorities();
        if waiting == self.published {
            return;
        }
        shared.add(self.id, Gauge::Waiting, waiting.wrapping_sub(self.published));
        let queues = i64::from(waiting != 0) - i64::from(self.published != 0);
        if queues != 0 {
            shared.add(self.id, Gauge::InFlight, queues << 32);
        }
        self.published = waiting;
    }

    fn is_outranked(&self, priority: u8, shared: &impl Shared) -> bool {
        let waiting = shared.read(self.id, Gauge::Waiting).unwrap_or_default();
        waiting.checked_ilog2().is_some_and(|highest| highest / 6 > u32::from(priority))
    }
}
