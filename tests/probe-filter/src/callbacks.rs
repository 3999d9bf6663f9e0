//! The callbacks. Each one is recorded as an event of its request.

use crate::abi::{self, Buffer, Map};
use crate::state::{self, Entry, Waiting};
use crate::{Check, Next, bodies, grpc, headers, http_calls, pauses, queues, run};

const CONTINUE: u32 = 0;
const PAUSE: u32 = 1;
const HOLD: u32 = 4;

unsafe extern "C" {
    fn __wasm_call_ctors();
}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    // SAFETY: the host calls this once, before anything else.
    unsafe { __wasm_call_ctors() };
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    Box::into_raw(vec![0_u8; size].into_boxed_slice()).cast()
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_context_create(id: u32, root: u32) {
    let _entry = Entry::new();
    if root != 0 {
        state::begin(id, root);
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_configure(id: u32, size: usize) -> u32 {
    let _entry = Entry::new();
    let configuration = abi::buffer(Buffer::PluginConfiguration, 0, size).unwrap_or_default();
    state::set_configuration(id, configuration);
    1
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_tick(root: u32) {
    let _entry = Entry::new();
    let (due, has_waiting) = state::tick(root);
    for id in due {
        state::note(id, "tick");
        match state::check_name(id).split_once('/') {
            Some(("pauses", name)) => pauses::on_tick(id, name),
            Some(("replies", _)) => state::answer_from_root(id, "from a tick"),
            _ => state::answer_from_root(id, &state::trace(id)),
        }
        state::note(id, "tick returns");
    }
    if !has_waiting {
        abi::set_tick_period(0);
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_queue_ready(root: u32, queue: u32) {
    let _entry = Entry::new();
    queues::on_ready(root, queue);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_headers(id: u32, headers: usize, end_of_stream: u32) -> u32 {
    let _entry = Entry::new();
    state::note(id, "request headers");
    let path = abi::header(Map::Request, ":path").unwrap_or_default();
    let path = String::from_utf8_lossy(&path).into_owned();
    let mut parts = path.trim_start_matches('/').split('/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let (group, name, argument) = (part(), part(), part());
    state::set_check_name(id, &format!("{group}/{name}"));
    let check =
        Check { id, root: state::root_of(id), name, argument, headers, end_of_stream: end_of_stream != 0 };
    let next = run(&group, &check).unwrap_or_else(|| {
        abi::send_local_reply(404, &[], b"no such check", abi::NO_GRPC_STATUS);
        Next::Pause
    });
    let action = carry_out(next);
    state::note(id, "returns");
    action
}

/// Responds if that is the next step; returns the action for the host.
fn carry_out(next: Next) -> u32 {
    match next {
        Next::Answer(text) => {
            state::answer(&text);
            PAUSE
        }
        Next::Pass => CONTINUE,
        Next::Pause => PAUSE,
        Next::Hold => HOLD,
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_body(id: u32, size: usize, end_of_stream: u32) -> u32 {
    let _entry = Entry::new();
    carry_out(bodies::on_request_body(id, size, end_of_stream != 0))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_request_trailers(id: u32, trailers: usize) -> u32 {
    let _entry = Entry::new();
    state::note(id, &format!("{trailers} trailers"));
    carry_out(bodies::on_request_trailers(id))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_headers(id: u32, _headers: usize, _end_of_stream: u32) -> u32 {
    let _entry = Entry::new();
    state::note(id, "response headers");
    let check = state::check_name(id);
    if let Some(("headers", name)) = check.split_once('/') {
        headers::on_response(name);
    }
    abi::replace_header(Map::Response, "x-probe-trace", state::trace(id).as_bytes());
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_response_body(id: u32, size: usize, _end_of_stream: u32) -> u32 {
    let _entry = Entry::new();
    bodies::on_response_body(&state::check_name(id), size);
    CONTINUE
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_http_call_response(
    context: u32,
    token: u32,
    headers: usize,
    body_size: usize,
    trailers: usize,
) {
    let _entry = Entry::new();
    if let Some(id) = state::waiting(Waiting::HttpCall, token) {
        http_calls::on_response(id, context, headers, body_size, trailers);
    }
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive_initial_metadata(_context: u32, token: u32, _headers: usize) {
    let _entry = Entry::new();
    grpc::on_event(token, "metadata");
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive(_context: u32, token: u32, size: usize) {
    let _entry = Entry::new();
    let message = abi::buffer(Buffer::GrpcMessage, 0, size);
    grpc::on_event(token, &format!("message {}", abi::shown(&message)));
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_receive_trailing_metadata(_context: u32, token: u32, _trailers: usize) {
    let _entry = Entry::new();
    grpc::on_event(token, "trailing metadata");
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_grpc_close(context: u32, token: u32, status: u32) {
    let _entry = Entry::new();
    grpc::on_close(context, token, status);
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_done(id: u32) -> u32 {
    let _entry = Entry::new();
    state::note(id, "done");
    1
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_log(id: u32) {
    let _entry = Entry::new();
    state::note(id, "log");
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_delete(id: u32) {
    let _entry = Entry::new();
    state::note(id, "delete");
    state::end(id);
}
