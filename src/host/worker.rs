//! One worker: its limiter, its overload control, its stream to Redis, and its requests.

mod request_callbacks;
mod root_callbacks;

use super::hostcalls::{HostData, HostRequest, cluster_name, wall_clock};
use super::http::send_reply;
use super::metrics::DecisionTimer;
use super::overload::{Overload, shed_wait_seconds};
use super::redis_stream::RedisStream;
use super::ticks::{Ticks, documents_tick_period};
use super::turn::NextTurn;
use crate::admin::EndpointReply;
use crate::admission::{Decision, ScreenedRequest, Screening};
use crate::limiter::Limiter;
use crate::metrics::StatUpdate;
use crate::overload::{Output, RequestOutcome};
use crate::request::{DecisionStart, RequestId};
use crate::requests::{Arrived, RequestState, Requests, Waiting};
use crate::store::SharedData;
use crate::time::StoreTime;

/// Most requests that go on or are answered in one turn of the event loop.
///
/// Envoy carries out the actions of a callback after it, each inside the one before: hundreds overflow its stack.
const MAX_ANSWERS: usize = 32;

/// One worker of Envoy.
pub(super) struct Worker {
    limiter: Limiter,
    overload: Option<Overload>,
    requests: Requests,
    /// The root context, on whose behalf the stream is used.
    root: u32,
    stream: Option<RedisStream>,
    ticks: Ticks,
    next_turn: NextTurn,
    /// How many more requests may go on or be answered in this turn.
    answers_left: usize,
    decision_timer: DecisionTimer,
}

impl Worker {
    pub(super) fn new(root: u32, limiter: Limiter) -> Self {
        let settings = &limiter.config().settings;
        let redis = settings.redis.as_ref();
        let stream = redis.map(|redis| RedisStream::new(redis.cluster.clone()));
        let overload =
            settings.health_thresholds.map(|thresholds| Overload::new(thresholds, &settings.namespace));
        let mut worker = Self {
            limiter,
            overload,
            requests: Requests::default(),
            root,
            stream,
            ticks: Ticks::default(),
            next_turn: NextTurn::default(),
            answers_left: MAX_ANSWERS,
            decision_timer: DecisionTimer::new(),
        };
        worker.set_ticks();
        worker
    }

    pub(super) fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// How many requests have been decided.
    pub(super) fn decisions(&self) -> u32 {
        self.decision_timer.decisions
    }

    /// Says that the plugin configuration is in force.
    pub(super) fn announce_configuration(&mut self) {
        self.limiter.announce_configuration();
    }

    /// Does what is due once a second; returns what was counted since the last time.
    pub(super) fn each_second(&mut self, now: StoreTime) -> Vec<StatUpdate> {
        self.limiter.set_wall_clock(wall_clock(now));
        self.limiter.refresh(&HostData);
        self.drain_metrics()
    }

    /// Takes out what was counted.
    pub(super) fn drain_metrics(&mut self) -> Vec<StatUpdate> {
        self.limiter.drain_metrics()
    }

    /// Leaves a publication to another worker.
    pub(super) fn drop_publication(&mut self) {
        self.limiter.drop_publication(&HostData);
    }

    /// Decides about the request in effect; `None`: it waits for a place in flight.
    fn decide(&mut self, id: RequestId, arrived: Arrived, now: StoreTime) -> Option<Decision> {
        let may_wait = self.requests.may_wait_for_documents();
        let screened = match self.limiter.decider(&HostData).screen(&HostRequest, now, may_wait) {
            Screening::Decided(decision) => return Some(decision),
            Screening::Undecided(screened) => screened,
        };
        let Some(cluster) = self.overload.as_ref().and_then(|_| cluster_name()) else {
            return Some(self.charge(id, &screened, now));
        };
        // Where a queue is in use, a caller whose bucket is empty must not take a place in it.
        if self.requests.waiting_for_place() > 0 {
            let start = DecisionStart { id, at: now };
            if let Some(rejection) = self.limiter.decider(&HostData).reject_if_empty(&screened, start) {
                return Some(rejection);
            }
        }
        let config = self.limiter.config().clone();
        let overload = self.overload.as_mut()?;
        // What waits for Redis is not complete before Redis has answered.
        let completes_later = arrived.has_body || self.stream.is_some();
        let output = overload.admit(id, &cluster, &screened, &config, completes_later, now);
        if let Some(Output::Send(_)) = output {
            return Some(self.charge(id, &screened, now));
        }
        let waiting = Waiting { screened, cluster: overload.name_of_limit(cluster) };
        if output.is_some() {
            return Some(self.shed(id, &waiting, now));
        }
        self.requests.wait_for_place(id, arrived, waiting);
        None
    }

    fn shed(&mut self, id: RequestId, waiting: &Waiting, now: StoreTime) -> Decision {
        self.limiter.release(&waiting.screened, id);
        let mut decider = self.limiter.decider(&HostData);
        decider.shed(&waiting.screened, &waiting.cluster, shed_wait_seconds(), now)
    }

    /// Takes the token of a request that has its place in flight, if it needs one. Gives the place back if the request
    /// does not go on.
    fn charge(&mut self, id: RequestId, screened: &ScreenedRequest, now: StoreTime) -> Decision {
        let start = DecisionStart { id, at: now };
        let decision = self.limiter.decider(&HostData).charge(screened, start);
        if !matches!(decision, Decision::Admitted(_) | Decision::AwaitsRedis(_)) {
            self.finish_at(id, RequestOutcome::NotSent, now);
        }
        decision
    }

    /// Leaves the queue to the root context, if there is output.
    fn leave_queue_to_next_turn(&mut self) {
        if self.overload.as_ref().is_some_and(Overload::has_output) {
            self.next_turn.call();
        }
    }

    /// The last byte of a request that was sent on has arrived.
    fn note_complete(&mut self, id: RequestId) {
        if let (Some(overload), Some(RequestState::SentOn(_))) = (&mut self.overload, self.requests.state(id))
        {
            overload.request_complete(id, HostData.now());
        }
    }

    fn finish_at(&mut self, id: RequestId, outcome: RequestOutcome, now: StoreTime) {
        if let Some(overload) = &mut self.overload {
            overload.finish(id, outcome, now);
        }
    }

    /// Answers the admin request in effect, whose body is not waited for any more.
    fn reject_change(&mut self, reply: &EndpointReply) {
        self.limiter.count_reply(reply);
        send_reply(reply);
    }

    fn wake(&mut self, now: StoreTime) {
        if let (Some(stream), Some(redis)) = (&mut self.stream, self.limiter.redis()) {
            stream.wake(redis, now);
            self.set_ticks();
        }
    }

    /// Ticks as often as what waits needs it.
    fn set_ticks(&mut self) {
        let documents = documents_tick_period(&self.limiter, &self.requests);
        let has_queue = self.requests.waiting_for_place() > 0;
        let overload = self.overload.as_ref().map(|overload| overload.tick_period(has_queue));
        let redis = self.stream.as_ref().map(RedisStream::tick_period);
        self.ticks.set([documents, overload, redis]);
    }
}
