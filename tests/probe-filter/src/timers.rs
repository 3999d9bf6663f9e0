//! Ticks: their period, and how they end.

use crate::abi;
use crate::replies::TICK_MS;
use crate::state;
use crate::{Check, Next};

const NEVER_MS: u32 = 3_600_000;

pub(crate) fn run(check: &Check) -> Option<Next> {
    Some(match check.name.as_str() {
        // A shorter period applies at once, not after the longer one.
        "shorter" => {
            state::await_ticks(check.id, 3);
            let statuses = [NEVER_MS, TICK_MS].map(|period| abi::set_tick_period(period).to_string());
            state::note(check.id, &format!("period {}", statuses.join(", ")));
            Next::Pause
        }
        "note" => {
            abi::set_shared(format!("ticks/{}", state::vm()), state::ticks().to_le_bytes(), 0);
            Next::Answer("noted".to_owned())
        }
        "none_since" => {
            let noted =
                abi::shared(&format!("ticks/{}", state::vm())).map(|(value, _)| value).unwrap_or_default();
            Next::Answer((noted == state::ticks().to_le_bytes()).to_string())
        }
        _ => return None,
    })
}
