//! Contexts: acting for another one, and which are gone.

use crate::abi;
use crate::state;
use crate::{Ask, Next};

pub(crate) fn ask(ask: &Ask) -> Option<Next> {
    Some(Next::Answer(match ask.name.as_str() {
        "unknown" => {
            let unknown = abi::set_effective_context(1 << 20);
            format!(
                "{unknown}; root: {}; back: {}",
                abi::set_effective_context(ask.root),
                abi::set_effective_context(ask.id)
            )
        }
        "end_of_a_request" => "begins".to_owned(),
        // On the same connection, after another request.
        "after_another" => {
            let (id, trace) = state::last_request();
            format!("it saw: {trace}; its context: {}", abi::set_effective_context(id))
        }
        _ => return None,
    }))
}
