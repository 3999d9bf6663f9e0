//! One request: what the limiter decides, said to Envoy.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use super::hostcalls::{HeaderBlock, HostData, response_code_details, response_header, send_local_reply};
use super::worker::Worker;
use crate::admin::EndpointReply;
use crate::admission::Decision;
use crate::headers::{self, HeaderValues};
use crate::overload::RequestOutcome;
use crate::requests::RequestState;
use crate::store::SharedData;
use crate::time::StoreTime;

/// Envoy's `StopAllIterationAndWatermark`: the request waits, and Envoy reads no more of its body.
const PAUSE_AND_HOLD_BODY: u32 = 4;

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
    if HOLD_BODY.take() { PAUSE_AND_HOLD_BODY } else { action }
}

/// What Envoy does with a request whose headers have come in.
pub(super) enum Next {
    /// It goes on to the next filter.
    GoOn,
    /// It was answered; or it waits, and Envoy collects its body.
    Pause,
    /// It waits, and Envoy reads no more of its body.
    PauseAndHoldBody,
}

/// The context that Envoy gives each request. What is known of the request is in [`Worker`].
pub(super) struct HttpRequest {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
}

impl HttpRequest {
    pub(super) fn new(id: u32, worker: Option<Rc<RefCell<Worker>>>) -> Self {
        Self { id, worker }
    }
}

impl Context for HttpRequest {}

impl HttpContext for HttpRequest {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        let Some(worker) = &self.worker else { return Action::Continue };
        match worker.borrow_mut().on_request_headers(self.id, end_of_stream) {
            Next::GoOn => Action::Continue,
            Next::Pause => Action::Pause,
            Next::PauseAndHoldBody => {
                HOLD_BODY.set(true);
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        let Some(worker) = &self.worker else { return Action::Continue };
        worker.borrow_mut().on_request_body(self.id, size, end_of_stream)
    }

    /// A body may end with trailers, and then no call says that it was the last of it.
    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        let Some(worker) = &self.worker else { return Action::Continue };
        worker.borrow_mut().on_request_trailers(self.id)
    }

    /// Also called for replies that Envoy or another filter makes itself, which are responses like any other.
    fn on_http_response_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        if let Some(worker) = &self.worker {
            worker.borrow_mut().on_response_headers(self.id, end_of_stream);
        }
        Action::Continue
    }
}

/// The request has ended. Without response headers before, its client has left, or Envoy follows a redirect itself.
impl Drop for HttpRequest {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            worker.borrow_mut().on_end(self.id);
        }
    }
}

/// What Envoy does with what else arrives of a request in that state.
pub(super) fn action(state: Option<&RequestState>) -> Action {
    match state {
        Some(
            RequestState::WaitsForDocuments | RequestState::WaitsForPlace(_) | RequestState::WaitsForRedis(_),
        ) => Action::Pause,
        Some(RequestState::WaitsForBody(..) | RequestState::SentOn(_)) | None => Action::Continue,
    }
}

/// How the upstream has answered, by its status. A gRPC response that fails at once is a 200 of headers alone, and says
/// so in another header. A 2xx counts as the upstream's; any other status may be Envoy's own or another filter's.
pub(super) fn outcome(may_be_grpc_headers_only: bool) -> RequestOutcome {
    let status = response_header(":status").unwrap_or_default();
    let is_grpc = may_be_grpc_headers_only && status == b"200";
    let (is_success, failed) = match is_grpc.then(|| response_header("grpc-status")).flatten() {
        Some(status) => (status == b"0", is_grpc_server_error(&status)),
        None => (status.first() == Some(&b'2'), status.first() == Some(&b'5')),
    };
    match (!is_success).then(response_code_details).flatten().as_deref() {
        None | Some(b"via_upstream") => RequestOutcome::Response { failed },
        Some(_) if failed => RequestOutcome::NoResponse,
        Some(_) => RequestOutcome::NotSent,
    }
}

/// The codes that are a server's fault: `UNKNOWN`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `INTERNAL`, `UNAVAILABLE`
/// and `DATA_LOSS`.
fn is_grpc_server_error(status: &[u8]) -> bool {
    matches!(status, b"2" | b"4" | b"8" | b"13" | b"14" | b"15")
}

/// Answers the request in effect, if the decision is an answer.
pub(super) fn send_decision(worker: &Worker, decision: &Decision, started: StoreTime) {
    let mut headers = HeaderBlock::default();
    let (status, header_values, retry_after) = match decision {
        Decision::Rejected(header_values) => (429, header_values, None),
        // No bucket says when to come back.
        Decision::Unavailable(header_values) => (503, header_values, Some(1)),
        Decision::Shed(header_values, seconds) => {
            // They mark it for a calling Envoy; because of the second one that Envoy does not retry.
            headers.push("x-envoy-overloaded", b"true");
            headers.push("x-envoy-ratelimited", b"true");
            (503, header_values, Some(*seconds))
        }
        Decision::Replied(reply) => return send_reply(reply),
        Decision::Exempt
        | Decision::Admitted(_)
        | Decision::AwaitsDocuments
        | Decision::AwaitsBody(_)
        | Decision::AwaitsRedis(_) => return,
    };
    headers.push("content-type", b"text/plain");
    if let Some(seconds) = retry_after {
        headers.push("retry-after", seconds.to_string().as_bytes());
    }
    write_headers(worker, header_values, started, |name, value| headers.push(name, value));
    let body = if status == 429 { headers::REJECTED_BODY } else { headers::UNAVAILABLE_BODY };
    send_local_reply(status, headers, body.as_bytes());
}

pub(super) fn send_reply(reply: &EndpointReply) {
    let mut headers = HeaderBlock::default();
    headers.push("content-type", b"application/json");
    if let Some((name, value)) = &reply.header {
        headers.push(name, value.as_bytes());
    }
    send_local_reply(reply.status, headers, reply.body.as_bytes());
}

/// Writes the headers; returns the time, if a header needed it.
pub(super) fn write_headers(
    worker: &Worker,
    header_values: &HeaderValues,
    started: StoreTime,
    write: impl FnMut(&'static str, &[u8]),
) -> Option<StoreTime> {
    let limiter = worker.limiter();
    let headers = limiter.config().settings.headers;
    let now = headers.processing_time.then(|| HostData.now());
    let processing = now.map(|now| now.since(started)).unwrap_or_default();
    headers::write_headers(header_values, headers, limiter.wall_clock(), processing, write);
    now
}
