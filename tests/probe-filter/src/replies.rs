//! Local replies: the response, and the callbacks that run for it.

use crate::abi::{self, NO_GRPC_STATUS};
use crate::state;
use crate::{Check, Next};

const RESOURCE_EXHAUSTED: i32 = 8;

/// The tick period while a request waits for ticks.
pub(crate) const TICK_MS: u32 = 10;

/// Ticks until a paused request gets a response.
pub(crate) const TICKS: u32 = 20;

pub(crate) fn run(check: &Check) -> Option<Next> {
    let send = |status, headers: &[(&str, &[u8])], body: &str, grpc| {
        let sent = abi::send_local_reply(status, headers, body.as_bytes(), grpc);
        state::note(check.id, &format!("reply {sent}"));
    };
    match check.name.as_str() {
        "whole" => send(418, &[("x-one", b"1"), ("x-two", b"a"), ("x-two", b"b")], "text", NO_GRPC_STATUS),
        "without_a_body" => send(204, &[], "", NO_GRPC_STATUS),
        "with_a_grpc_status" => send(429, &[], "text", RESOURCE_EXHAUSTED),
        "without_a_grpc_status" => send(403, &[], "text", NO_GRPC_STATUS),
        "twice" => {
            send(200, &[], "first", NO_GRPC_STATUS);
            send(500, &[], "second", NO_GRPC_STATUS);
        }
        "then_continue" => {
            send(418, &[], "text", NO_GRPC_STATUS);
            return Some(Next::Pass);
        }
        "bad_header_block" => {
            let cut = [2, 0, 0, 0, 1, 0];
            let sent = abi::send_response(200, "", b"text", cut, NO_GRPC_STATUS);
            return Some(Next::Answer(sent.to_string()));
        }
        "to_another_then_continue" => {
            // There is no second request, so the reply is for the root context, and is not sent.
            abi::set_effective_context(check.root);
            send(418, &[], "text", NO_GRPC_STATUS);
            abi::set_effective_context(check.id);
            state::await_ticks(check.id, TICKS);
            abi::set_tick_period(TICK_MS);
            return Some(Next::Pass);
        }
        "from_a_tick" => {
            state::await_ticks(check.id, 1);
            abi::set_tick_period(TICK_MS);
        }
        _ => return None,
    }
    Some(Next::Pause)
}
