//! What the root context's callbacks do: ticks, turns of the event loop, Redis, and documents.
//!
//! Only these answer other requests. If a request's callback did that, Envoy would stop the callback's own request,
//! whatever the callback returns.

use proxy_wasm::hostcalls;

use super::{MAX_ANSWERS, Worker};
use crate::admin;
use crate::admission::Decision;
use crate::documents::Fetched;
use crate::generation::Role;
use crate::host::hostcalls::HostData;
use crate::host::http::send_decision;
use crate::host::overload::Overload;
use crate::host::redis_stream::RedisStream;
use crate::limiter::{Limiter, LimiterOutput};
use crate::overload::{Output, RequestOutcome};
use crate::request::RequestId;
use crate::requests::{Arrived, InProgress, RequestState};
use crate::store::SharedData;
use crate::time::StoreTime;

impl Worker {
    /// One of the root context's callbacks begins. What exceeds [`MAX_ANSWERS`] in it is left to later ones.
    pub(in crate::host) fn begin_turn(&mut self) {
        self.answers_left = MAX_ANSWERS;
    }

    /// Begins to put fetched documents into force.
    pub(in crate::host) fn publish(&mut self, fetched: Fetched) {
        self.limiter.begin_publication(fetched, &HostData);
        self.go_on_publishing(HostData.now());
    }

    /// Takes in what Redis sent.
    pub(in crate::host) fn received(&mut self, id: u32, bytes: &[u8]) {
        self.begin_turn();
        self.at_stream(|stream, limiter, now| {
            if stream.is_current(id) {
                limiter.handle_input(bytes, now);
            }
        });
    }

    /// Notes that a stream is closed.
    pub(in crate::host) fn closed(&mut self, id: u32, status: u32) {
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
    pub(in crate::host) fn take_turn(&mut self, queue: u32) {
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

    /// Handles deadlines, and shared state if this generation is the newest.
    pub(in crate::host) fn tick(&mut self, role: Role) {
        self.begin_turn();
        self.at_stream(|stream, limiter, now| {
            limiter.handle_timeout(now, role, &HostData);
            limiter.flush();
            stream.note_tick();
        });
        let now = HostData.now();
        self.tick_overload(now, role);
        self.give_up_bodies(now);
        self.ticks.note_tick();
        if role == Role::Superseded {
            self.drop_publication();
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
            self.carry_out_redis_output(now);
            self.serve_queue(now);
            self.wake(now);
        }
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
            for id in self.requests.oldest_waiting_for_documents(self.answers_left) {
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

    /// Answers the requests that Redis or `on_failure` has decided: some now, the others next turn.
    fn carry_out_redis_output(&mut self, now: StoreTime) {
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
            left_root |= self.answer_other(id, request.arrived, now, decision);
        }
        if left_root {
            self.return_to_root();
        }
    }

    /// Does what is due for the overload control. A superseded generation handles its own requests, and
    /// leaves health to the newest.
    fn tick_overload(&mut self, now: StoreTime, role: Role) {
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

    /// Lets requests go on that have a place in flight now, and answers those that are shed.
    fn serve_queue(&mut self, now: StoreTime) {
        let mut left_root = false;
        while self.answers_left > 0
            && let Some(output) = self.overload.as_mut().and_then(Overload::poll_output)
        {
            self.answers_left -= 1;
            let (Output::Send(id) | Output::Shed(id)) = output;
            let Some((arrived, decision)) = self.decide_waiting(output, now) else { continue };
            left_root |= self.answer_other(id, arrived, now, decision);
        }
        if left_root {
            self.wake(now);
            self.return_to_root();
        }
        self.leave_queue_to_next_turn();
    }

    /// Decides about a request that has waited for a place; `None`: it has ended.
    fn decide_waiting(&mut self, output: Output, now: StoreTime) -> Option<(Arrived, Decision)> {
        let (Output::Send(id) | Output::Shed(id)) = output;
        let InProgress { arrived, state: RequestState::WaitsForPlace(waiting) } = self.requests.end(id)?
        else {
            return None;
        };
        let decision = match output {
            Output::Send(_) => self.charge(id, &waiting.screened, now),
            Output::Shed(_) => self.shed(id, &waiting, now),
        };
        Some((arrived, decision))
    }

    /// Does what was decided about a request that waits; returns whether that is the one in effect now.
    fn answer_other(&mut self, id: RequestId, arrived: Arrived, now: StoreTime, decision: Decision) -> bool {
        let is_there = hostcalls::set_effective_context(id).is_ok();
        if is_there {
            self.decision_timer.note_decision(arrived.at);
            self.carry_out(id, arrived, now, decision);
        } else {
            self.finish_at(id, RequestOutcome::NotSent, now);
        }
        is_there
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
                send_decision(self, &decision, arrived.at);
                self.finish_at(id, RequestOutcome::NotSent, now);
            }
            Decision::AwaitsRedis(command) => self.requests.wait_for_redis(id, arrived, command),
            Decision::AwaitsDocuments => self.requests.wait_for_documents(id, arrived),
            Decision::Exempt | Decision::AwaitsBody(_) => {
                let _ = hostcalls::resume_http_request();
            }
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

    /// Makes the root context the effective one again, so that no later host call is for an answered request.
    fn return_to_root(&self) {
        let _ = hostcalls::set_effective_context(self.root);
    }
}
