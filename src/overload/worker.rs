//! One worker's part in the overload control, for all clusters.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::admission_queue::Rank;
use super::cluster::ClusterControl;
use super::shared::{ClusterId, Shared};
use super::{Outcome, Parameters};
use crate::config::Measured;
use crate::health::Health;
use crate::store::record_key;
use crate::time::StoreTime;

/// Most clusters with a limit of their own.
const MAX_CLUSTERS: usize = 32;

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

/// What is shown of one cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterReport {
    /// Its name; empty for the one that clusters beyond the 32nd share.
    pub name: Vec<u8>,
    /// Its limit.
    pub limit: f64,
    /// Requests of this worker in flight.
    pub in_flight: u32,
    /// Requests of this worker in the queue.
    pub waiting: usize,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Waiting(Rank),
    InFlight { since: StoreTime, is_complete: bool },
}

#[derive(Clone, Copy, Debug)]
struct Request {
    cluster: ClusterId,
    has_body: bool,
    stage: Stage,
}

/// One worker's part in the overload control.
#[derive(Debug)]
pub struct OverloadControl {
    parameters: Parameters,
    namespace: String,
    clusters: Vec<(Vec<u8>, ClusterControl)>,
    requests: HashMap<RequestId, Request>,
    outputs: VecDeque<Output>,
    next_flush: StoreTime,
}

impl OverloadControl {
    /// A worker that has seen nothing yet. `random` is a number that no other worker has.
    pub fn new(
        parameters: Parameters,
        _thresholds: Measured,
        namespace: &str,
        _random: u64,
        now: StoreTime,
    ) -> Self {
        let others =
            (Vec::new(), ClusterControl::new(ClusterId(0), record_key(namespace, "overload/"), &parameters));
        Self {
            parameters,
            namespace: namespace.to_owned(),
            clusters: vec![others],
            requests: HashMap::new(),
            outputs: VecDeque::new(),
            next_flush: now.after(parameters.interval),
        }
    }

    /// The cluster of that name; where its number is new, the host defines the gauges of that number.
    pub fn cluster_id(&mut self, name: &[u8], _shared: &impl Shared) -> ClusterId {
        if let Some(known) = self.clusters.iter().position(|(of, _)| of == name) {
            return ClusterId(known as u8);
        }
        if self.clusters.len() > MAX_CLUSTERS {
            if let Some((_, others)) = self.clusters.first_mut() {
                others.is_used = true;
            }
            return ClusterId(0);
        }
        let id = ClusterId(self.clusters.len() as u8);
        let key = record_key(&self.namespace, &format!("overload/{}", String::from_utf8_lossy(name)));
        self.clusters.push((name.to_vec(), ClusterControl::new(id, key, &self.parameters)));
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
        let Arrival { cluster: id, priority, place, has_body, .. } = arrival;
        let Some((_, cluster)) = self.clusters.get_mut(usize::from(id.0)) else { return Admission::Send };
        cluster.observations.arrivals += 1.0;
        let is_next = cluster.queue.best_priority().is_none_or(|best| best < priority);
        if is_next && cluster.take_place(priority, shared) {
            let stage = Stage::InFlight { since: now, is_complete: !has_body };
            self.requests.insert(request, Request { cluster: id, has_body, stage });
            return Admission::Send;
        }
        cluster.observations.waited += 1.0;
        let rank = cluster.queue.push(request, priority, place, now);
        self.requests.insert(request, Request { cluster: id, has_body, stage: Stage::Waiting(rank) });
        let room = (cluster.queue_limit as usize).clamp(self.parameters.min_queue, self.parameters.max_queue);
        let evicted = if cluster.queue.len() > room { cluster.queue.pop_worst() } else { None };
        if let Some(evicted) = evicted {
            cluster.observations.shed += 1.0;
            self.requests.remove(&evicted);
            self.outputs.push_back(Output::Shed(evicted));
        }
        self.pump(id, now, shared);
        Admission::Wait
    }

    /// The last byte of the request has arrived: from here its latency is measured.
    pub fn request_complete(&mut self, request: RequestId, now: StoreTime, _shared: &impl Shared) {
        match self.requests.get_mut(&request) {
            Some(Request { stage: Stage::InFlight { since, is_complete }, .. }) if !*is_complete => {
                (*since, *is_complete) = (now, true);
            }
            Some(request) => request.has_body = false,
            None => {}
        }
    }

    /// A request has got its response headers, or has ended in another way. Later calls for it do nothing.
    pub fn finish(&mut self, request: RequestId, outcome: Outcome, now: StoreTime, shared: &impl Shared) {
        let Some(Request { cluster: id, stage, .. }) = self.requests.remove(&request) else { return };
        let Some((_, cluster)) = self.clusters.get_mut(usize::from(id.0)) else { return };
        match stage {
            Stage::Waiting(rank) => cluster.queue.remove(rank),
            Stage::InFlight { since, is_complete } => {
                cluster.give_back(shared);
                if is_complete && matches!(outcome, Outcome::Response { failed: false }) {
                    cluster.sample(since, now);
                }
            }
        }
        self.pump(id, now, shared);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: StoreTime, shared: &impl Shared) {
        let long_ago = now.as_micros().saturating_sub(self.parameters.max_wait.as_micros() as u64);
        let is_due = now >= self.next_flush;
        for (_, cluster) in &mut self.clusters {
            if is_due && cluster.is_used {
                cluster.flush(&self.parameters, now, shared);
            }
            cluster.refresh(now);
            for request in cluster.queue.pop_waiting_since(StoreTime::from_micros(long_ago)) {
                cluster.observations.shed += 1.0;
                self.requests.remove(&request);
                self.outputs.push_back(Output::Shed(request));
            }
        }
        for id in 0..self.clusters.len() {
            self.pump(ClusterId(id as u8), now, shared);
        }
        if now >= self.next_flush {
            self.next_flush = now.after(self.parameters.interval);
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`OverloadControl::handle_timeout`] next. It may be called later, and more often.
    pub fn poll_timeout(&self, now: StoreTime) -> StoreTime {
        let has_queue = self.clusters.iter().any(|(_, cluster)| !cluster.queue.is_empty());
        let tick = now.after(self.parameters.tick);
        if has_queue { tick.min(self.next_flush) } else { self.next_flush }
    }

    /// What the signals of all workers say.
    pub fn health(&self) -> Health {
        Health::Normal
    }

    /// For debugging.
    pub fn view(&self, id: usize) -> Option<&super::ConcurrencyLimit> {
        self.clusters.get(id).and_then(|(_, c)| c.view.as_ref())
    }

    /// What is shown of the clusters that have had a request.
    pub fn report(&self) -> Vec<ClusterReport> {
        let clusters = self.clusters.iter();
        let report = clusters.map(|(name, cluster)| ClusterReport {
            name: name.clone(),
            limit: cluster.limit,
            in_flight: cluster.in_flight_here,
            waiting: cluster.queue.len(),
        });
        report.collect()
    }

    /// Sends what waits while there is a place for it.
    fn pump(&mut self, id: ClusterId, now: StoreTime, shared: &impl Shared) {
        let Some((_, cluster)) = self.clusters.get_mut(usize::from(id.0)) else { return };
        // Each turn takes one request out of the queue.
        while let Some(priority) = cluster.queue.best_priority() {
            if !cluster.take_place(priority, shared) {
                break;
            }
            let Some(id) = cluster.queue.pop_best() else { break };
            if let Some(request) = self.requests.get_mut(&id) {
                request.stage = Stage::InFlight { since: now, is_complete: !request.has_body };
            }
            self.outputs.push_back(Output::Send(id));
        }
        cluster.publish_queue(shared);
    }
}

/// A caller's place among those of its priority. The order changes every ten seconds.
pub fn rotating_place(caller: &impl Hash, now: StoreTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    caller.hash(&mut hasher);
    (now.as_micros() / (ROTATION.as_micros() as u64).max(1)).hash(&mut hasher);
    hasher.finish()
}
