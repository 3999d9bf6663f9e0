//! What the workers of one Envoy share.

use serde::{Deserialize, Serialize};

use crate::store::SharedData;

/// An upstream cluster, by its number in this worker. Number 0 is the one that clusters beyond the 32nd share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u8);

/// A number of a cluster that all workers add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gauge {
    /// Low 32 bits: requests in flight. High 32 bits: workers that have a queue.
    InFlight,
    /// Six bits for each priority: workers with a request of that priority in their queue.
    Waiting,
}

/// Shared data, and gauges: each one atomic number for all workers.
pub trait Shared: SharedData {
    /// Adds `difference` to a gauge.
    fn add(&self, cluster: ClusterId, gauge: Gauge, difference: i64);

    /// Reads a gauge; `None` where Envoy keeps no such gauge.
    fn read(&self, cluster: ClusterId, gauge: Gauge) -> Option<u64>;
}

/// Priorities, 0 to 9.
const PRIORITIES: usize = 10;

/// The two gauges of a cluster, taken apart: requests in flight, workers with a queue, and those of each priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Requests in flight. Below zero for a moment after an excess was taken off too much.
    pub in_flight: i32,
    /// Workers that have a queue.
    pub queues: i32,
    /// Workers with a request of each priority in their queue.
    pub waiting: [i8; PRIORITIES],
}

impl Gauges {
    /// From the gauges' values. `waiting` may be left out where there is no queue.
    pub fn new(in_flight: u64, waiting: u64) -> Self {
        let low = in_flight as u32 as i32;
        let high = (in_flight.wrapping_sub(low as i64 as u64) >> 32) as i32;
        let mut fields = [0; PRIORITIES];
        for (field, shift) in fields.iter_mut().zip((0..).step_by(6)) {
            *field = (waiting >> shift & 63) as i8;
        }
        Self { in_flight: low, queues: high, waiting: fields }
    }

    /// The values of the gauges, as differences to add.
    pub fn values(&self) -> (i64, i64) {
        let waiting = self.waiting.iter().rev().fold(0_i64, |all, field| (all << 6) + i64::from(*field));
        ((i64::from(self.queues) << 32) + i64::from(self.in_flight), waiting)
    }

    /// Each part of `self` and `other` by `combine`.
    pub fn zip(self, other: Self, combine: impl Fn(i32, i32) -> i32) -> Self {
        let mut waiting = self.waiting;
        for (mine, other) in waiting.iter_mut().zip(other.waiting) {
            *mine = combine((*mine).into(), other.into()).clamp(-63, 63) as i8;
        }
        let in_flight = combine(self.in_flight, other.in_flight);
        Self { in_flight, queues: combine(self.queues, other.queues), waiting }
    }

    /// The highest priority that waits in any worker.
    pub fn highest_waiting(&self) -> Option<u8> {
        self.waiting.iter().rposition(|workers| *workers > 0).map(|priority| priority as u8)
    }
}
