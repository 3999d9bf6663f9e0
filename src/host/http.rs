//! One request: what the limiter decides, said to Envoy.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, BufferType};

use super::calls::{
    HeaderBlock, HostData, HostRequest, response_header, send_local_reply, set_response_header,
};
use super::worker::Worker;
use crate::admin::{self, MAX_BODY_BYTES, PendingChange, Reply};
use crate::limiter::Decision;
use crate::load::{Response, Tally};
use crate::reply::{self, Answer};
use crate::request::Arrival;
use crate::store::SharedData;

/// How long the body of a change may take, in microseconds.
const BODY_TIMEOUT_US: u64 = 10_000_000;

/// Most requests of one worker that wait for a body at a time. Each has shown the admin token.
const MAX_AWAITED_BODIES: usize = 64;

/// Envoy's `StopAllIterationAndWatermark`: the request waits with its body, which its client may not send on.
const PAUSE_WITH_BODY: u32 = 4;

thread_local! {
    /// Whether the request whose headers are being looked at is to wait with its body.
    static HOLD_BODY: Cell<bool> = const { Cell::new(false) };
}

unsafe extern "C" {
    fn proxy_on_request_headers(context: u32, headers: usize, end_of_stream: bool) -> u32;
}

/// What Envoy calls as `proxy_on_request_headers`: `xtask` puts it there.
///
/// The SDK knows one way to pause, in which the body still comes and is gathered. That is what a change of health
/// needs; but while a request waits for Redis, an upload would outgrow Envoy's buffer and be answered with 413.
#[unsafe(no_mangle)]
extern "C" fn replaces_proxy_on_request_headers(context: u32, headers: usize, end_of_stream: bool) -> u32 {
    // SAFETY: the SDK's own callback, with the arguments that Envoy meant for it.
    let action = unsafe { proxy_on_request_headers(context, headers, end_of_stream) };
    if HOLD_BODY.take() { PAUSE_WITH_BODY } else { action }
}

/// A request on its way.
pub(super) struct HttpRequest {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
    stage: Stage,
}

/// What is still to be done for it.
enum Stage {
    /// Nothing.
    Done,
    /// Its response gets the answer's headers. Its own headers came in at the first time, and it went on at the second.
    AwaitsResponse(Answer, u64, u64),
    /// It changes health once its body is there; so much of it is.
    AwaitsBody(PendingChange, Vec<u8>),
    /// It waits until Redis has decided. Its headers came in at that time.
    AwaitsRedis(u64),
}

impl HttpRequest {
    pub(super) fn new(id: u32, worker: Option<Rc<RefCell<Worker>>>) -> Self {
        Self { id, worker, stage: Stage::Done }
    }

    /// Carries out the change that was waiting for its body.
    fn change_health(&mut self) -> Action {
        let (Stage::AwaitsBody(pending, body), Some(worker)) = (&self.stage, &self.worker) else {
            return Action::Continue;
        };
        let decision = worker.borrow_mut().change_health(pending, body, self.id);
        self.stage = match decision {
            Decision::Replied(reply) => {
                send_reply(&reply);
                Stage::Done
            }
            _ => Stage::AwaitsRedis(HostData.now_us()),
        };
        Action::Pause
    }

    /// Whether it still waits for Redis. The root context, which lets it go on, cannot tell it.
    fn awaits_redis(&mut self) -> bool {
        let Stage::AwaitsRedis(started_us) = self.stage else {
            return false;
        };
        let admitted = self.worker.as_ref().and_then(|worker| worker.borrow_mut().take_admitted(self.id));
        match admitted {
            Some((answer, sent_us)) => self.stage = Stage::AwaitsResponse(answer, started_us, sent_us),
            None => return true,
        }
        false
    }
}

impl Context for HttpRequest {}

impl HttpContext for HttpRequest {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        let Some(worker) = self.worker.clone() else {
            return Action::Continue;
        };
        let mut worker = worker.borrow_mut();
        let started_us = HostData.now_us();
        match worker.decide(&HostRequest, Arrival { ticket: self.id, at_us: started_us }) {
            Decision::Exempt => Action::Continue,
            Decision::Admitted(answer) => {
                self.stage = Stage::AwaitsResponse(answer, started_us, started_us);
                Action::Continue
            }
            answer @ (Decision::Refused(_)
            | Decision::Unavailable(_)
            | Decision::Shed(..)
            | Decision::Replied(_)) => {
                send_local(&worker, &answer, started_us);
                Action::Pause
            }
            Decision::AwaitsRedis => {
                self.stage = Stage::AwaitsRedis(started_us);
                HOLD_BODY.set(true);
                Action::Pause
            }
            Decision::AwaitsBody(pending) => {
                if !end_of_stream && worker.bodies.wait_for(self.id, HostData.now_us()) == Err(TooMany) {
                    send_reply(&admin::too_many_bodies());
                    return Action::Pause;
                }
                drop(worker);
                self.stage = Stage::AwaitsBody(pending, Vec::new());
                if end_of_stream { self.change_health() } else { Action::Pause }
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.awaits_redis() {
            return Action::Pause;
        }
        let Stage::AwaitsBody(_, body) = &mut self.stage else {
            return Action::Continue;
        };
        // While we pause, Envoy gathers the body: `size` is that of all that has come. One byte over the bound
        // is enough to know that it is too long.
        let bytes = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size.min(MAX_BODY_BYTES + 1));
        *body = bytes.ok().flatten().unwrap_or_default();
        if end_of_stream || body.len() > MAX_BODY_BYTES { self.change_health() } else { Action::Pause }
    }

    /// A body may end with trailers, and then no call says that it was the last of it.
    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        if self.awaits_redis() { Action::Pause } else { self.change_health() }
    }

    /// Also called for replies that Envoy or another filter makes itself, which are responses like any other.
    fn on_http_response_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        if let (true, Some(worker)) = (self.awaits_redis(), &self.worker) {
            // Somebody else has answered it meanwhile.
            worker.borrow_mut().forget(self.id);
        }
        if let Stage::AwaitsResponse(answer, started_us, sent_us) =
            std::mem::replace(&mut self.stage, Stage::Done)
            && let Some(worker) = &self.worker
        {
            let mut worker = worker.borrow_mut();
            let now_us = write_headers(&worker, &answer, started_us, set_response_header);
            if let Some(tally) = worker.limiter.tally() {
                measure(tally, sent_us, now_us, end_of_stream);
            }
        }
        Action::Continue
    }
}

/// A client that goes away is not waited for.
impl Drop for HttpRequest {
    fn drop(&mut self) {
        let Some(worker) = &self.worker else { return };
        match self.stage {
            Stage::AwaitsBody(..) => worker.borrow_mut().bodies.forget(self.id),
            Stage::AwaitsRedis(_) => worker.borrow_mut().forget(self.id),
            Stage::AwaitsResponse(_, _, sent_us) => {
                if let Some(tally) = worker.borrow_mut().limiter.tally() {
                    tally.abandoned(HostData.now_us().saturating_sub(sent_us));
                }
            }
            Stage::Done => {}
        }
    }
}

/// Notes how the upstream has answered, by two host calls at most: the status, and the time where it is not known. What
/// went before the request was sent on, such as a wait for Redis, is not the upstream's.
///
/// A gRPC response that fails at once is a 200 of headers alone, and says so in them. Where the time is not known, that
/// is read in its place.
fn measure(tally: &mut Tally, sent_us: u64, now_us: Option<u64>, is_headers_only: bool) {
    let status = response_header(":status").unwrap_or_default();
    let may_be_grpc = is_headers_only && status == b"200";
    let is_failed = if may_be_grpc {
        response_header("grpc-status").is_some_and(|status| is_grpc_server_error(&status))
    } else {
        status.first() == Some(&b'5')
    };
    let now_us = if may_be_grpc { now_us } else { now_us.or_else(|| Some(HostData.now_us())) };
    let took_us = now_us.map(|now_us| now_us.saturating_sub(sent_us));
    tally.answered(if is_failed { Response::Failed(took_us) } else { Response::Good(took_us) });
}

/// The codes that are a server's fault: `UNKNOWN`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `INTERNAL`, `UNAVAILABLE`
/// and `DATA_LOSS`.
fn is_grpc_server_error(status: &[u8]) -> bool {
    matches!(status, b"2" | b"4" | b"8" | b"13" | b"14" | b"15")
}

/// Requests that wait for their body, and until when.
///
/// Without this bound a client could hold a request open for ever; and in an Envoy whose configuration lacks
/// `allow_on_headers_stop_iteration` no body ever comes, which the answer then says.
#[derive(Default)]
pub(super) struct AwaitedBodies {
    deadlines_us: Vec<(u32, u64)>,
}

/// As many requests wait as may.
#[derive(PartialEq)]
struct TooMany;

impl AwaitedBodies {
    fn wait_for(&mut self, id: u32, now_us: u64) -> Result<(), TooMany> {
        if self.deadlines_us.len() >= MAX_AWAITED_BODIES {
            return Err(TooMany);
        }
        self.deadlines_us.push((id, now_us.saturating_add(BODY_TIMEOUT_US)));
        Ok(())
    }

    pub(super) fn forget(&mut self, id: u32) {
        self.deadlines_us.retain(|(awaited, _)| *awaited != id);
    }

    /// Answers those that have waited too long. Called from the root context.
    pub(super) fn give_up(&mut self, now_us: u64) {
        let late = self.deadlines_us.extract_if(.., |(_, deadline_us)| *deadline_us <= now_us);
        for (id, _) in late {
            // A request that is gone has no context, and needs no answer.
            if hostcalls::set_effective_context(id).is_ok() {
                send_reply(&admin::body_timed_out());
            }
        }
    }
}

/// Answers the request in effect, if the decision is an answer.
pub(super) fn send_local(worker: &Worker, decision: &Decision, started_us: u64) {
    match decision {
        Decision::Refused(answer) => send_text(worker, answer, started_us, 429, None),
        // No bucket says when to come back.
        Decision::Unavailable(answer) => send_text(worker, answer, started_us, 503, Some(1)),
        Decision::Shed(answer, seconds) => send_text(worker, answer, started_us, 503, Some(*seconds)),
        Decision::Replied(reply) => send_reply(reply),
        Decision::Exempt | Decision::Admitted(_) | Decision::AwaitsBody(_) | Decision::AwaitsRedis => {}
    }
}

fn send_text(worker: &Worker, answer: &Answer, started_us: u64, status: u32, retry_after: Option<u64>) {
    let mut headers = HeaderBlock::default();
    headers.push("content-type", b"text/plain");
    if let Some(seconds) = retry_after {
        headers.push("retry-after", seconds.to_string().as_bytes());
    }
    write_headers(worker, answer, started_us, |name, value| headers.push(name, value));
    let body = if status == 429 { reply::REFUSED_BODY } else { reply::UNAVAILABLE_BODY };
    send_local_reply(status, headers, body.as_bytes());
}

fn send_reply(reply: &Reply) {
    let mut headers = HeaderBlock::default();
    headers.push("content-type", b"application/json");
    if let Some((name, value)) = &reply.header {
        headers.push(name, value.as_bytes());
    }
    send_local_reply(reply.status, headers, reply.body.as_bytes());
}

/// Writes the headers; what the clock says, where a header needs that.
fn write_headers(
    worker: &Worker,
    answer: &Answer,
    started_us: u64,
    write: impl FnMut(&'static str, &[u8]),
) -> Option<u64> {
    let limiter = &worker.limiter;
    let headers = limiter.config().settings.headers;
    let now_us = headers.processing_time.then(|| HostData.now_us());
    let processing_us = now_us.map_or(0, |now_us| now_us.saturating_sub(started_us));
    reply::write_headers(answer, headers, limiter.unix_offset_us(), processing_us, write);
    now_us
}
