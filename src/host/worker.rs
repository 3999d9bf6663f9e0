//! One worker: its limiter, its stream to Redis, and its requests.

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, BufferType};

use super::calls::{HostData, HostRequest, set_response_header};
use super::http::{Next, measure, send_local, send_reply, write_headers};
use super::metrics;
use super::pipe::Pipe;
use super::ticks::Ticks;
use crate::admin::{self, MAX_BODY_BYTES, PendingChange};
use crate::documents::Fetched;
use crate::fleet::Fleet;
use crate::generation::Role;
use crate::limiter::{Decision, Limiter};
use crate::load::hand_in_us;
use crate::request::{Arrival, RequestId};
use crate::requests::{InProgress, Requests, SentOn, State};
use crate::store::SharedData;

/// One decision in so many is timed: timing costs two host calls, which a request is better off without.
const TIMED_ONE_IN: u32 = 16;

/// Most requests that are answered in one turn of the event loop.
///
/// Envoy does what the filter asks for when the callback has returned, and each of these things inside the one before
/// it: some hundreds of them are more than its stack holds.
const MAX_ANSWERS: usize = 32;

/// Before the first tick, and between two while a document is missing: it is asked for as soon as Envoy can serve it.
const FIRST_TICK: Duration = Duration::from_millis(100);

/// Between two looks whether documents are there, while requests wait for them.
const HOLD_TICK: Duration = Duration::from_millis(10);

/// Between two slices of a publication, so that requests go on between them.
const SLICE_TICK: Duration = Duration::from_millis(5);

/// The same while requests may wait for it.
const FIRST_SLICE_TICK: Duration = Duration::from_millis(1);

/// One worker of Envoy.
pub(super) struct Worker {
    pub(super) limiter: Limiter,
    requests: Requests,
    /// The root context, on whose behalf the pipe is used.
    root: u32,
    pipe: Option<Pipe>,
    ticks: Ticks,
    /// Until the first tick: how soon it is to come.
    first_tick: Option<Duration>,
    decisions: u32,
    duration_histogram: Option<u32>,
}

impl Worker {
    pub(super) fn new(root: u32, limiter: Limiter, duration_histogram: Option<u32>) -> Self {
        let settings = &limiter.config().settings;
        let redis = settings.redis.as_ref();
        let pipe = redis.map(|redis| Pipe::new(redis.cluster.clone(), settings.measured));
        let mut worker = Self {
            limiter,
            requests: Requests::default(),
            root,
            pipe,
            ticks: Ticks::default(),
            first_tick: Some(FIRST_TICK),
            decisions: 0,
            duration_histogram,
        };
        worker.set_ticks();
        worker
    }

    /// Decides about a request whose headers have come in.
    pub(super) fn on_request_headers(&mut self, id: RequestId, end_of_stream: bool) -> Next {
        let arrival = Arrival { ticket: id, at_us: HostData.now_us() };
        let arrived_us = arrival.at_us;
        match self.decide(arrival) {
            Decision::Exempt => Next::GoOn,
            Decision::Admitted(answer) => {
                self.requests.send_on(id, arrived_us, SentOn { answer, at_us: arrived_us });
                Next::GoOn
            }
            Decision::AwaitsDocuments => {
                self.requests.wait_for_documents(id, arrived_us);
                self.set_ticks();
                Next::WaitWithBody
            }
            Decision::AwaitsRedis => {
                self.requests.wait_for_redis(id, arrived_us);
                Next::WaitWithBody
            }
            Decision::AwaitsBody(change) if end_of_stream => {
                self.change_health(id, &change, b"");
                Next::Wait
            }
            Decision::AwaitsBody(change) => {
                if self.requests.wait_for_body(id, arrived_us, change).is_err() {
                    send_reply(&admin::too_many_bodies());
                }
                Next::Wait
            }
            answer @ (Decision::Refused(_)
            | Decision::Unavailable(_)
            | Decision::Shed(..)
            | Decision::Replied(_)) => {
                send_local(self, &answer, arrived_us);
                Next::Wait
            }
        }
    }

    /// Takes in a piece of a request's body. `size` is that of all that Envoy has collected.
    pub(super) fn on_request_body(&mut self, id: RequestId, size: usize, end_of_stream: bool) -> Action {
        if !matches!(self.requests.state(id), Some(State::WaitsForBody(..))) {
            return self.action(id);
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
        if self.change_health_with_body(id) { Action::Pause } else { self.action(id) }
    }

    /// Completes the response headers of a request that was sent on. In any other state, Envoy or another filter has
    /// answered the request, and nothing waits for it any more.
    pub(super) fn on_response_headers(&mut self, id: RequestId, end_of_stream: bool) {
        let Some(InProgress { arrived_us, state: State::SentOn(sent_on) }) = self.requests.end(id) else {
            return;
        };
        let now_us = write_headers(self, &sent_on.answer, arrived_us, set_response_header);
        if let Some(tally) = self.limiter.tally() {
            measure(tally, sent_on.at_us, now_us, end_of_stream);
        }
    }

    /// A request has ended. If it was sent on and no response headers came, its client has left.
    pub(super) fn on_end(&mut self, id: RequestId) {
        if let Some(InProgress { state: State::SentOn(sent_on), .. }) = self.requests.end(id)
            && let Some(tally) = self.limiter.tally()
        {
            tally.abandoned(HostData.now_us().saturating_sub(sent_on.at_us));
        }
    }

    /// Begins to put fetched documents into force.
    pub(super) fn publish(&mut self, fetched: Fetched) {
        self.limiter.begin_publication(fetched, &HostData);
        self.go_on_publishing();
    }

    /// How many requests have been decided.
    pub(super) fn decisions(&self) -> u32 {
        self.decisions
    }

    /// Does a slice of what is to be done about documents, and decides requests that waited for it: so many, that the rest
    /// has to be decided at the next tick.
    fn go_on_publishing(&mut self) {
        self.limiter.publish(&HostData);
        if self.requests.any_waits_for_documents() && !self.limiter.must_hold(HostData.now_us(), &HostData) {
            for id in self.requests.waiting_for_documents(MAX_ANSWERS) {
                let Some(request) = self.requests.end(id) else { continue };
                if hostcalls::set_effective_context(id).is_ok() {
                    let now_us = HostData.now_us();
                    let decision = self.decide(Arrival { ticket: id, at_us: now_us });
                    self.carry_out(id, request.arrived_us, now_us, decision);
                }
            }
            self.return_to_root();
        }
        self.set_ticks();
    }

    /// Takes in what Redis sent.
    pub(super) fn received(&mut self, stream: u32, bytes: &[u8]) {
        self.at_pipe(|pipe, fleet, now_us| {
            if pipe.is_current(stream) {
                fleet.received(bytes, now_us);
            }
        });
    }

    /// Notes that a stream is closed.
    pub(super) fn closed(&mut self, stream: u32, status: u32) {
        self.at_pipe(|pipe, fleet, now_us| {
            if pipe.is_current(stream) {
                pipe.close();
                fleet.closed(&format!("the connection was refused or lost (gRPC status {status})"), now_us);
            }
        });
    }

    /// Sends what requests have asked.
    pub(super) fn take_turn(&mut self, queue: u32) {
        self.at_pipe(|pipe, fleet, _| {
            pipe.take_turn(queue);
            pipe.flush(fleet);
        });
    }

    /// Sees to deadlines, and to shared state if this generation is the newest.
    pub(super) fn tick(&mut self, role: Role) {
        self.at_pipe(|pipe, fleet, now_us| {
            fleet.tick(now_us, role, &HostData);
            pipe.flush(fleet);
            pipe.rest(fleet);
        });
        let now_us = HostData.now_us();
        self.limiter.measure(now_us, role, &HostData);
        self.give_up_bodies(now_us);
        self.first_tick = None;
        if role == Role::Superseded {
            self.limiter.drop_publication();
        }
        self.go_on_publishing();
        self.return_to_root();
    }

    /// Does something with the pipe, and then whatever follows from it.
    fn at_pipe(&mut self, act: impl FnOnce(&mut Pipe, &mut Fleet, u64)) {
        let now_us = HostData.now_us();
        if let (Some(pipe), Some(fleet)) = (&mut self.pipe, self.limiter.fleet()) {
            act(pipe, fleet, now_us);
            self.answer(now_us);
            self.wake();
        }
    }

    /// Answers those for whom Redis, or its absence, has decided: some now, the others next turn.
    fn answer(&mut self, now_us: u64) {
        let mut is_away = false;
        for _ in 0..MAX_ANSWERS {
            let Some((id, decision)) = self.limiter.next_decision(now_us, &HostData) else {
                break;
            };
            let waits = matches!(self.requests.state(id), Some(State::WaitsForRedis));
            let request = if waits { self.requests.end(id) } else { None };
            match request.filter(|_| hostcalls::set_effective_context(id).is_ok()) {
                Some(request) => {
                    is_away = true;
                    self.time(request.arrived_us);
                    self.carry_out(id, request.arrived_us, now_us, decision);
                }
                // It has ended meanwhile.
                None if matches!(decision, Decision::Admitted(_)) => self.withdraw(),
                None => {}
            }
        }
        if is_away {
            self.return_to_root();
        }
    }

    /// Does what was decided about a request that waits, which is the one in effect.
    fn carry_out(&mut self, id: RequestId, arrived_us: u64, now_us: u64, decision: Decision) {
        match decision {
            Decision::Admitted(answer) => {
                let sent_on = SentOn { answer, at_us: now_us };
                self.requests.send_on(id, arrived_us, sent_on);
                let _ = hostcalls::resume_http_request();
            }
            Decision::Refused(_) | Decision::Unavailable(_) | Decision::Shed(..) | Decision::Replied(_) => {
                send_local(self, &decision, arrived_us);
            }
            Decision::AwaitsRedis => self.requests.wait_for_redis(id, arrived_us),
            Decision::AwaitsDocuments => self.requests.wait_for_documents(id, arrived_us),
            Decision::Exempt | Decision::AwaitsBody(_) => {
                let _ = hostcalls::resume_http_request();
            }
        }
    }

    /// After requests have been answered: what follows is the root context's own again, and does not end with theirs.
    fn return_to_root(&self) {
        let _ = hostcalls::set_effective_context(self.root);
    }

    fn decide(&mut self, arrival: Arrival) -> Decision {
        let decision = match self.requests.may_wait_for_documents() {
            true => self.limiter.decide(&HostRequest, &HostData, arrival),
            false => self.limiter.decide_without_documents(&HostRequest, &HostData, arrival),
        };
        self.wake();
        if !matches!(decision, Decision::AwaitsRedis | Decision::AwaitsDocuments) {
            self.time(arrival.at_us);
        }
        decision
    }

    /// Carries out a change of health whose body is complete; false where the request is none.
    fn change_health_with_body(&mut self, id: RequestId) -> bool {
        if !matches!(self.requests.state(id), Some(State::WaitsForBody(..))) {
            return false;
        }
        if let Some(InProgress { state: State::WaitsForBody(change, body), .. }) = self.requests.end(id) {
            self.change_health(id, &change, &body);
        }
        true
    }

    fn change_health(&mut self, id: RequestId, change: &PendingChange, body: &[u8]) {
        let arrival = Arrival { ticket: id, at_us: HostData.now_us() };
        let decision = self.limiter.change_health(change, body, &HostData, arrival);
        self.wake();
        match decision {
            Decision::AwaitsRedis => self.requests.wait_for_redis(id, arrival.at_us),
            _ => send_local(self, &decision, arrival.at_us),
        }
    }

    /// What Envoy does with what else arrives of a request.
    fn action(&self, id: RequestId) -> Action {
        match self.requests.state(id) {
            Some(State::WaitsForRedis | State::WaitsForDocuments) => Action::Pause,
            Some(State::WaitsForBody(..) | State::SentOn(_)) | None => Action::Continue,
        }
    }

    /// Answers the admin requests that have waited too long for their bodies.
    fn give_up_bodies(&mut self, now_us: u64) {
        while let Some(id) = self.requests.end_without_body(now_us) {
            if hostcalls::set_effective_context(id).is_ok() {
                send_reply(&admin::body_timed_out());
            }
        }
    }

    /// A request that was admitted has gone away before it was sent on.
    fn withdraw(&mut self) {
        if let Some(tally) = self.limiter.tally() {
            tally.withdrawn();
        }
    }

    fn wake(&mut self) {
        if let (Some(pipe), Some(fleet)) = (&mut self.pipe, self.limiter.fleet()) {
            pipe.wake(fleet);
            self.set_ticks();
        }
    }

    /// Ticks as often as what waits needs it.
    fn set_ticks(&mut self) {
        let lacks_documents = self.limiter.lacks_documents();
        let documents = match self.limiter.is_publishing() {
            true if lacks_documents => Some(FIRST_SLICE_TICK),
            true => Some(SLICE_TICK),
            false if self.requests.any_waits_for_documents() => Some(HOLD_TICK),
            false => lacks_documents.then_some(FIRST_TICK),
        };
        let measured = self.limiter.config().settings.measured;
        let measured = measured.map(|bounds| Duration::from_micros(hand_in_us(&bounds)));
        let redis = self.pipe.as_ref().map(Pipe::tick);
        self.ticks.set([self.first_tick, documents, measured, redis]);
    }

    fn time(&mut self, started_us: u64) {
        let timed = self.duration_histogram.filter(|_| self.decisions.is_multiple_of(TIMED_ONE_IN));
        self.decisions = self.decisions.wrapping_add(1);
        if let Some(histogram) = timed {
            metrics::observe(histogram, HostData.now_us().saturating_sub(started_us));
        }
    }
}
