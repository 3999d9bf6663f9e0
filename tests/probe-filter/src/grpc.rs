//! gRPC streams: how they open, and the order of their events.

use crate::abi;
use crate::state::{self, Waiting};
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let open = |service: &[u8]| {
        abi::set_effective_context(check.root);
        state::opening(Some(check.id));
        let opened = abi::grpc_stream(service, "probe", "pipe");
        state::opening(None);
        abi::set_effective_context(check.id);
        opened
    };
    let opened = match check.name.as_str() {
        "answered" => open(&service("grpc")),
        "bare_name" => open(b"grpc"),
        "refused" => open(&service("refusing")),
        "unknown_cluster" => open(&service("nonsense")),
        "unknown_stream" => {
            let id = 1 << 20;
            return Some(Next::Answer(format!(
                "send: {}; cancel: {}; close: {}",
                abi::grpc_send(id, b"a", 0),
                abi::grpc_cancel(id),
                abi::grpc_close(id)
            )));
        }
        "cancelled" => {
            let id = open(&service("grpc")).unwrap_or(0);
            return Some(Next::Answer(format!(
                "cancel: {}; again: {}; send: {}",
                abi::grpc_cancel(id),
                abi::grpc_cancel(id),
                abi::grpc_send(id, b"a", 0)
            )));
        }
        _ => return None,
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(status) => return Some(Next::Answer(format!("open {status}; {}", state::trace(check.id)))),
    };
    state::note(check.id, "opened");
    state::wait_for(check.id, Waiting::Stream, stream);
    // A stream that was closed while it was opened has no more events.
    if state::trace(check.id).contains("close") {
        return Some(Next::Answer(state::trace(check.id)));
    }
    Some(Next::Pause)
}

pub(crate) fn on_event(stream: u32, event: &str) {
    if let Some(id) = state::waiting(Waiting::Stream, stream) {
        state::note(id, event);
    }
}

pub(crate) fn on_close(context: u32, stream: u32, status: u32) {
    let Some(id) = state::waiting(Waiting::Stream, stream) else { return };
    let whose = if context == state::root_of(id) { "root" } else { "request" };
    state::note(id, &format!("{whose} close {status}"));
    if state::trace(id).contains("opened") {
        let (send, cancel, again) =
            (abi::grpc_send(stream, b"a", 0), abi::grpc_cancel(stream), abi::grpc_cancel(stream));
        state::note(id, &format!("send {send}, cancel {cancel}, again {again}"));
        state::answer_from_root(id, &state::trace(id));
    }
}

/// Envoy's `GrpcService` message: `{envoy_grpc: {cluster_name: …}}`.
fn service(cluster: &str) -> Vec<u8> {
    let length = |bytes: usize| u8::try_from(bytes).unwrap_or(0);
    [&[10, length(cluster.len() + 2), 10, length(cluster.len())], cluster.as_bytes()].concat()
}
