//! Requests that wait: what becomes of their bodies, and how they go on.

use crate::abi;
use crate::replies::{PATIENCE, TICK_MS};
use crate::state;
use crate::{Ask, Next};

pub(crate) fn ask(ask: &Ask) -> Option<Next> {
    let next = match ask.name.as_str() {
        "gather" => Next::Pause,
        "hold" | "hold_then_answer" => Next::Hold,
        _ => return None,
    };
    state::await_ticks(ask.id, PATIENCE);
    abi::set_tick_period(TICK_MS);
    Some(next)
}

/// The request has waited long enough.
pub(crate) fn on_tick(id: u32, name: &str) {
    match name {
        "hold" => {
            abi::set_effective_context(id);
            let status = abi::continue_request();
            abi::set_effective_context(state::root_of(id));
            state::note(id, &format!("resumed {status}"));
        }
        _ => state::answer_from_root(id, "nothing more came"),
    }
}
