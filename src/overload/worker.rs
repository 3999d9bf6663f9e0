//! One worker's part in the overload control, for all clusters.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::admission_queue::Rank;
use super::cluster::ClusterControl;
use super::shared::{ClusterId, Shared};
use super::window::{CallerObservations, Outcome};
use super::{HealthDetector, Parameters};
use crate::config::Measured;
use crate::health::Health;
use crate::store::{record_key, update};
use crate::time::StoreTime;

/// Most clusters with a limit of their own.
const MAX_CLUSTERS: usize = 32;
/// The shortest bound of a queue, and the most requests in all queues of a worker.
const QUEUE: (usize, usize) = (32, 1_024);
const ROOM: usize = 8;
/// How long the order of callers within a priority stays.
const ROTATION: Duration = Duration::from_secs(10);

/// A request, by a number that no other request of this worker has at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u32);

/// A request as it arrives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// The cluster that it goes to.
    pub cluster: ClusterId,
    /// Its tier's priority: 0, the least important, to 9.
    pub priority: u8,
    /// Its place among requests of that priority ([`rotating_place`]): the greatest is sent first.
    pub place: u64,
    /// Its caller, as a hash.
    pub caller: u64,
    /// Whether a body follows the headers; then [`OverloadControl::request_complete`] tells of its last byte.
    pub has_body: bool,
}

/// Whether a request may be sent to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Send,
    /// It waits for [`Output::Send`] or [`Output::Shed`].
    Wait,
}

/// What to do with a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send it to the upstream: it has a place in flight.
    Send(RequestId),
    /// Answer it with 503: it is forgotten here.
    Shed(RequestId),
}

/// What is shown of one cluster: what all workers together have of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterReport {
    /// Its name; empty for the one that clusters beyond the 32nd share.
    pub name: Vec<u8>,
    /// How many requests may be in flight.
    pub limit: f64,
    /// The mean latency without a queue in the upstream.
    pub baseline: Option<Duration>,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests in the queues.
    pub waiting: u64,
    /// Requests that were shed since the start.
    pub shed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Waiting(Rank),
    InFlight {
        since: StoreTime,
        /// A slow upload holds no place: it is no work for the upstream.
        has_place: bool,
        /// Counted as slow before it ended.
        is_counted: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Request {
    cluster: ClusterId,
    caller: u64,
    is_complete: bool,
    stage: Stage,
}

/// One worker's part in the overload control.
#[derive(Debug)]
pub struct OverloadControl {
    parameters: Parameters,
    bounds: Measured,
    namespace: String,
    worker: u64,
    clusters: Vec<ClusterControl>,
    requests: HashMap<RequestId, Request>,
    waiting: usize,
    outputs: VecDeque<Output>,
    callers: CallerObservations,
    detector: HealthDetector,
    health_key: String,
    next_flush: StoreTime,
    /// When the next call was wanted, and how late the last ones were.
    wanted: StoreTime,
    lag: [Duration; 2],
}

impl OverloadControl {
    /// A worker that has seen nothing yet. `worker` is a number that no other worker has.
    pub fn new(
        parameters: Parameters,
        bounds: Measured,
        namespace: &str,
        worker: u64,
        now: StoreTime,
    ) -> Self {
        let key = record_key(namespace, "overload/clusters/");
        let others = ClusterControl::new(ClusterId(0), b"", key, worker, &parameters, now);
        Self {
            parameters,
            bounds,
            namespace: namespace.to_owned(),
            worker,
            clusters: vec![others],
            requests: HashMap::new(),
            waiting: 0,
            outputs: VecDeque::new(),
            callers: CallerObservations::default(),
            detector: HealthDetector::new(now),
            health_key: record_key(namespace, "overload/health"),
            next_flush: now.after(parameters.flush_interval),
            wanted: now.after(parameters.flush_interval),
            lag: [Duration::ZERO; 2],
        }
    }

    /// The cluster of that name. Where its number is new, the host defines the gauges of that number before it is used.
    pub fn cluster_id(&mut self, name: &[u8], shared: &impl Shared) -> ClusterId {
        let now = StoreTime::from_micros(shared.now_us());
        let known = self.clusters.iter().position(|cluster| cluster.name == name);
        let index = known.unwrap_or(if self.clusters.len() > MAX_CLUSTERS { 0 } else { self.clusters.len() });
        let id = ClusterId(u8::try_from(index).unwrap_or_default());
        if index == self.clusters.len() {
            let record = format!("overload/clusters/{}", String::from_utf8_lossy(name));
            let key = record_key(&self.namespace, &record);
            self.clusters.push(ClusterControl::new(id, name, key, self.worker, &self.parameters, now));
        }
        if let Some(cluster) = self.clusters.get_mut(index) {
            cluster.is_used = true;
        }
        id
    }

    /// Asks for a place in flight for a request whose headers have arrived.
    pub fn admit(
        &mut self,
        request: RequestId,
        arrival: Arrival,
        now: StoreTime,
        shared: &impl Shared,
    ) -> Admission {
        let Arrival { cluster: id, priority, place, caller, has_body } = arrival;
        let Some(cluster) = self.clusters.get_mut(usize::from(id.0)) else { return Admission::Send };
        cluster.observations.arrivals += 1.0;
        let is_next = cluster.queue.best_priority().is_none_or(|best| best < priority);
        let is_sent = if self.bounds.shed {
            is_next && cluster.take_place(priority, shared)
        } else {
            cluster.take_place_anyway(shared);
            true
        };
        if is_sent {
            let stage = Stage::InFlight { since: now, has_place: true, is_counted: false };
            self.requests.insert(request, Request { cluster: id, caller, is_complete: !has_body, stage });
            return Admission::Send;
        }
        cluster.observations.waited += 1.0;
        let rank = cluster.queue.push(request, priority, place, now);
        self.waiting += 1;
        let stage = Stage::Waiting(rank);
        self.requests.insert(request, Request { cluster: id, caller, is_complete: !has_body, stage });
        let (least, most) = QUEUE;
        let is_long = cluster.queue.len() > cluster.room(least).max(ROOM);
        if is_long || self.waiting > most {
            let evicted = cluster.queue.pop_worst();
            evicted.into_iter().for_each(|evicted| self.shed(evicted));
        }
        self.pump(id, now, shared);
        Admission::Wait
    }

    /// The last byte of the request has arrived: its latency is measured from here.
    pub fn request_complete(&mut self, request: RequestId, now: StoreTime, shared: &impl Shared) {
        let Some(request) = self.requests.get_mut(&request) else { return };
        if std::mem::replace(&mut request.is_complete, true) {
            return;
        }
        if let Stage::InFlight { since, has_place, .. } = &mut request.stage {
            *since = now;
            let had_place = std::mem::replace(has_place, true);
            if let Some(cluster) =
                self.clusters.get_mut(usize::from(request.cluster.0)).filter(|_| !had_place)
            {
                cluster.take_place_anyway(shared);
            }
        }
    }

    /// A request has got its response headers, or has ended in another way. Later calls for it do nothing.
    pub fn finish(&mut self, request: RequestId, outcome: Outcome, now: StoreTime, shared: &impl Shared) {
        let Some(Request { cluster: id, caller, is_complete, stage }) = self.requests.remove(&request) else {
            return;
        };
        let Some(cluster) = self.clusters.get_mut(usize::from(id.0)) else { return };
        match stage {
            Stage::Waiting(rank) => {
                cluster.queue.remove(rank);
                self.waiting = self.waiting.saturating_sub(1);
            }
            Stage::InFlight { since, has_place, is_counted } => {
                if has_place {
                    cluster.give_back(shared);
                }
                let [lag, lag_before] = self.lag;
                let latency = now.since(since).saturating_sub(lag.max(lag_before));
                let is_good = outcome == Outcome::Response { failed: false };
                if is_complete && is_good {
                    cluster.note_response(latency, now);
                }
                let is_slow = is_complete && latency > bound(cluster, &self.bounds);
                if let Some(counts) = self.callers.of(caller) {
                    let is_failed =
                        matches!(outcome, Outcome::Response { failed: true } | Outcome::NoResponse);
                    let ends = is_good || is_failed || outcome == Outcome::ClientLeft && is_slow;
                    counts.requests += f64::from(u8::from(ends && !is_counted));
                    counts.slow += f64::from(u8::from(ends && is_slow && !is_counted));
                    counts.errors += f64::from(u8::from(is_failed));
                }
            }
        }
        if cluster.leaves_place(&self.parameters, now, shared) {
            cluster.publish_queue(shared);
        } else {
            self.pump(id, now, shared);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: StoreTime, shared: &impl Shared) {
        self.lag = [now.since(self.wanted).saturating_sub(self.parameters.tick), self.lag[0]];
        let oldest = StoreTime::from_micros(
            now.as_micros().saturating_sub(self.parameters.max_wait.as_micros() as u64),
        );
        let late: Vec<_> =
            self.clusters.iter_mut().flat_map(|cluster| cluster.queue.pop_waiting_since(oldest)).collect();
        late.into_iter().for_each(|request| self.shed(request));
        if now >= self.next_flush {
            self.next_flush = now.after(self.parameters.flush_interval);
            self.look_at_requests(now, shared);
            self.flush_health(now, shared);
            let learns = self.detector.is_calm();
            for cluster in self.clusters.iter_mut().filter(|cluster| cluster.is_used) {
                cluster.flush(learns, &self.parameters, now, shared);
            }
        }
        for index in 0..self.clusters.len() {
            let id = ClusterId(u8::try_from(index).unwrap_or_default());
            self.pump(id, now, shared);
        }
        self.wanted = self.poll_timeout(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`OverloadControl::handle_timeout`] next. It may be called more often; what it is late counts as this
    /// worker's lag, which is not the upstream's latency.
    pub fn poll_timeout(&self, now: StoreTime) -> StoreTime {
        let tick = now.after(self.parameters.tick);
        if self.waiting > 0 { tick.min(self.next_flush) } else { self.next_flush }
    }

    /// What the signals of all workers say.
    pub fn health(&self) -> Health {
        self.detector.health()
    }

    /// The signals of all workers, and why health is what it is.
    pub fn detector(&self) -> &HealthDetector {
        &self.detector
    }

    /// DEBUG.
    pub fn view(&self, id: usize) -> Option<&super::ConcurrencyLimit> {
        self.clusters.get(id).map(|c| &c.record.limit)
    }

    /// What is shown of the clusters that have had a request.
    pub fn report(&self) -> Vec<ClusterReport> {
        let used = self.clusters.iter().filter(|cluster| cluster.is_used);
        let report = used.map(|cluster| ClusterReport {
            name: cluster.name.clone(),
            limit: cluster.limit,
            baseline: cluster.record.limit.baseline(),
            in_flight: cluster.record.in_flight(),
            waiting: cluster.record.waiting(),
            shed: cluster.record.shed as u64,
        });
        report.collect()
    }

    /// Takes its place from what is uploaded slowly, and counts what has taken too long already.
    fn look_at_requests(&mut self, now: StoreTime, shared: &impl Shared) {
        for request in self.requests.values_mut() {
            let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) else { continue };
            let Stage::InFlight { since, has_place, is_counted } = &mut request.stage else { continue };
            let age = now.since(*since);
            if !request.is_complete {
                if age >= self.parameters.flush_interval && std::mem::take(has_place) {
                    cluster.give_back(shared);
                }
            } else if !*is_counted && age > bound(cluster, &self.bounds) {
                *is_counted = true;
                if let Some(counts) = self.callers.of(request.caller) {
                    counts.requests += 1.0;
                    counts.slow += 1.0;
                }
            }
        }
    }

    fn flush_health(&mut self, now: StoreTime, shared: &impl Shared) {
        let observed = std::mem::take(&mut self.callers);
        let updated = update(shared, &self.health_key, |bytes, _| {
            let stored = bytes.and_then(|bytes| serde_json::from_slice(bytes).ok());
            let mut detector: HealthDetector = stored.unwrap_or_else(|| HealthDetector::new(now));
            detector.update(&observed, &self.bounds, &self.parameters, now);
            let bytes = serde_json::to_vec(&detector).unwrap_or_default();
            (detector, Some(bytes))
        });
        if let Ok(updated) = updated {
            self.detector = updated.value;
        }
    }

    fn shed(&mut self, id: RequestId) {
        self.waiting = self.waiting.saturating_sub(1);
        let Some(request) = self.requests.remove(&id) else { return };
        if let Some(cluster) = self.clusters.get_mut(usize::from(request.cluster.0)) {
            cluster.observations.shed += 1.0;
        }
        if let Some(counts) = self.callers.of(request.caller) {
            counts.shed += 1.0;
        }
        self.outputs.push_back(Output::Shed(id));
    }

    /// Sends what waits while there is a place for it.
    fn pump(&mut self, id: ClusterId, now: StoreTime, shared: &impl Shared) {
        let Some(cluster) = self.clusters.get_mut(usize::from(id.0)) else { return };
        if !cluster.queue.is_empty() {
            cluster.refresh(&self.parameters, now, shared);
        }
        // Each turn takes one request out of the queue.
        while let Some(priority) = cluster.queue.best_priority().filter(|_| !cluster.is_yielding(now)) {
            if !cluster.take_place(priority, shared) {
                break;
            }
            let Some(id) = cluster.queue.pop_best() else { break };
            self.waiting = self.waiting.saturating_sub(1);
            if let Some(request) = self.requests.get_mut(&id) {
                request.stage = Stage::InFlight { since: now, has_place: true, is_counted: false };
            }
            self.outputs.push_back(Output::Send(id));
        }
        cluster.publish_queue(shared);
    }
}

/// What takes longer is slow.
fn bound(cluster: &ClusterControl, bounds: &Measured) -> Duration {
    let absolute = bounds.latency_ms.map(|ms| Duration::from_millis(ms.into()));
    let usual_s = cluster.record.limit.usual_s();
    let relative = bounds.latency_ratio.zip(usual_s);
    let relative = relative.and_then(|(ratio, usual_s)| Duration::try_from_secs_f64(ratio * usual_s).ok());
    absolute.into_iter().chain(relative).min().unwrap_or(Duration::MAX)
}

/// A caller's place among those of its priority. The order changes every ten seconds.
pub fn rotating_place(caller: &impl Hash, now: StoreTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    caller.hash(&mut hasher);
    (now.as_micros() / (ROTATION.as_micros() as u64).max(1)).hash(&mut hasher);
    hasher.finish()
}
