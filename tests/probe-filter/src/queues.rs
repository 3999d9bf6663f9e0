//! Shared queues: with them a request causes a callback in the next turn of its worker.

use crate::abi::{self, shown};
use crate::state::{self, Waiting, fresh};
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let name = fresh(&check.name);
    let known = |id: Result<u32, abi::Status>| match id {
        Ok(_) => "ok".to_owned(),
        Err(status) => status.to_string(),
    };
    Some(match check.name.as_str() {
        "names" => {
            let unknown = known(abi::resolve_queue("", &name));
            let (first, again) = (abi::register_queue(&name), abi::register_queue(&name));
            Next::Answer(format!(
                "resolve unknown: {unknown}; register: {}; again the same: {}",
                known(first),
                first == again
            ))
        }
        "first_in_first_out" => {
            let id = abi::register_queue(&name).unwrap_or(0);
            let put = [b"a", b"b"].map(|value| abi::enqueue(id, value).to_string()).join(", ");
            let got = [(); 3].map(|()| shown(&abi::dequeue(id))).join(", ");
            Next::Answer(format!("put {put}; got {got}"))
        }
        "unknown" => {
            let id = 1 << 20;
            Next::Answer(format!("put: {}; take: {}", abi::enqueue(id, b"a"), shown(&abi::dequeue(id))))
        }
        // The queue is the root context's, as the limiter's is.
        "next_turn" => {
            abi::set_effective_context(check.root);
            let id = abi::register_queue(&name).unwrap_or(0);
            abi::set_effective_context(check.id);
            state::wait_for(check.id, Waiting::Queue, id);
            state::note(check.id, &format!("put {}", abi::enqueue(id, b"!")));
            Next::Pause
        }
        _ => return None,
    })
}

pub(crate) fn on_ready(root: u32, queue: u32) {
    let Some(id) = state::waiting(Waiting::Queue, queue) else { return };
    let whose = if root == state::root_of(id) { "its root context's" } else { "another's" };
    state::note(id, &format!("{whose} queue has {}", shown(&abi::dequeue(queue))));
    state::answer_from_root(id, &state::trace(id));
}
