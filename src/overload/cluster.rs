//! One worker's view of one cluster.

use super::admission_queue::AdmissionQueue;
use super::shared::{ClusterId, Gauge, Shared};
use super::{Observations, Parameters};

/// One worker's view of one cluster: its queue, its observations, and the limit as it was last read.
#[derive(Debug)]
pub(super) struct ClusterControl {
    pub(super) id: ClusterId,
    pub(super) queue: AdmissionQueue,
    pub(super) observations: Observations,
    pub(super) limit: f64,
    pub(super) in_flight_here: u32,
    published: i64,
}

impl ClusterControl {
    pub(super) fn new(id: ClusterId, parameters: &Parameters) -> Self {
        Self {
            id,
            queue: AdmissionQueue::default(),
            observations: Observations::default(),
            limit: parameters.initial_limit,
            in_flight_here: 0,
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
            return true;
        }
        shared.add(self.id, Gauge::InFlight, -1);
        false
    }

    /// Gives a place back.
    pub(super) fn give_back(&mut self, shared: &impl Shared) {
        self.in_flight_here = self.in_flight_here.saturating_sub(1);
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
