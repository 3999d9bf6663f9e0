//! One worker's part in the overload control, for all clusters.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::admission_queue::Rank;
use super::cluster::ClusterControl;
use super::cluster_record::ClusterRecord;
use super::health_detector::{DegradeReason, HealthDetector, Signals};
use super::observations::{CallerCounts, CallerObservations, RequestOutcome, count};
use super::parameters::*;
use super::shared::{ClusterId, Shared, change, decode, key};
use crate::config::HealthThresholds;
use crate::generation::Role;
use crate::id_map::IdMap;
use crate::request::RequestId;
use crate::store::SharedData;
use crate::time::StoreTime;

/// Most requests in the queues of a worker.
const MAX_QUEUE: usize = 1_024;
/// How long the order of callers within a priority stays.
const ROTATION: Duration = Duration::from_secs(10);

/// A request that needs a place in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlaceRequest {
    /// The cluster that it goes to.
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

#[derive(Clone, Copy, Debug)]
enum Stage {
    Waiting(Rank),
    /// A slow upload holds no place. A request may be counted as slow before it ends.
    InFlight {
        since: StoreTime,
        has_place: bool,
        is_counted: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct TrackedRequest {
    cluster: ClusterId,
    caller: u64,
    is_complete: bool,
    stage: Stage,
}

impl Stage {
    /// That of a request which has just taken a place.
    fn in_flight(now: StoreTime) -> Self {
        Self::InFlight { since: now, has_place: true, is_counted: false }
    }
}

/// One worker's part in the overload control.
#[derive(Debug)]
pub struct OverloadControl {
    thresholds: HealthThresholds,
    namespace: String,
    worker: u64,
    clusters: Vec<ClusterControl>,
    requests: IdMap<RequestId, TrackedRequest>,
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
        let next_flush = now.after(FLUSH_INTERVAL);
        Self {
            thresholds,
            namespace: namespace.to_owned(),
            worker,
            clusters: Vec::new(),
            requests: IdMap::default(),
            outputs: VecDeque::new(),
            callers: CallerObservations::default(),
            detector: HealthDetector::default(),
            next_flush,
            ticked: now,
            due: next_flush,
            lag: [Duration::ZERO; 2],
        }
    }

    /// The cluster of that name. Where its number is new, the host defines the gauges of that number before it is used.
    pub fn cluster_id(&mut self, name: &[u8], now: StoreTime) -> ClusterId {
        let known = self.clusters.iter().position(|cluster| cluster.name == name);
        let index = known.unwrap_or(self.clusters.len().min(ClusterId::REST.0.into()));
        let id = ClusterId(index as u8);
        if index == self.clusters.len() {
            let name = if id == ClusterId::REST { b"" } else { name };
            let key = key(&self.namespace, &format!("clusters/{}", String::from_utf8_lossy(name)));
            self.clusters.push(ClusterControl::new(name, id, key, self.worker, now));
        }
        id
    }

    /// Requests a place in flight for a request whose headers have arrived. `None`: it waits, and
    /// [`OverloadControl::poll_output`] says later what to do with it.
    pub fn admit(
        &mut self,
        id: RequestId,
        request: PlaceRequest,
        now: StoreTime,
        shared: &impl Shared,
    ) -> Option<Output> {
        let PlaceRequest { cluster: cluster_id, priority, order, caller, completes_later } = request;
        let all_waiting = self.waiting();
        let Some(cluster) = self.clusters.get_mut(usize::from(cluster_id.0)) else {
            return Some(Output::Send(id));
        };
        cluster.observations.arrivals += 1.0;
        let is_next = cluster.queue.best_priority().is_none_or(|best| best < priority);
        let is_sent = if self.thresholds.shed {
            is_next && cluster.take_place(priority, shared)
                || cluster.queue.len() == 0
                    && cluster.catch_up(now, shared)
                    && cluster.take_place(priority, shared)
        } else {
            cluster.take_place_anyway(shared);
            true
        };
        let tracked =
            |stage| TrackedRequest { cluster: cluster_id, caller, is_complete: !completes_later, stage };
        if is_sent {
            self.requests.insert(id, tracked(Stage::in_flight(now)));
            return Some(Output::Send(id));
        }
        cluster.observations.waited += 1.0;
        self.requests.insert(id, tracked(Stage::Waiting(cluster.queue.push(id, priority, order, now))));
        // The queues hold as many requests as may be in flight, at least `INITIAL_LIMIT`. Workers with a queue share
        // that.
        let room = cluster.record.limit.queue_limit().max(INITIAL_LIMIT) / f64::from(cluster.queues.max(1));
        let worst = if cluster.queue.len() as f64 > room.max(MIN_SAMPLES) {
            cluster.queue.pop_worst()
        } else if all_waiting >= MAX_QUEUE {
            let longest = self.clusters.iter_mut().max_by_key(|cluster| cluster.queue.len());
            longest.and_then(|cluster| cluster.queue.pop_worst())
        } else {
            None
        };
        worst.into_iter().for_each(|worst| self.shed(worst));
        self.pump(cluster_id, now, shared);
        let is_its = |output: &Output| [Output::Send(id), Output::Shed(id)].contains(output);
        self.outputs.iter().position(is_its).and_then(|index| self.outputs.remove(index))
    }

    /// The last byte of the request has arrived: its latency is measured from here.
    pub fn request_complete(&mut self, id: RequestId, now: StoreTime, shared: &impl Shared) {
        let Some(request) = self.requests.get_mut(&id).filter(|request| !request.is_complete) else { return };
        request.is_complete = true;
        let Stage::InFlight { since, has_place, .. } = &mut request.stage else { return };
        *since = now;
        let had_place = std::mem::replace(has_place, true);
        if let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)).filter(|_| !had_place) {
            cluster.take_place_anyway(shared);
        }
    }

    /// A request has got its response headers, or has ended in another way. Later calls for it do nothing.
    pub fn finish(&mut self, id: RequestId, outcome: RequestOutcome, now: StoreTime, shared: &impl Shared) {
        let Some(request) = self.requests.remove(&id) else { return };
        let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) else { return };
        match request.stage {
            Stage::Waiting(rank) => _ = cluster.queue.remove(rank),
            Stage::InFlight { since, has_place, is_counted } => {
                if has_place {
                    cluster.give_back(shared);
                    cluster.yield_place(now, shared);
                }
                cluster.note_end(outcome, request.is_complete);
                let (is_good, is_failed) = match outcome {
                    RequestOutcome::Response { failed } => (!failed, failed),
                    RequestOutcome::NoResponse => (false, true),
                    RequestOutcome::ClientLeft | RequestOutcome::NotSent => (false, false),
                };
                let [lag, lag_before] = self.lag;
                let latency = now.since(since).saturating_sub(lag.max(lag_before));
                if request.is_complete && is_good {
                    cluster.note_response(since, latency);
                } else if request.is_complete {
                    cluster.note_no_response(since);
                }
                if is_counted && outcome == RequestOutcome::NotSent {
                    // It was slow because of another filter.
                    let counts = CallerCounts { requests: -1.0, slow: -1.0, ..CallerCounts::default() };
                    count(&mut self.callers, request.caller, counts);
                }
                let is_slow = request.is_complete && latency > latency_threshold(cluster, &self.thresholds);
                if is_good || is_failed || outcome == RequestOutcome::ClientLeft && request.is_complete {
                    let requests = f64::from(!is_counted);
                    let (slow, errors) = (f64::from(is_slow && !is_counted), f64::from(is_failed));
                    count(
                        &mut self.callers,
                        request.caller,
                        CallerCounts { requests, errors, slow, shed: 0.0 },
                    );
                }
            }
        }
        self.pump(request.cluster, now, shared);
    }

    /// Does what is due. A superseded generation judges no health, and brings its own requests to their end. `period` is
    /// the time between two calls where these are periodic, else zero.
    pub fn handle_timeout(&mut self, now: StoreTime, period: Duration, role: Role, shared: &impl Shared) {
        let due = self.due.max(self.ticked.after(period));
        self.lag = [now.since(due).saturating_sub(TICK), self.lag[0]];
        let oldest = now.before(MAX_WAIT);
        let queues = self.clusters.iter_mut().map(|cluster| &mut cluster.queue);
        let late: Vec<_> = queues.flat_map(|queue| queue.pop_waiting_since(oldest)).collect();
        late.into_iter().for_each(|request| self.shed(request));
        if now >= self.next_flush {
            self.next_flush = now.after(FLUSH_INTERVAL);
            self.look_at_requests(now, shared);
            let is_newest = role == Role::Newest;
            if is_newest {
                self.flush_health(now, shared);
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

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether there is something to do.
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
        for request in self.requests.values_mut() {
            let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) else { continue };
            let Stage::InFlight { since, has_place, is_counted } = &mut request.stage else { continue };
            let age = now.since(*since);
            if !request.is_complete {
                if age >= FLUSH_INTERVAL && std::mem::take(has_place) {
                    cluster.give_back(shared);
                }
                continue;
            }
            cluster.note_in_flight(*since, now);
            if !*is_counted && age > latency_threshold(cluster, &self.thresholds) {
                *is_counted = true;
                let counts = CallerCounts { requests: 1.0, slow: 1.0, ..CallerCounts::default() };
                count(&mut self.callers, request.caller, counts);
            }
        }
    }

    fn flush_health(&mut self, now: StoreTime, shared: &impl Shared) {
        let observed = std::mem::take(&mut self.callers);
        let changed = change(shared, &key(&self.namespace, "health"), HealthDetector::default, |detector| {
            detector.update(&observed, &self.thresholds, now)
        });
        if let Some((detector, ())) = changed {
            self.detector = detector;
        }
    }

    fn shed(&mut self, id: RequestId) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) {
            cluster.observations.shed += 1.0;
        }
        count(&mut self.callers, request.caller, CallerCounts { shed: 1.0, ..CallerCounts::default() });
        self.outputs.push_back(Output::Shed(id));
    }

    /// Sends what waits while there is a place for it.
    fn pump(&mut self, id: ClusterId, now: StoreTime, shared: &impl Shared) {
        let Some(cluster) = self.clusters.get_mut(usize::from(id.0)) else { return };
        if cluster.queue.len() > 0 {
            cluster.refresh(now, shared);
        }
        // Each turn takes one request out of the queue.
        while let Some(priority) = cluster.queue.best_priority().filter(|_| now >= cluster.yields_until) {
            if !cluster.take_place(priority, shared) {
                break;
            }
            let Some(id) = cluster.queue.pop_best() else { break };
            if let Some(request) = self.requests.get_mut(&id) {
                request.stage = Stage::in_flight(now);
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

/// What takes longer is slow.
fn latency_threshold(cluster: &ClusterControl, thresholds: &HealthThresholds) -> Duration {
    let absolute = thresholds.latency_ms.map(|ms| Duration::from_millis(ms.into()));
    let relative = thresholds.latency_ratio.zip(cluster.record.limit.usual());
    let relative = relative.and_then(|(ratio, usual_s)| Duration::try_from_secs_f64(ratio * usual_s).ok());
    absolute.into_iter().chain(relative).min().unwrap_or(Duration::MAX)
}

/// A caller's order among those of its priority. It changes every ten seconds.
pub fn rotating_order(caller: &impl Hash, now: StoreTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    (caller, now.as_micros() / (ROTATION.as_micros() as u64).max(1)).hash(&mut hasher);
    hasher.finish()
}
