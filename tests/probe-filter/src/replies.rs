//! Local replies: what a client gets, and which callbacks run for them.

use crate::abi::{self, NO_GRPC_STATUS};
use crate::state;
use crate::{Ask, Next};

const RESOURCE_EXHAUSTED: i32 = 8;

/// Between ticks, while somebody waits for one.
pub(crate) const TICK_MS: u32 = 10;

/// Ticks after which a request that was held is answered.
pub(crate) const PATIENCE: u32 = 20;

pub(crate) fn ask(ask: &Ask) -> Option<Next> {
    let send = |status, headers: &[(&str, &[u8])], body: &str, grpc| {
        let sent = abi::send_local_reply(status, headers, body.as_bytes(), grpc);
        state::note(ask.id, &format!("reply {sent}"));
    };
    match ask.name.as_str() {
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
            let sent = abi::send_local_reply_raw(200, &cut, b"text", NO_GRPC_STATUS);
            return Some(Next::Answer(sent.to_string()));
        }
        "to_another_then_continue" => {
            // To the root context, for no second request is there: the answer itself goes nowhere.
            abi::set_effective_context(ask.root);
            send(418, &[], "text", NO_GRPC_STATUS);
            abi::set_effective_context(ask.id);
            state::await_ticks(ask.id, PATIENCE);
            abi::set_tick_period(TICK_MS);
            return Some(Next::Pass);
        }
        "from_a_tick" => {
            state::await_ticks(ask.id, 1);
            abi::set_tick_period(TICK_MS);
        }
        _ => return None,
    }
    Some(Next::Pause)
}

pub(crate) fn on_tick(id: u32, _name: &str) {
    state::answer_from_root(id, "from a tick");
}
