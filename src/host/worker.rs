//! One worker: its limiter, its overload control, its stream to Redis, and its requests.

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType};

use super::hostcalls::{HostData, HostRequest, cluster_name, set_response_header, wall_clock};
use super::http::{Next, action, outcome, send_local, send_reply, write_headers};
use super::metrics::DecisionTimer;
use super::overload::{Overload, shed_wait_seconds};
use super::redis_stream::RedisStream;
use super::ticks::{Ticks, documents_tick};
use super::turn::NextTurn;
use crate::admin::{self, EndpointReply, MAX_BODY_BYTES, PendingChange};
use crate::admission::{Decision, LimitedRequest, Screening};
use crate::documents::Fetched;
use crate::generation::Role;
use crate::limiter::{Limiter, LimiterOutput};
use crate::metrics::StatUpdate;
use crate::overload::{Output, RequestOutcome};
use crate::request::{DecisionStart, RequestId};
use crate::requests::{Arrived, InProgress, RequestState, Requests, Waiting};
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

    /// Decides about a request whose headers have come in.
    pub(super) fn on_request_headers(&mut self, id: RequestId, end_of_stream: bool) -> Next {
        let arrived = Arrived { at: HostData.now(), has_body: !end_of_stream };
        let decided = self.decide(id, arrived, arrived.at);
        self.wake(arrived.at);
        let Some(decision) = decided else {
            self.set_ticks();
            self.leave_queue_to_next_turn();
            return Next::WaitWithBody;
        };
        if !matches!(decision, Decision::AwaitsRedis(_) | Decision::AwaitsDocuments) {
            self.decision_timer.decided(arrived.at);
        }
        let next = match decision {
            Decision::Exempt => Next::GoOn,
            Decision::Admitted(header_values) => {
                self.requests.send_on(id, arrived, header_values);
                if end_of_stream {
                    self.note_complete_at_headers(id, arrived.at);
                }
                Next::GoOn
            }
            Decision::AwaitsDocuments => {
                self.requests.wait_for_documents(id, arrived);
                self.set_ticks();
                Next::WaitWithBody
            }
            Decision::AwaitsRedis(command) => {
                self.requests.wait_for_redis(id, arrived, command);
                Next::WaitWithBody
            }
            Decision::AwaitsBody(change) if end_of_stream => {
                self.change_health(id, &change, b"");
                Next::Wait
            }
            Decision::AwaitsBody(change) => {
                if self.requests.wait_for_body(id, arrived, change).is_err() {
                    self.reject_change(&admin::too_many_bodies());
                }
                Next::Wait
            }
            decision @ (Decision::Rejected(_)
            | Decision::Unavailable(_)
            | Decision::Shed(..)
            | Decision::Replied(_)) => {
                send_local(self, &decision, arrived.at);
                Next::Wait
            }
        };
        self.leave_queue_to_next_turn();
        next
    }

    /// Takes in a piece of a request's body. `size` is that of all that Envoy has collected.
    pub(super) fn on_request_body(&mut self, id: RequestId, size: usize, end_of_stream: bool) -> Action {
        if !matches!(self.requests.state(id), Some(RequestState::WaitsForBody(..))) {
            if end_of_stream {
                self.note_complete(id);
            }
            return action(self.requests.state(id));
        }
        // One byte over the bound is enough to know that it is too long.
        let bytes = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size.min(MAX_BODY_BYTES + 1));
        let body = bytes.ok().flatten().unwrap_or_default();
        let is_complete = end_of_stream || body.len() > MAX_BODY_BYTES;
        self.requests.keep_body(id, body);
        if is_complete {
            self.change_health_with_body(id);
        }
        Action::Pause
    }

    /// A request ends with trailers: its body is complete.
    pub(super) fn on_request_trailers(&mut self, id: RequestId) -> Action {
        if self.change_health_with_body(id) {
            return Action::Pause;
        }
        self.note_complete(id);
        action(self.requests.state(id))
    }

    /// Completes the response headers of a request that was sent on. In any other state, Envoy or another filter has
    /// answered the request, and nothing waits for it any more.
    pub(super) fn on_response_headers(&mut self, id: RequestId, end_of_stream: bool) {
        let Some(InProgress { arrived, state }) = self.requests.end(id) else { return };
        let RequestState::SentOn(header_values) = state else { return self.finish_unsent(id, &state) };
        let now = write_headers(self, &header_values, arrived.at, set_response_header);
        if self.overload.is_some() {
            // A gRPC request has a body, if an empty one.
            let outcome = outcome(end_of_stream && arrived.has_body);
            let now = now.unwrap_or_else(|| HostData.now());
            self.finish_at(id, outcome, now);
            self.leave_queue_to_next_turn();
        }
    }

    /// A request has ended. If it was sent on and no response headers came, its client has left.
    pub(super) fn on_end(&mut self, id: RequestId) {
        match self.requests.end(id) {
            Some(InProgress { state: RequestState::SentOn(_), .. }) => {
                self.finish(id, RequestOutcome::ClientLeft)
            }
            Some(InProgress { state, .. }) => self.finish_unsent(id, &state),
            None => {}
        }
    }

    /// One of the root context's callbacks begins. What exceeds [`MAX_ANSWERS`] in it is left to later ones.
    pub(super) fn begin_turn(&mut self) {
        self.answers_left = MAX_ANSWERS;
    }

    /// Begins to put fetched documents into force.
    pub(super) fn publish(&mut self, fetched: Fetched) {
        self.limiter.begin_publication(fetched, &HostData);
        self.go_on_publishing(HostData.now());
    }

    /// Does a slice of a publication, and decides requests that waited for it.
    fn go_on_publishing(&mut self, now: StoreTime) {
        self.limiter.publish(&HostData);
        self.decide_held_requests(now);
        self.wake(now);
        self.set_ticks();
    }

    /// Decides requests that waited for documents, if they wait no more: some now, the others next turn.
    fn decide_held_requests(&mut self, now: StoreTime) {
        if self.requests.any_waits_for_documents() && !self.limiter.holds_requests(now, &HostData) {
            for id in self.requests.waiting_for_documents(self.answers_left) {
                self.answers_left = self.answers_left.saturating_sub(1);
                let Some(request) = self.requests.end(id) else { continue };
                if hostcalls::set_effective_context(id).is_ok() {
                    let now = HostData.now();
                    if let Some(decision) = self.decide(id, request.arrived, now) {
                        self.carry_out(id, request.arrived, now, decision);
                    }
                }
            }
            self.return_to_root();
            if self.requests.any_waits_for_documents() {
                self.next_turn.call();
            }
        }
    }

    /// Takes in what Redis sent.
    pub(super) fn received(&mut self, id: u32, bytes: &[u8]) {
        self.begin_turn();
        self.at_stream(|stream, limiter, now| {
            if stream.is_current(id) {
                limiter.handle_input(bytes, now);
            }
        });
    }

    /// Notes that a stream is closed.
    pub(super) fn closed(&mut self, id: u32, status: u32) {
        self.begin_turn();
        self.at_stream(|stream, limiter, now| {
            if stream.is_current(id) {
                stream.close();
                let detail = format!("the connection was refused or lost (gRPC status {status})");
                limiter.handle_close(&detail, now);
            }
        });
    }

    /// Does what was left to this turn: serves the queue for places in flight and requests that waited for documents, or
    /// sends the gathered commands to Redis.
    pub(super) fn take_turn(&mut self, queue: u32) {
        self.begin_turn();
        if self.next_turn.take(queue) {
            let now = HostData.now();
            self.serve_queue(now);
            self.decide_held_requests(now);
            return self.wake(now);
        }
        self.at_stream(|stream, limiter, _| {
            if stream.take_turn(queue) {
                limiter.flush();
            }
        });
    }

    /// Sees to deadlines, and to shared state if this generation is the newest.
    pub(super) fn tick(&mut self, role: Role) {
        self.begin_turn();
        self.at_stream(|stream, limiter, now| {
            limiter.handle_timeout(now, role, &HostData);
            limiter.flush();
            stream.note_tick();
        });
        let now = HostData.now();
        self.follow_overload(now, role);
        self.give_up_bodies(now);
        self.ticks.note_tick();
        if role == Role::Superseded {
            self.limiter.drop_publication();
        }
        self.go_on_publishing(now);
        self.return_to_root();
        self.set_ticks();
    }

    /// Does something with the stream, and then whatever follows from it.
    fn at_stream(&mut self, act: impl FnOnce(&mut RedisStream, &mut Limiter, StoreTime)) {
        let now = HostData.now();
        if let Some(stream) = &mut self.stream {
            act(stream, &mut self.limiter, now);
            self.follow_redis(now);
            self.serve_queue(now);
            self.wake(now);
        }
    }

    /// Answers the requests that Redis or `on_failure` has decided: some now, the others next turn.
    fn follow_redis(&mut self, now: StoreTime) {
        let mut left_root = false;
        while self.answers_left > 0
            && let Some(output) = self.limiter.poll_output(now, &HostData)
        {
            let (id, decision) = match (output, &mut self.stream) {
                (LimiterOutput::Decided(id, decision), _) => (id, decision),
                (LimiterOutput::Stream(action), Some(stream)) => {
                    stream.carry_out(action, &mut self.limiter, now);
                    continue;
                }
                (LimiterOutput::Stream(_), None) => continue,
            };
            self.answers_left -= 1;
            let waits = matches!(self.requests.state(id), Some(RequestState::WaitsForRedis(_)));
            let request = if waits { self.requests.end(id) } else { None };
            // A request that has ended meanwhile needs no answer.
            let Some(request) = request else { continue };
            if hostcalls::set_effective_context(id).is_ok() {
                left_root = true;
                self.decision_timer.decided(request.arrived.at);
                self.carry_out(id, request.arrived, now, decision);
            } else {
                self.finish_at(id, RequestOutcome::NotSent, now);
            }
        }
        if left_root {
            self.return_to_root();
        }
    }

    /// Does what was decided about a request that waits, which is the one in effect.
    fn carry_out(&mut self, id: RequestId, arrived: Arrived, now: StoreTime, decision: Decision) {
        match decision {
            Decision::Admitted(header_values) => {
                self.requests.send_on(id, arrived, header_values);
                if !arrived.has_body {
                    self.note_complete(id);
                }
                let _ = hostcalls::resume_http_request();
            }
            Decision::Rejected(_) | Decision::Unavailable(_) | Decision::Shed(..) | Decision::Replied(_) => {
                send_local(self, &decision, arrived.at);
                self.finish_at(id, RequestOutcome::NotSent, now);
            }
            Decision::AwaitsRedis(command) => self.requests.wait_for_redis(id, arrived, command),
            Decision::AwaitsDocuments => self.requests.wait_for_documents(id, arrived),
            Decision::Exempt | Decision::AwaitsBody(_) => {
                let _ = hostcalls::resume_http_request();
            }
        }
    }

    /// Makes the root context the effective one again, so that no later host call is for an answered request.
    fn return_to_root(&self) {
        let _ = hostcalls::set_effective_context(self.root);
    }

    /// Decides about the request in effect; `None`: it waits for a place in flight.
    fn decide(&mut self, id: RequestId, arrived: Arrived, now: StoreTime) -> Option<Decision> {
        let may_wait = self.requests.may_wait_for_documents();
        let limited = match self.limiter.decider(&HostData).screen(&HostRequest, now, may_wait) {
            Screening::Decided(decision) => return Some(decision),
            Screening::Limited(limited) => limited,
        };
        let Some(cluster) = self.overload.as_ref().and_then(|_| cluster_name()) else {
            return Some(self.charge(id, &limited, now));
        };
        // Where a queue is in use, a caller whose bucket is empty must not take a place in it.
        if self.requests.waiting_for_place() > 0 {
            let start = DecisionStart { id, at: now };
            if let Some(rejection) = self.limiter.decider(&HostData).reject_if_empty(&limited, start) {
                return Some(rejection);
            }
        }
        let config = self.limiter.config().clone();
        let overload = self.overload.as_mut()?;
        // What waits for Redis is not complete before Redis has answered.
        let completes_later = arrived.has_body || self.stream.is_some();
        let output = overload.admit(id, &cluster, &limited, &config, completes_later, now);
        if let Some(Output::Send(_)) = output {
            return Some(self.charge(id, &limited, now));
        }
        let waiting = Waiting { limited, cluster: overload.name_of_limit(cluster, now) };
        if output.is_some() {
            return Some(self.shed(id, &waiting, now));
        }
        self.requests.wait_for_place(id, arrived, waiting);
        None
    }

    fn shed(&mut self, id: RequestId, waiting: &Waiting, now: StoreTime) -> Decision {
        self.limiter.release(&waiting.limited, id);
        let mut decider = self.limiter.decider(&HostData);
        decider.shed(&waiting.limited, &waiting.cluster, shed_wait_seconds(), now)
    }

    /// Takes the token of a request, which has its place in flight where it needs one, and gives that back if the
    /// request does not go on.
    fn charge(&mut self, id: RequestId, limited: &LimitedRequest, now: StoreTime) -> Decision {
        let start = DecisionStart { id, at: now };
        let decision = self.limiter.decider(&HostData).charge(limited, start);
        if !matches!(decision, Decision::Admitted(_) | Decision::AwaitsRedis(_)) {
            self.finish_at(id, RequestOutcome::NotSent, now);
        }
        decision
    }

    /// Lets requests go on that have a place in flight now, and answers those that are shed. Only for the root
    /// context: Envoy stops the request in whose callback another one is answered, whatever that callback returns.
    fn serve_queue(&mut self, now: StoreTime) {
        let mut left_root = false;
        while self.answers_left > 0
            && let Some(output) = self.overload.as_mut().and_then(Overload::poll_output)
        {
            self.answers_left -= 1;
            let (Output::Send(id) | Output::Shed(id)) = output;
            let Some((arrived, decision)) = self.decide_waiting(output, now) else { continue };
            if hostcalls::set_effective_context(id).is_ok() {
                left_root = true;
                self.decision_timer.decided(arrived.at);
                self.carry_out(id, arrived, now, decision);
            } else {
                self.finish_at(id, RequestOutcome::NotSent, now);
            }
        }
        if left_root {
            self.wake(now);
            self.return_to_root();
        }
        self.leave_queue_to_next_turn();
    }

    /// Leaves the queue to the root context, if there is output.
    fn leave_queue_to_next_turn(&mut self) {
        if self.overload.as_ref().is_some_and(Overload::has_output) {
            self.next_turn.call();
        }
    }

    /// Decides about a request that has waited for a place; `None`: it has ended.
    fn decide_waiting(&mut self, output: Output, now: StoreTime) -> Option<(Arrived, Decision)> {
        let (Output::Send(id) | Output::Shed(id)) = output;
        let InProgress { arrived, state: RequestState::WaitsForPlace(waiting) } = self.requests.end(id)?
        else {
            return None;
        };
        let decision = match output {
            Output::Send(_) => self.charge(id, &waiting.limited, now),
            Output::Shed(_) => self.shed(id, &waiting, now),
        };
        Some((arrived, decision))
    }

    /// The last byte of a request that was sent on has arrived.
    fn note_complete(&mut self, id: RequestId) {
        if let (Some(overload), Some(RequestState::SentOn(_))) = (&mut self.overload, self.requests.state(id))
        {
            overload.request_complete(id, HostData.now());
        }
    }

    /// A request without a body was sent on at its headers. With Redis it was to be complete only after the reply, but
    /// no command was sent.
    fn note_complete_at_headers(&mut self, id: RequestId, now: StoreTime) {
        if let (Some(overload), Some(_)) = (&mut self.overload, &self.stream) {
            overload.request_complete(id, now);
        }
    }

    /// A request has ended before it was sent on: nothing that it waited for is done for it any more.
    fn finish_unsent(&mut self, id: RequestId, state: &RequestState) {
        match state {
            RequestState::WaitsForRedis(command) => self.limiter.cancel(*command),
            RequestState::WaitsForPlace(waiting) => self.limiter.release(&waiting.limited, id),
            RequestState::WaitsForDocuments | RequestState::WaitsForBody(..) | RequestState::SentOn(_) => {}
        }
        self.finish(id, RequestOutcome::NotSent);
    }

    /// A request needs its place in flight no more, if it has one.
    fn finish(&mut self, id: RequestId, outcome: RequestOutcome) {
        if self.overload.is_some() {
            self.finish_at(id, outcome, HostData.now());
            self.leave_queue_to_next_turn();
        }
    }

    fn finish_at(&mut self, id: RequestId, outcome: RequestOutcome, now: StoreTime) {
        if let Some(overload) = &mut self.overload {
            overload.finish(id, outcome, now);
        }
    }

    /// Does what is due for the overload control. A generation that is not the newest any more sees to its own
    /// requests, and leaves health to the newest.
    fn follow_overload(&mut self, now: StoreTime, role: Role) {
        let is_newest = role == Role::Newest;
        let Some(overload) = self.overload.as_mut().filter(|_| is_newest || !self.requests.is_empty()) else {
            if is_newest {
                self.limiter.forget_measured_health(&HostData);
            }
            return;
        };
        if let Some(report) = overload.handle_timeout(now, self.ticks.period(), role).filter(|_| is_newest) {
            self.limiter.follow_overload(report, &HostData);
        }
        self.serve_queue(now);
    }

    /// Carries out a change of health whose body is complete; false where the request is none.
    fn change_health_with_body(&mut self, id: RequestId) -> bool {
        if !matches!(self.requests.state(id), Some(RequestState::WaitsForBody(..))) {
            return false;
        }
        if let Some(InProgress { state: RequestState::WaitsForBody(change, body), .. }) =
            self.requests.end(id)
        {
            self.change_health(id, &change, &body);
        }
        true
    }

    fn change_health(&mut self, id: RequestId, change: &PendingChange, body: &[u8]) {
        let start = DecisionStart { id, at: HostData.now() };
        let decision = self.limiter.change_health(change, body, &HostData, start);
        self.wake(start.at);
        match decision {
            Decision::AwaitsRedis(command) => {
                let arrived = Arrived { at: start.at, has_body: false };
                self.requests.wait_for_redis(id, arrived, command);
            }
            _ => send_local(self, &decision, start.at),
        }
    }

    /// Answers the admin requests that have waited too long for their bodies.
    fn give_up_bodies(&mut self, now: StoreTime) {
        while self.answers_left > 0
            && let Some(id) = self.requests.end_without_body(now)
        {
            self.answers_left -= 1;
            if hostcalls::set_effective_context(id).is_ok() {
                self.reject_change(&admin::body_timed_out());
            }
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
        let documents = documents_tick(
            self.limiter.is_publishing(),
            self.limiter.lacks_documents(),
            self.requests.any_waits_for_documents(),
        );
        let has_queue = self.requests.waiting_for_place() > 0;
        let overload = self.overload.as_ref().map(|overload| overload.tick(has_queue));
        let redis = self.stream.as_ref().map(RedisStream::tick_period);
        self.ticks.set([documents, overload, redis]);
    }
}
