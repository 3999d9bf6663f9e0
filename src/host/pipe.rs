//! The stream to Redis: one for each worker, through an Envoy cluster.
//!
//! What requests ask is gathered and goes out together, in the next turn of the worker's event loop: a message on a
//! shared queue that only this worker reads brings that turn about. One message for many requests is what makes Redis
//! cheap.

use std::cell::RefCell;
use std::time::Duration;

use proxy_wasm::hostcalls;

use super::calls::HostData;
use crate::fleet::Fleet;
use crate::health_sync::POLL_US;
use crate::store::SharedData;
use crate::store::redis::session::Effects;

/// Between ticks otherwise, at most.
const SLOW_TICK: Duration = Duration::from_micros(POLL_US);

thread_local! {
    /// Queues that no root context of this VM uses any more. Envoy never forgets a queue, so they are used again.
    static FREE_QUEUES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The stream, and how to be called when there is something to send.
pub(super) struct Pipe {
    cluster: String,
    stream: Option<u32>,
    queue: Option<Queue>,
    /// Whether a turn is on its way.
    is_awake: bool,
    tick: Duration,
}

struct Queue {
    name: String,
    id: u32,
}

impl Pipe {
    /// A pipe to that cluster.
    pub(super) fn new(cluster: String) -> Self {
        Self { cluster, stream: None, queue: None, is_awake: false, tick: SLOW_TICK }
    }

    /// Sees to it that what `fleet` has to send and to answer is seen to soon, and its deadlines looked after.
    pub(super) fn wake(&mut self, fleet: &Fleet) {
        if fleet.has_work() && !self.is_awake {
            let queue = self.queue.get_or_insert_with(Queue::open);
            // Where this fails, the next tick sends.
            self.is_awake = hostcalls::enqueue_shared_queue(queue.id, Some(b"!")).is_ok();
        }
        if fleet.is_waiting() {
            self.tick = Duration::from_micros(fleet.tick_us());
        }
    }

    /// Ticks slowly again once nobody waits.
    pub(super) fn rest(&mut self, fleet: &Fleet) {
        if !fleet.is_waiting() {
            self.tick = SLOW_TICK;
        }
    }

    /// How often it needs a tick.
    pub(super) fn tick(&self) -> Duration {
        self.tick
    }

    /// The turn has come.
    pub(super) fn take_turn(&mut self, queue_id: u32) {
        self.is_awake = false;
        let _ = hostcalls::dequeue_shared_queue(queue_id);
    }

    /// Whether this is the stream that is open now. What comes on another is late.
    pub(super) fn is_current(&self, stream: u32) -> bool {
        self.stream == Some(stream)
    }

    /// Does what `fleet` has to do on the stream.
    pub(super) fn flush(&mut self, fleet: &mut Fleet) {
        let Effects { close, open, send } = fleet.take_effects();
        if close || open {
            self.close();
        }
        if open {
            match hostcalls::open_grpc_stream(&grpc_service(&self.cluster), "redis", "pipe", Vec::new()) {
                Ok(stream) => self.stream = Some(stream),
                Err(_) => {
                    let detail =
                        format!("there is no cluster {:?} in Envoy, or no endpoint in it", self.cluster);
                    return fleet.closed(&detail, HostData.now_us());
                }
            }
        }
        if let (false, Some(stream)) = (send.is_empty(), self.stream)
            && hostcalls::send_grpc_stream_message(stream, Some(&send), false).is_err()
        {
            self.close();
            fleet.closed("the stream is gone", HostData.now_us());
        }
    }

    /// Lets go of the stream, closed from the other side or not: Envoy keeps it in mind until it is told.
    pub(super) fn close(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = hostcalls::cancel_grpc_stream(stream);
        }
    }
}

/// Envoy's `GrpcService` message that names a cluster: `{envoy_grpc: {cluster_name: …}}`.
///
/// Envoy takes a bare name too, but first tries to read it as this message; and a name whose bytes happen to be one,
/// with nothing in it that Envoy knows, makes Envoy abort. `app-redis` is such a name.
fn grpc_service(cluster: &str) -> String {
    // The configuration sees to it that the lengths are single ASCII characters.
    let length = |bytes: usize| char::from(u8::try_from(bytes).unwrap_or(0).min(127));
    format!("\n{}\n{}{cluster}", length(cluster.len() + 2), length(cluster.len()))
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.close();
        if let Some(queue) = self.queue.take() {
            FREE_QUEUES.with_borrow_mut(|free| free.push(queue.name));
        }
    }
}

impl Queue {
    /// A queue that calls the root context that runs now.
    fn open() -> Self {
        let free = FREE_QUEUES.with_borrow_mut(Vec::pop);
        let name = free.unwrap_or_else(|| format!("rate_limiter/{:016x}", super::random()));
        let id = hostcalls::register_shared_queue(&name).unwrap_or_default();
        Self { name, id }
    }
}
