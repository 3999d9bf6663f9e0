//! Calls to a cluster, as for configuration documents.

use crate::abi::{self, Buffer, Map, shown};
use crate::state::{self, Waiting};
use crate::{Ask, Next};

const PATIENT_MS: u32 = 10_000;
const SHORT_MS: u32 = 200;

pub(crate) fn ask(ask: &Ask) -> Option<Next> {
    let call = |cluster: &str, path: &str, timeout_ms| {
        let headers: [(&str, &[u8]); 3] =
            [(":method", b"GET"), (":path", path.as_bytes()), (":authority", b"probe")];
        // The limiter calls from its root context.
        abi::set_effective_context(ask.root);
        let called = abi::http_call(cluster, &headers, timeout_ms);
        abi::set_effective_context(ask.id);
        called
    };
    let called = match ask.name.as_str() {
        "answered" => call("upstream", "/fetch/answered", PATIENT_MS),
        "refused" => call("refusing", "/", PATIENT_MS),
        "timed_out" => call("upstream", "/silent", SHORT_MS),
        "broken_off" => call("upstream", "/break_off", PATIENT_MS),
        "unknown_cluster" => call("nonsense", "/", PATIENT_MS),
        "without_a_path" => abi::http_call("upstream", &[(":method", b"GET")], PATIENT_MS),
        _ => return None,
    };
    Some(match called {
        Ok(token) => {
            state::wait_for(ask.id, Waiting::HttpCall, token);
            Next::Pause
        }
        Err(status) => Next::Answer(status.to_string()),
    })
}

pub(crate) fn on_response(id: u32, context: u32, headers: usize, body_size: usize, trailers: usize) {
    let whose = if context == state::root_of(id) { "root" } else { "request" };
    let has_headers = headers > 0;
    let status = shown(&abi::header(Map::HttpCallResponseHeaders, ":status"));
    let body = shown(&abi::buffer(Buffer::HttpCallResponseBody, 0, body_size.min(10)));
    let text = format!(
        "{whose} context; headers: {has_headers}; trailers: {trailers}; :status {status}; body begins {body}"
    );
    state::answer_from_root(id, &text);
}
