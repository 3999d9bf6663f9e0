//! The next turn of a worker's event loop: a message on a shared queue that only this worker reads brings it about.

use std::cell::RefCell;

use proxy_wasm::hostcalls;

thread_local! {
    /// Queues that no root context of this VM uses any more. Envoy never forgets a queue, so they are used again.
    static FREE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A queue that calls the root context that has opened it.
#[derive(Default)]
pub(super) struct NextTurn {
    queue: Option<(String, u32)>,
    is_coming: bool,
}

impl NextTurn {
    /// Makes Envoy call the root context in the next turn; if this fails, the next tick calls it.
    pub(super) fn call(&mut self) {
        if self.is_coming {
            return;
        }
        let (_, id) = self.queue.get_or_insert_with(|| {
            let free = FREE.with_borrow_mut(Vec::pop);
            let name = free.unwrap_or_else(|| format!("rate_limiter/turn/{:016x}", super::random()));
            let id = hostcalls::register_shared_queue(&name).unwrap_or_default();
            (name, id)
        });
        self.is_coming = hostcalls::enqueue_shared_queue(*id, Some(b"!")).is_ok();
    }

    /// Takes the message, if `queue` is this one.
    pub(super) fn take(&mut self, queue: u32) -> bool {
        let is_ours = self.queue.as_ref().is_some_and(|(_, id)| *id == queue);
        if is_ours {
            self.is_coming = false;
            let _ = hostcalls::dequeue_shared_queue(queue);
        }
        is_ours
    }
}

impl Drop for NextTurn {
    fn drop(&mut self) {
        if let Some((name, _)) = self.queue.take() {
            FREE.with_borrow_mut(|free| free.push(name));
        }
    }
}
