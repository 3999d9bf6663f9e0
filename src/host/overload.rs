//! The overload control of one worker; Envoy's gauges are what all workers share.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::hostcalls::HostData;
use super::{metrics, random};
use crate::admission::ScreenedRequest;
use crate::config::{Config, HealthThresholds};
use crate::generation::Role;
use crate::metrics::{CLUSTER_IN_FLIGHT_STATE, CLUSTER_QUEUE_STATE, cluster_label};
use crate::overload::parameters::{FLUSH_INTERVAL, TICK};
use crate::overload::{
    ClusterId, FORMAT, Gauge, Output, OverloadControl, OverloadReport, PlaceRequest, RequestOutcome, Shared,
    rotating_order,
};
use crate::store::{Conflict, SharedData};
use crate::time::StoreTime;

/// `Retry-After` of a request that is shed, in seconds: at random, so that not all callers retry at once.
const SHED_WAIT_SECONDS: RangeInclusive<u64> = 3..=10;

/// The overload control of one worker.
pub(super) struct Overload {
    control: OverloadControl,
    gauges: ClusterGauges,
    next_report: StoreTime,
}

impl Overload {
    pub(super) fn new(thresholds: HealthThresholds, namespace: &str) -> Self {
        let now = HostData.now();
        let control = OverloadControl::new(thresholds, namespace, random(), now);
        Self { control, gauges: ClusterGauges::new(namespace), next_report: now }
    }

    /// Takes a place in flight to the cluster of that name, or puts the request into the queue.
    pub(super) fn admit(
        &mut self,
        id: u32,
        cluster: &[u8],
        screened: &ScreenedRequest,
        config: &Config,
        completes_later: bool,
        now: StoreTime,
    ) -> Option<Output> {
        let cluster_id = self.control.cluster_id(cluster);
        self.gauges.define(cluster_id, cluster);
        let caller = screened.owner.as_ref().map_or(0, hash_of);
        let order = rotating_order(&caller, now);
        let priority = config.priority(&screened.tier, order);
        let request = PlaceRequest { id, cluster: cluster_id, priority, order, caller, completes_later };
        self.control.admit(request, now, &self.gauges)
    }

    /// The name of the limit that holds for a cluster: empty where clusters share one.
    pub(super) fn name_of_limit(&mut self, cluster: Vec<u8>) -> Vec<u8> {
        if self.control.cluster_id(&cluster) == ClusterId::REST { Vec::new() } else { cluster }
    }

    /// The request is complete, and was sent on: its latency is measured from here.
    pub(super) fn request_complete(&mut self, id: u32, now: StoreTime) {
        self.control.request_complete(id, now, &self.gauges);
    }

    /// The request needs its place no more.
    pub(super) fn finish(&mut self, id: u32, outcome: RequestOutcome, now: StoreTime) {
        self.control.finish(id, outcome, now, &self.gauges);
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.control.poll_output()
    }

    pub(super) fn has_output(&self) -> bool {
        self.control.has_output()
    }

    /// Does what is due; returns a report if one is due.
    pub(super) fn handle_timeout(
        &mut self,
        now: StoreTime,
        period: Duration,
        role: Role,
    ) -> Option<OverloadReport> {
        self.control.handle_timeout(now, period, role, &self.gauges);
        if now < self.next_report {
            return None;
        }
        self.next_report = now.after(FLUSH_INTERVAL);
        Some(self.control.report())
    }

    /// How often to tick.
    pub(super) fn tick_period(&self, has_queue: bool) -> Duration {
        if has_queue { TICK } else { FLUSH_INTERVAL }
    }
}

/// `Retry-After` of a request that is shed, in seconds.
pub(super) fn shed_wait_seconds() -> u64 {
    let (least, most) = SHED_WAIT_SECONDS.into_inner();
    least + random() % (most - least + 1)
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The gauges of clusters, and shared data.
///
/// Shared data belongs to a `vm_id`, and its records to a namespace and a format, but gauges to the process. So a
/// gauge's name has all three in it, as a hash.
struct ClusterGauges {
    scope: u32,
    /// By number of the cluster; `None` where Envoy keeps no number behind a gauge.
    ids: Vec<Option<[u32; 2]>>,
}

impl ClusterGauges {
    fn new(namespace: &str) -> Self {
        let vm_id = proxy_wasm::hostcalls::get_property(vec!["plugin_vm_id"]).ok().flatten();
        Self { scope: hash_of(&(vm_id, namespace, FORMAT)) as u32, ids: Vec::new() }
    }

    /// Defines the gauges of a cluster that is new.
    fn define(&mut self, id: ClusterId, name: &[u8]) {
        if self.ids.len() != usize::from(id.0) {
            return;
        }
        let label = cluster_label(if id == ClusterId::REST { b"" } else { name });
        let define = |gauge| metrics::gauge(&format!("{gauge}.cluster.{label}_{:08x}", self.scope));
        let ids = define(CLUSTER_IN_FLIGHT_STATE).zip(define(CLUSTER_QUEUE_STATE));
        let counts = ids.filter(|(in_flight, queue)| metrics::counts(*in_flight) && metrics::counts(*queue));
        self.ids.push(counts.map(|(in_flight, queue)| [in_flight, queue]));
    }

    fn id(&self, cluster: ClusterId, gauge: Gauge) -> Option<u32> {
        let [in_flight, queue] = (*self.ids.get(usize::from(cluster.0))?)?;
        Some(match gauge {
            Gauge::InFlight => in_flight,
            Gauge::Waiting => queue,
        })
    }
}

impl Shared for ClusterGauges {
    fn add(&self, cluster: ClusterId, gauge: Gauge, difference: i64) {
        if let Some(id) = self.id(cluster, gauge) {
            metrics::add(id, difference);
        }
    }

    fn read(&self, cluster: ClusterId, gauge: Gauge) -> Option<u64> {
        self.id(cluster, gauge).and_then(metrics::read)
    }
}

impl SharedData for ClusterGauges {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        HostData.get(key)
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        HostData.compare_and_set(key, value, version)
    }

    fn changes(&self) -> Option<u64> {
        HostData.changes()
    }

    fn announce_change(&self) {
        HostData.announce_change();
    }

    fn now(&self) -> StoreTime {
        HostData.now()
    }
}
