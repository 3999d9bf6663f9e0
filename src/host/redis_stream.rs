//! The stream to Redis: one for each worker, through an Envoy cluster.
//!
//! What requests ask is gathered and goes out together, in the next turn of the worker's event loop: a message on a
//! shared queue that only this worker reads brings that turn about. One message for many requests is what makes Redis
//! cheap.

use std::time::Duration;

use proxy_wasm::hostcalls;

use super::hostcalls::HostData;
use super::turn::NextTurn;
use crate::health_sync::POLL_US;
use crate::limiter::Limiter;
use crate::redis_limiter::RedisLimiter;
use crate::store::SharedData;
use crate::store::redis::session::Effects;

/// Between ticks otherwise, at most.
const SLOW_TICK: Duration = Duration::from_micros(POLL_US);

/// The stream, and how to be called when there is something to send.
pub(super) struct RedisStream {
    cluster: String,
    stream: Option<u32>,
    next_turn: NextTurn,
    tick: Duration,
}

impl RedisStream {
    /// A stream to that cluster, opened when there is something to send.
    pub(super) fn new(cluster: String) -> Self {
        Self { cluster, stream: None, next_turn: NextTurn::default(), tick: SLOW_TICK }
    }

    /// Sees to it that what `redis` has to send and to answer is seen to soon, and its deadlines looked after.
    pub(super) fn wake(&mut self, redis: &RedisLimiter) {
        if redis.has_work() {
            self.next_turn.call();
        }
        if redis.is_waiting() {
            self.tick = Duration::from_micros(redis.tick_us());
        }
    }

    /// Ticks slowly again once no request waits.
    pub(super) fn rest(&mut self, redis: &RedisLimiter) {
        if !redis.is_waiting() {
            self.tick = SLOW_TICK;
        }
    }

    /// How often it needs a tick.
    pub(super) fn tick(&self) -> Duration {
        self.tick
    }

    /// Whether it is its turn that has come.
    pub(super) fn take_turn(&mut self, queue: u32) -> bool {
        self.next_turn.take(queue)
    }

    /// Whether this is the stream that is open now. What comes on another is late.
    pub(super) fn is_current(&self, stream: u32) -> bool {
        self.stream == Some(stream)
    }

    /// Does what `limiter` has to do on the stream.
    pub(super) fn flush(&mut self, limiter: &mut Limiter) {
        let Effects { close, open, send } = limiter.take_effects();
        if close || open {
            self.close();
        }
        if open {
            match hostcalls::open_grpc_stream(&grpc_service(&self.cluster), "redis", "pipe", Vec::new()) {
                Ok(stream) => self.stream = Some(stream),
                Err(_) => {
                    let detail =
                        format!("there is no cluster {:?} in Envoy, or no endpoint in it", self.cluster);
                    return limiter.handle_close(&detail, HostData.now_us());
                }
            }
        }
        if let (false, Some(stream)) = (send.is_empty(), self.stream)
            && hostcalls::send_grpc_stream_message(stream, Some(&send), false).is_err()
        {
            self.close();
            limiter.handle_close("the stream is gone", HostData.now_us());
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

impl Drop for RedisStream {
    fn drop(&mut self) {
        self.close();
    }
}
