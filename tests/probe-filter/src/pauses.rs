//! Paused requests: their bodies, and how they continue.

use crate::abi;
use crate::replies::{TICK_MS, TICKS};
use crate::state;
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let next = match check.name.as_str() {
        "gather" => Next::Pause,
        "hold" | "hold_then_answer" => Next::Hold,
        _ => return None,
    };
    state::await_ticks(check.id, TICKS);
    abi::set_tick_period(TICK_MS);
    Some(next)
}

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
