//! The other end of the stream to Redis: an upstream filter between it and the TCP connection.
//!
//! Runs in a VM of its own (`root_id` and `vm_id` `redis_bridge`): the limiter's could not be entered again while it
//! sends. Knows nothing of Redis.

use std::cell::Cell;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType};

use super::hostcalls::set_response_header;
use crate::store::redis::frame::{self, Unframer};

thread_local! {
    /// How many bridges this VM has.
    static BRIDGES: Cell<usize> = const { Cell::new(0) };
}

/// Whether a bridge runs in this VM, against the rule.
pub(super) fn is_in_this_vm() -> bool {
    BRIDGES.get() > 0
}

/// The plugin's root context.
pub(super) struct BridgeRoot(());

impl BridgeRoot {
    pub(super) fn new() -> Self {
        BRIDGES.set(BRIDGES.get() + 1);
        Self(())
    }
}

impl Drop for BridgeRoot {
    fn drop(&mut self) {
        BRIDGES.set(BRIDGES.get().saturating_sub(1));
    }
}

impl Context for BridgeRoot {}

impl RootContext for BridgeRoot {
    fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Bridge::default()))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One stream.
#[derive(Default)]
struct Bridge {
    to_redis: Unframer,
    plain: Vec<u8>,
}

impl Context for Bridge {}

impl HttpContext for Bridge {
    fn on_http_request_body(&mut self, size: usize, _end_of_stream: bool) -> Action {
        let framed = hostcalls::get_buffer(BufferType::HttpRequestBody, 0, size).ok().flatten();
        self.plain.clear();
        if self.to_redis.unframe(&framed.unwrap_or_default(), &mut self.plain).is_err() {
            // The sender is not the limiter. Nothing goes on, and it waits in vain.
            self.plain.clear();
        }
        let _ = hostcalls::set_buffer(BufferType::HttpRequestBody, 0, size, &self.plain);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        // Envoy's gRPC client hangs up on anything else.
        set_response_header("content-type", b"application/grpc");
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, _end_of_stream: bool) -> Action {
        if let Ok(length @ 1..) = u32::try_from(size) {
            let _ = hostcalls::set_buffer(BufferType::HttpResponseBody, 0, 0, &frame::header(length));
        }
        Action::Continue
    }
}
