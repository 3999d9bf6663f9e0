//! Contexts: the effective context, and contexts that have ended.

use crate::abi;
use crate::state;
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    Some(Next::Answer(match check.name.as_str() {
        "unknown" => {
            let unknown = abi::set_effective_context(1 << 20);
            format!(
                "{unknown}; root: {}; back: {}",
                abi::set_effective_context(check.root),
                abi::set_effective_context(check.id)
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
