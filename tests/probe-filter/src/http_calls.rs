//! HTTP calls to a cluster, which the limiter uses for configuration documents.

use crate::abi::{self, Buffer, Map, shown};
use crate::state::{self, Waiting};
use crate::{Check, Next};

const LONG_MS: u32 = 10_000;
const SHORT_MS: u32 = 200;

pub(crate) fn run(check: &Check) -> Option<Next> {
    let call = |cluster: &str, path: &str, timeout_ms| {
        let headers: [(&str, &[u8]); 3] =
            [(":method", b"GET"), (":path", path.as_bytes()), (":authority", b"probe")];
        // The limiter calls from its root context.
        abi::set_effective_context(check.root);
        let called = abi::http_call(cluster, &headers, timeout_ms);
        abi::set_effective_context(check.id);
        called
    };
    let called = match check.name.as_str() {
        "answered" => call("upstream", "/fetch/answered", LONG_MS),
        "refused" => call("refusing", "/", LONG_MS),
        "timed_out" => call("upstream", "/silent", SHORT_MS),
        "broken_off" => call("upstream", "/break_off", LONG_MS),
        "unknown_cluster" => call("nonsense", "/", LONG_MS),
        "without_a_path" => abi::http_call("upstream", &[(":method", b"GET")], LONG_MS),
        _ => return None,
    };
    Some(match called {
        Ok(token) => {
            state::wait_for(check.id, Waiting::HttpCall, token);
            Next::Pause
        }
        Err(status) => Next::Answer(status.to_string()),
    })
}

pub(crate) fn on_response(id: u32, context: u32, headers: usize, body_size: usize, trailers: usize) {
    let whose = if context == state::root_of(id) { "root" } else { "request" };
    let has_headers = headers > 0;
    let status = shown(&abi::header(Map::HttpCallResponse, ":status"));
    let body = shown(&abi::buffer(Buffer::HttpCallResponseBody, 0, body_size.min(10)));
    let text = format!(
        "{whose} context; headers: {has_headers}; trailers: {trailers}; :status {status}; body begins {body}"
    );
    state::answer_from_root(id, &text);
}
