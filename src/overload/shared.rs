//! What the workers of one Envoy share.

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
