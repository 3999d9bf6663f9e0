//! What the workers of one Envoy share.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::record_key::record_key;
use crate::store::{SharedData, update};
use crate::tier::MAX_PRIORITY;

/// An upstream cluster, by its number in this worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u8);

impl ClusterId {
    /// What all clusters beyond the 32nd share. Its name is empty.
    pub const REST: Self = Self(32);
}

/// A number of a cluster that all workers add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gauge {
    /// Low 32 bits: requests in flight. High 32 bits: workers that have a queue.
    InFlight,
    /// Six bits for each priority: workers in whose queue it is the most important one.
    Waiting,
}

/// Most workers that publish a priority: a number of six bits has room for more that do so at the same time.
pub const MAX_WORKERS_WAITING: i8 = 48;

/// Shared data, and gauges: each one atomic number for all workers.
pub trait Shared: SharedData {
    fn add(&self, cluster: ClusterId, gauge: Gauge, difference: i64);

    /// Reads a gauge; `None` where Envoy keeps no such gauge.
    fn read(&self, cluster: ClusterId, gauge: Gauge) -> Option<u64>;
}

/// The two gauges of a cluster, taken apart. Parts may be negative for a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gauges {
    pub in_flight: i32,
    pub queues: i32,
    /// Workers by the most important priority in their queue.
    pub waiting: [i8; MAX_PRIORITY as usize + 1],
}

impl Gauges {
    pub fn new(in_flight: u64, waiting: u64) -> Self {
        let low = in_flight as i32;
        let queues = (in_flight.wrapping_sub(low as u64) >> 32) as i32;
        let workers = |priority| (waiting >> (6 * priority) & 63) as i8;
        Self { in_flight: low, queues, waiting: std::array::from_fn(workers) }
    }

    /// The values of the gauges, to add or to take off.
    pub fn values(&self) -> (i64, i64) {
        let waiting = self.waiting.iter().rev().fold(0_i64, |all, field| (all << 6) + i64::from(*field));
        ((i64::from(self.queues) << 32) + i64::from(self.in_flight), waiting)
    }

    /// Each part of `self` and `other` by `combine`.
    pub fn zip(mut self, other: Self, combine: fn(i32, i32) -> i32) -> Self {
        for (mine, other) in self.waiting.iter_mut().zip(other.waiting) {
            *mine = combine((*mine).into(), other.into()).clamp(-63, 63) as i8;
        }
        self.in_flight = combine(self.in_flight, other.in_flight);
        self.queues = combine(self.queues, other.queues);
        self
    }

    pub fn highest_waiting(&self) -> Option<u8> {
        self.waiting.iter().rposition(|workers| *workers > 0).map(|priority| priority as u8)
    }
}

/// Changes a record of all workers. Returns it, and what `change` returned at last; `None` where every attempt was lost
/// to another worker.
pub fn change<T: Default + Serialize + DeserializeOwned, R>(
    shared: &impl Shared,
    key: &str,
    mut change: impl FnMut(&mut T) -> R,
) -> Option<(T, R)> {
    let updated = update(shared, key, |bytes, _| {
        let mut record = bytes.and_then(decode).unwrap_or_default();
        let result = change(&mut record);
        let bytes = postcard::to_allocvec(&record).unwrap_or_default();
        ((record, result), Some(bytes))
    });
    updated.ok().map(|updated| updated.value)
}

/// The format of the records, a part of their names and of the gauges'. The bytes do not describe themselves, so a
/// change of what is encoded has to count it up.
pub const FORMAT: u8 = 8;

pub(super) fn key(namespace: &str, record: &str) -> String {
    record_key(namespace, &format!("overload/{FORMAT}/{record}"))
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
