//! The stream to Redis: one for each worker, through an Envoy cluster.
//!
//! Commands are gathered and sent together, in the next turn of the worker's event loop: a message on a shared queue
//! that only this worker reads causes that turn. One message for many requests is what makes Redis cheap.

use std::time::Duration;

use proxy_wasm::hostcalls;

use super::bridge;
use super::turn::NextTurn;
use crate::limiter::Limiter;
use crate::redis_limiter::RedisLimiter;
use crate::store::redis::outbox::StreamAction;
use crate::time::StoreTime;

/// The stream, and how to be called when there is something to send.
pub(super) struct RedisStream {
    cluster: String,
    stream: Option<u32>,
    next_turn: NextTurn,
    tick_period: Duration,
    /// When its next tick is due; [`StoreTime::MAX`] where none is.
    next_tick: StoreTime,
}

impl RedisStream {
    /// A stream to that cluster, opened when there is something to send.
    pub(super) fn new(cluster: String) -> Self {
        Self {
            cluster,
            stream: None,
            next_turn: NextTurn::default(),
            tick_period: Duration::MAX,
            next_tick: StoreTime::MAX,
        }
    }

    /// Schedules the next turn if `redis` has output, and a tick for its next deadline.
    pub(super) fn wake(&mut self, redis: &RedisLimiter, now: StoreTime) {
        if redis.has_output() {
            self.next_turn.call();
        }
        if let Some(timeout) = redis.poll_timeout().filter(|timeout| *timeout < self.next_tick) {
            self.next_tick = timeout;
            // Envoy counts whole milliseconds.
            let wait_ms = timeout.since(now).as_micros().div_ceil(1_000).max(1);
            self.tick_period = Duration::from_millis(u64::try_from(wait_ms).unwrap_or(u64::MAX));
        }
    }

    /// The tick that was awaited has come.
    pub(super) fn note_tick(&mut self) {
        self.next_tick = StoreTime::MAX;
    }

    /// How often it needs a tick.
    pub(super) fn tick_period(&self) -> Duration {
        self.tick_period
    }

    /// Whether `queue` is this stream's.
    pub(super) fn take_turn(&mut self, queue: u32) -> bool {
        self.next_turn.take(queue)
    }

    /// Whether this is the stream that is open now. What comes on another is late.
    pub(super) fn is_current(&self, stream: u32) -> bool {
        self.stream == Some(stream)
    }

    /// Does something on the stream.
    pub(super) fn carry_out(&mut self, action: StreamAction, limiter: &mut Limiter, now: StoreTime) {
        match action {
            StreamAction::Close => self.close(),
            StreamAction::Open => {
                self.close();
                if bridge::is_in_this_vm() {
                    let detail =
                        "the limiter and redis_bridge have one vm_id, wanted a vm_id of its own for each";
                    return limiter.handle_close(detail, now);
                }
                let service = grpc_service(&self.cluster);
                self.stream = hostcalls::open_grpc_stream(&service, "redis", "pipe", Vec::new()).ok();
                if self.stream.is_none() {
                    let detail =
                        format!("there is no cluster {:?} in Envoy, or no endpoint in it", self.cluster);
                    limiter.handle_close(&detail, now);
                }
            }
            StreamAction::Send(bytes) => {
                if let Some(stream) = self.stream
                    && hostcalls::send_grpc_stream_message(stream, Some(&bytes), false).is_err()
                {
                    self.close();
                    limiter.handle_close("the stream is gone", now);
                }
            }
        }
    }

    /// Cancels the stream, closed from the other side or not: until then Envoy keeps it.
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
    // The configuration allows no name that is too long for this: each length is one ASCII character.
    let length = |bytes: usize| char::from(u8::try_from(bytes).unwrap_or(0).min(127));
    format!("\n{}\n{}{cluster}", length(cluster.len() + 2), length(cluster.len()))
}

impl Drop for RedisStream {
    fn drop(&mut self) {
        self.close();
    }
}
