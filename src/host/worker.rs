//! What the requests of one worker share: the limiter, the pipe to Redis, and those that wait.

use std::collections::HashMap;

use proxy_wasm::hostcalls;

use super::calls::{HostData, HostRequest};
use super::http::{AwaitedBodies, send_local};
use super::metrics;
use super::pipe::Pipe;
use crate::admin::PendingChange;
use crate::fleet::Fleet;
use crate::limiter::{Decision, Limiter};
use crate::reply::Answer;
use crate::request::{Arrival, Ticket};
use crate::store::SharedData;

/// One decision in so many is timed: timing costs two host calls, which a request is better off without.
const TIMED_ONE_IN: u32 = 16;

/// Most requests that are answered in one turn of the event loop.
///
/// Envoy does what the filter asks for when the callback has returned, and each of these things inside the one before
/// it: some hundreds of them are more than its stack holds.
const MAX_ANSWERS: usize = 32;

/// One worker of Envoy.
pub(super) struct Worker {
    pub(super) limiter: Limiter,
    pub(super) bodies: AwaitedBodies,
    /// The root context, on whose behalf the pipe is used.
    root: u32,
    pipe: Option<Pipe>,
    /// Requests that wait for Redis, and when their headers came in, in microseconds.
    waiting: HashMap<Ticket, u64>,
    /// Requests that have been let go on since, what their responses are to say, and when that was, in microseconds.
    admitted: HashMap<Ticket, (Answer, u64)>,
    decisions: u32,
    duration_histogram: Option<u32>,
}

impl Worker {
    pub(super) fn new(root: u32, limiter: Limiter, duration_histogram: Option<u32>) -> Self {
        let settings = &limiter.config().settings;
        let redis = settings.redis.as_ref();
        let pipe = redis.map(|redis| Pipe::new(redis.cluster.clone(), settings.measured));
        Self {
            limiter,
            bodies: AwaitedBodies::default(),
            root,
            pipe,
            waiting: HashMap::new(),
            admitted: HashMap::new(),
            decisions: 0,
            duration_histogram,
        }
    }

    /// Decides about a request whose headers came in.
    pub(super) fn decide(&mut self, request: &HostRequest, arrival: Arrival) -> Decision {
        let decision = self.limiter.decide(request, &HostData, arrival);
        self.note(&decision, arrival);
        if !matches!(decision, Decision::AwaitsRedis) {
            self.time(arrival.at_us);
        }
        decision
    }

    /// Carries out a change of health whose body has come.
    pub(super) fn change_health(&mut self, pending: &PendingChange, body: &[u8], ticket: Ticket) -> Decision {
        self.bodies.forget(ticket);
        let arrival = Arrival { ticket, at_us: HostData.now_us() };
        let decision = self.limiter.change_health(pending, body, &HostData, arrival);
        self.note(&decision, arrival);
        decision
    }

    /// The answer for a request that has been let go on since it asked Redis, and when that was.
    pub(super) fn take_admitted(&mut self, ticket: Ticket) -> Option<(Answer, u64)> {
        self.admitted.remove(&ticket)
    }

    /// Forgets a request that is gone.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        if self.admitted.remove(&ticket).is_some() {
            self.withdraw();
        }
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

    /// Whether the pipe says how often to tick.
    pub(super) fn has_pipe(&self) -> bool {
        self.pipe.is_some()
    }

    /// Sees to deadlines.
    pub(super) fn tick(&mut self) {
        self.at_pipe(|pipe, fleet, now_us| {
            fleet.tick(now_us, &HostData);
            pipe.flush(fleet);
            pipe.rest(fleet);
        });
        let now_us = HostData.now_us();
        self.limiter.measure(now_us, &HostData);
        self.bodies.give_up(now_us);
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
            let Some((ticket, decision)) = self.limiter.next_decision(now_us, &HostData) else {
                break;
            };
            let started_us = self.waiting.remove(&ticket);
            let is_there = started_us.is_some() && hostcalls::set_effective_context(ticket).is_ok();
            let Some(started_us) = started_us.filter(|_| is_there) else {
                if matches!(decision, Decision::Admitted(_)) {
                    self.withdraw();
                }
                continue;
            };
            self.time(started_us);
            is_away = true;
            match decision {
                Decision::Admitted(answer) => {
                    self.admitted.insert(ticket, (answer, now_us));
                    let _ = hostcalls::resume_http_request();
                }
                Decision::Refused(_)
                | Decision::Unavailable(_)
                | Decision::Shed(..)
                | Decision::Replied(_) => {
                    send_local(self, &decision, started_us);
                }
                Decision::Exempt | Decision::AwaitsBody(_) | Decision::AwaitsRedis => {
                    let _ = hostcalls::resume_http_request();
                }
            }
        }
        if is_away {
            self.return_to_root();
        }
    }

    /// After requests have been answered: what follows is the root context's own again, and does not end with theirs.
    fn return_to_root(&self) {
        let _ = hostcalls::set_effective_context(self.root);
    }

    /// Remembers a request that waits for Redis, and sees to it that Redis is asked.
    fn note(&mut self, decision: &Decision, arrival: Arrival) {
        if matches!(decision, Decision::AwaitsRedis) {
            self.waiting.insert(arrival.ticket, arrival.at_us);
        }
        self.wake();
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
        }
    }

    fn time(&mut self, started_us: u64) {
        let timed = self.duration_histogram.filter(|_| self.decisions.is_multiple_of(TIMED_ONE_IN));
        self.decisions = self.decisions.wrapping_add(1);
        if let Some(histogram) = timed {
            metrics::observe(histogram, HostData.now_us().saturating_sub(started_us));
        }
    }
}
