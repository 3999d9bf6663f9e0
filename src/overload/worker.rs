//! One worker's part in the overload control, for all clusters.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::cluster::{ClusterControl, ClusterRecord, Rank};
use super::health_detector::{DegradeReason, HealthDetector, Signals};
use super::observations::{CallerCounts, CallerObservations, RequestOutcome, count};
use super::parameters::*;
use super::shared::{ClusterId, Shared, change, decode, key};
use crate::config::HealthThresholds;
use crate::generation::Role;
use crate::id_map::IdMap;
use crate::request::RequestId;
use crate::store::SharedData;
use crate::tier::MAX_PRIORITY;
use crate::time::StoreTime;

/// Most requests in the queues of a worker.
const MAX_QUEUE: usize = 1_024;

/// A request that needs a place in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlaceRequest {
    pub id: RequestId,
    pub cluster: ClusterId,
    /// Its tier's priority: 0, the least important, to 9.
    pub priority: u8,
    /// Its order among requests of that priority ([`rotating_order`]): the greatest is sent first.
    pub order: u64,
    /// Its caller, as a hash.
    pub caller: u64,
    /// Whether [`OverloadControl::request_complete`] is called later: a body follows, or Redis decides first.
    pub completes_later: bool,
}

impl PlaceRequest {
    pub(super) fn rank(&self) -> Rank {
        (self.priority.min(MAX_PRIORITY), self.order, Reverse(self.id))
    }

    fn sent(&self, now: StoreTime) -> Stage {
        if self.completes_later { Stage::Incomplete(now) } else { Stage::Complete(now) }
    }
}

/// Where a request is, and since when.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Waiting,
    /// It is in flight, but its last byte or the reply of Redis is still to come.
    Incomplete(StoreTime),
    /// The same for so long that it holds no place.
    IncompleteWithoutPlace,
    /// It is in flight, and complete.
    Complete(StoreTime),
    /// The same, and it was counted as slow before its end.
    Slow(StoreTime),
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send it to the upstream: it has a place in flight.
    Send(RequestId),
    /// Answer it with 503: it is forgotten here.
    Shed(RequestId),
}

/// What is shown of the upstreams.
#[derive(Clone, Debug, PartialEq)]
pub struct OverloadReport {
    /// Why health is `DEGRADED`; `None` where it is `NORMAL`.
    pub reason: Option<DegradeReason>,
    pub signals: Signals,
    /// The clusters that have had a request. The name is empty for the one that clusters beyond the 32nd share.
    pub clusters: Vec<(Vec<u8>, ClusterRecord)>,
}

/// One worker's part in the overload control.
#[derive(Debug, Default)]
pub struct OverloadControl {
    thresholds: HealthThresholds,
    namespace: String,
    worker: u64,
    clusters: Vec<ClusterControl>,
    requests: IdMap<RequestId, (PlaceRequest, Stage)>,
    outputs: VecDeque<Output>,
    callers: CallerObservations,
    detector: HealthDetector,
    next_flush: StoreTime,
    /// When `handle_timeout` was called last, and when it is due.
    ticked: StoreTime,
    due: StoreTime,
    /// How late the last two calls of it were, the last one first.
    lag: [Duration; 2],
}

impl OverloadControl {
    /// A worker that has seen nothing yet. `worker` is a number that no other worker has.
    pub fn new(thresholds: HealthThresholds, namespace: &str, worker: u64, now: StoreTime) -> Self {
        let (namespace, next_flush) = (namespace.to_owned(), now.after(FLUSH_INTERVAL));
        Self { thresholds, namespace, worker, next_flush, ticked: now, due: next_flush, ..Self::default() }
    }

    /// The cluster of that name. Where its number is new, the host defines the gauges of that number before it is used.
    pub fn cluster_id(&mut self, name: &[u8]) -> ClusterId {
        let known = self.clusters.iter().position(|cluster| cluster.name == name);
        let index = known.unwrap_or(self.clusters.len().min(ClusterId::REST.0.into()));
        let id = ClusterId(index as u8);
        if index == self.clusters.len() {
            let name = if id == ClusterId::REST { Vec::new() } else { name.to_vec() };
            let key = key(&self.namespace, &format!("clusters/{}", String::from_utf8_lossy(&name)));
            let worker = self.worker;
            self.clusters.push(ClusterControl { id, worker, name, key, ..ClusterControl::default() });
        }
        id
    }

    /// Requests a place in flight for a request whose headers have arrived. `None`: it waits, and
    /// [`OverloadControl::poll_output`] says later what to do with it.
    pub fn admit(&mut self, request: PlaceRequest, now: StoreTime, shared: &impl Shared) -> Option<Output> {
        let PlaceRequest { id, cluster: cluster_id, priority, .. } = request;
        let all_waiting = self.waiting();
        let Some(cluster) = self.clusters.get_mut(usize::from(cluster_id.0)) else {
            return Some(Output::Send(id));
        };
        cluster.observations.arrivals += 1.0;
        // Where none is shed, none waits either.
        let needed = self.thresholds.shed.then_some(priority);
        let is_next = cluster.best_priority().is_none_or(|best| best < priority);
        let mut is_sent = is_next && cluster.take_place(needed, now, shared);
        if !is_sent && cluster.queue.is_empty() && now.since(cluster.entry.at) > 2 * FLUSH_INTERVAL {
            // While this worker was idle, others may have changed the limit.
            cluster.flush(false, now, shared);
            is_sent = cluster.take_place(needed, now, shared);
        }
        if is_sent {
            self.requests.insert(id, (request, request.sent(now)));
            return Some(Output::Send(id));
        }
        cluster.observations.waited += 1.0;
        cluster.queue.insert(request.rank(), now);
        self.requests.insert(id, (request, Stage::Waiting));
        // The queues of all workers together are bounded by the limit.
        let room = cluster.record.limit.queue_limit().max(INITIAL_LIMIT) / f64::from(cluster.queues.max(1));
        let full = if cluster.queue.len() as f64 > room.max(MIN_SAMPLES) {
            Some(&*cluster)
        } else if all_waiting >= MAX_QUEUE {
            self.clusters.iter().max_by_key(|cluster| cluster.queue.len())
        } else {
            None
        };
        let worst = full.and_then(|cluster| cluster.queue.keys().next()).map(|(.., id)| id.0);
        worst.into_iter().for_each(|worst| self.shed(worst));
        self.pump(cluster_id, now, shared);
        let is_its = |output: &Output| [Output::Send(id), Output::Shed(id)].contains(output);
        self.outputs.iter().position(is_its).and_then(|index| self.outputs.remove(index))
    }

    /// The last byte of the request has arrived: its latency is measured from here.
    pub fn request_complete(&mut self, id: RequestId, now: StoreTime, shared: &impl Shared) {
        let Some((request, stage)) = self.requests.get_mut(&id) else { return };
        request.completes_later = false;
        let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) else { return };
        match stage {
            Stage::Incomplete(_) => {}
            Stage::IncompleteWithoutPlace => _ = cluster.take_place(None, now, shared),
            Stage::Waiting | Stage::Complete(_) | Stage::Slow(_) => return,
        }
        *stage = Stage::Complete(now);
    }

    /// A request has got its response headers, or has ended in another way. Later calls for it do nothing.
    pub fn finish(&mut self, id: RequestId, outcome: RequestOutcome, now: StoreTime, shared: &impl Shared) {
        let Some((request, stage)) = self.requests.remove(&id) else { return };
        let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) else { return };
        if stage == Stage::Waiting {
            cluster.queue.remove(&request.rank());
            return self.pump(request.cluster, now, shared);
        }
        if stage != Stage::IncompleteWithoutPlace {
            cluster.give_back(shared);
            cluster.yield_place(now, shared);
        }
        let lag = self.lag[0].max(self.lag[1]);
        let since = if let Stage::Complete(since) | Stage::Slow(since) = stage { Some(since) } else { None };
        let sample = since.map(|since| (since, now.since(since).saturating_sub(lag)));
        cluster.note_end(outcome, sample);
        let was_slow = matches!(stage, Stage::Slow(_));
        let is_slow =
            was_slow || sample.is_some_and(|(_, latency)| is_slow(latency, cluster, &self.thresholds));
        let (requests, errors) = match outcome {
            RequestOutcome::Response { failed } => (1.0, f64::from(failed)),
            RequestOutcome::NoResponse => (1.0, 1.0),
            RequestOutcome::ClientLeft => (f64::from(sample.is_some()), 0.0),
            // If it was slow, that was because of another filter.
            RequestOutcome::NotSent => (0.0, 0.0),
        };
        // What was counted before the end is not counted again.
        let before = f64::from(was_slow);
        let (slow, requests) = (requests * f64::from(is_slow) - before, requests - before);
        count(&mut self.callers, request.caller, CallerCounts { requests, errors, slow, shed: 0.0 });
        self.pump(request.cluster, now, shared);
    }

    /// Does what is due. A superseded generation judges no health, and brings its own requests to their end. `period`
    /// is the time between two calls where these are periodic, else zero.
    pub fn handle_timeout(&mut self, now: StoreTime, period: Duration, role: Role, shared: &impl Shared) {
        let due = self.due.max(self.ticked.after(period));
        self.lag = [now.since(due).saturating_sub(TICK), self.lag[0]];
        let oldest = now.before(MAX_WAIT);
        let waiting = self.clusters.iter().flat_map(|cluster| &cluster.queue);
        let late: Vec<Rank> = waiting.filter(|(_, at)| **at <= oldest).map(|(rank, _)| *rank).collect();
        late.into_iter().for_each(|(.., Reverse(id))| self.shed(id));
        if now >= self.next_flush {
            self.next_flush = now.after(FLUSH_INTERVAL);
            self.look_at_requests(now, shared);
            let is_newest = role == Role::Newest;
            if is_newest {
                let (observed, key) = (std::mem::take(&mut self.callers), key(&self.namespace, "health"));
                let update =
                    |detector: &mut HealthDetector| detector.update(&observed, &self.thresholds, now);
                if let Some((detector, ())) = change(shared, &key, update) {
                    self.detector = detector;
                }
            }
            let learns = self.detector.is_calm();
            // A superseded generation has to publish only the places that it still holds.
            let flushed = self.clusters.iter_mut().filter(|cluster| is_newest || !cluster.is_idle());
            flushed.for_each(|cluster| cluster.flush(learns, now, shared));
        }
        for index in 0..self.clusters.len() {
            self.pump(ClusterId(index as u8), now, shared);
        }
        (self.ticked, self.due) = (now, self.poll_timeout(now));
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// When to call [`OverloadControl::handle_timeout`] next. It may be called more often; what it is late counts as
    /// this worker's lag, which is not the upstream's latency.
    pub fn poll_timeout(&self, now: StoreTime) -> StoreTime {
        let tick = now.after(TICK);
        if self.waiting() > 0 { tick.min(self.next_flush) } else { self.next_flush }
    }

    pub fn report(&self) -> OverloadReport {
        let HealthDetector { reason, signals, .. } = self.detector;
        let report = |cluster: &ClusterControl| (cluster.name.clone(), cluster.record.clone());
        OverloadReport { reason, signals, clusters: self.clusters.iter().map(report).collect() }
    }

    fn waiting(&self) -> usize {
        self.clusters.iter().map(|cluster| cluster.queue.len()).sum()
    }

    /// Takes the place away from requests whose upload is slow, and counts requests that have taken too long already.
    fn look_at_requests(&mut self, now: StoreTime, shared: &impl Shared) {
        for (request, stage) in self.requests.values_mut() {
            let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) else { continue };
            match *stage {
                Stage::Incomplete(since) if now.since(since) >= FLUSH_INTERVAL => {
                    *stage = Stage::IncompleteWithoutPlace;
                    cluster.give_back(shared);
                }
                Stage::Complete(since) | Stage::Slow(since) => {
                    cluster.note_in_flight(since, now);
                    let latency = now.since(since);
                    if *stage == Stage::Complete(since) && is_slow(latency, cluster, &self.thresholds) {
                        *stage = Stage::Slow(since);
                        let counts = CallerCounts { requests: 1.0, slow: 1.0, ..CallerCounts::default() };
                        count(&mut self.callers, request.caller, counts);
                    }
                }
                Stage::Waiting | Stage::Incomplete(_) | Stage::IncompleteWithoutPlace => {}
            }
        }
    }

    fn shed(&mut self, id: RequestId) {
        let Some((request, _)) = self.requests.remove(&id) else { return };
        if let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) {
            cluster.queue.remove(&request.rank());
            cluster.observations.shed += 1.0;
        }
        count(&mut self.callers, request.caller, CallerCounts { shed: 1.0, ..CallerCounts::default() });
        self.outputs.push_back(Output::Shed(id));
    }

    /// Sends what waits while there is a place for it.
    fn pump(&mut self, id: ClusterId, now: StoreTime, shared: &impl Shared) {
        let Some(cluster) = self.clusters.get_mut(usize::from(id.0)) else { return };
        // Each turn takes one request out of the queue.
        while let Some((priority, _, Reverse(id))) = cluster.queue.keys().next_back().copied()
            && now >= cluster.yields_until
            && cluster.take_place(Some(priority), now, shared)
        {
            cluster.queue.pop_last();
            if let Some((request, stage)) = self.requests.get_mut(&id) {
                *stage = request.sent(now);
            }
            self.outputs.push_back(Output::Send(id));
        }
        cluster.publish_queue(shared);
    }
}

/// Why health was `DEGRADED` when a worker measured it last; `None` where none has measured it.
pub fn measured_reason(namespace: &str, data: &impl SharedData) -> Option<Option<DegradeReason>> {
    let detector: HealthDetector = decode(&data.get(&key(namespace, "health"))?.0)?;
    Some(detector.reason)
}

fn is_slow(latency: Duration, cluster: &ClusterControl, thresholds: &HealthThresholds) -> bool {
    let absolute_s = thresholds.latency_ms.map(|ms| f64::from(ms) / 1e3);
    let relative = thresholds.latency_ratio.zip(cluster.record.limit.usual());
    let relative_s = relative.map(|(ratio, usual_s)| ratio * usual_s);
    absolute_s.into_iter().chain(relative_s).any(|bound_s| latency.as_secs_f64() > bound_s)
}

/// A caller's order among those of its priority. It changes every ten seconds.
pub fn rotating_order(caller: &impl Hash, now: StoreTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    (caller, now.as_micros() / 10_000_000).hash(&mut hasher);
    hasher.finish()
}
