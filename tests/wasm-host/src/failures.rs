//! Scripted failures: which host call goes wrong, when, and how.

/// A status of the proxy-wasm ABI.
pub mod status {
    #![allow(missing_docs, reason = "the names are the ABI's")]

    pub const OK: u32 = 0;
    pub const NOT_FOUND: u32 = 1;
    pub const BAD_ARGUMENT: u32 = 2;
    pub const SERIALIZATION_FAILURE: u32 = 3;
    pub const PARSE_FAILURE: u32 = 4;
    pub const BAD_EXPRESSION: u32 = 5;
    pub const INVALID_MEMORY_ACCESS: u32 = 6;
    pub const EMPTY: u32 = 7;
    pub const CAS_MISMATCH: u32 = 8;
    pub const RESULT_MISMATCH: u32 = 9;
    pub const INTERNAL_FAILURE: u32 = 10;
    pub const BROKEN_CONNECTION: u32 = 11;
    pub const UNIMPLEMENTED: u32 = 12;

    /// Every one that is no success.
    pub const FAILURES: std::ops::RangeInclusive<u32> = NOT_FOUND..=UNIMPLEMENTED;
}

/// What Envoy 1.40 can answer to each host call of the filter but success, by its source (`exports.cc` of
/// proxy-wasm-cpp-host, `context.cc` of Envoy). None of these may ever trap the filter.
///
/// Left out: `InvalidMemoryAccess`, which says that the filter itself has named memory that is not its own; and a
/// header map that is out of reach, as the filter reads and writes headers in their own callbacks alone.
pub const ENVOY_ANSWERS: &[(&str, &[u32])] = &[
    ("proxy_log", &[]),
    ("proxy_get_log_level", &[]),
    ("proxy_get_current_time_nanoseconds", &[]),
    ("proxy_set_tick_period_milliseconds", &[]),
    // `BadArgument` for a request that is gone, which the host says by itself. The root context is always there.
    ("proxy_set_effective_context", &[]),
    ("proxy_continue_stream", &[]),
    ("proxy_send_local_response", &[]),
    ("proxy_get_property", &[status::NOT_FOUND, status::SERIALIZATION_FAILURE, status::INTERNAL_FAILURE]),
    ("proxy_get_header_map_value", &[status::NOT_FOUND]),
    ("proxy_replace_header_map_value", &[]),
    ("proxy_get_buffer_bytes", &[status::NOT_FOUND]),
    ("proxy_get_shared_data", &[status::NOT_FOUND]),
    ("proxy_set_shared_data", &[status::CAS_MISMATCH]),
    ("proxy_register_shared_queue", &[]),
    ("proxy_enqueue_shared_queue", &[status::NOT_FOUND]),
    ("proxy_dequeue_shared_queue", &[status::NOT_FOUND, status::EMPTY]),
    ("proxy_define_metric", &[]),
    ("proxy_increment_metric", &[status::NOT_FOUND, status::BAD_ARGUMENT]),
    ("proxy_record_metric", &[status::NOT_FOUND]),
    ("proxy_get_metric", &[status::NOT_FOUND, status::BAD_ARGUMENT]),
    ("proxy_http_call", &[status::BAD_ARGUMENT, status::INTERNAL_FAILURE]),
    ("proxy_grpc_stream", &[status::PARSE_FAILURE, status::INTERNAL_FAILURE]),
    ("proxy_grpc_send", &[status::BAD_ARGUMENT, status::NOT_FOUND]),
    ("proxy_grpc_cancel", &[status::NOT_FOUND]),
];

/// Host calls that hand bytes over, which may be fewer or others than expected.
pub const HAND_OVER: &[&str] = &[
    "proxy_get_property",
    "proxy_get_header_map_value",
    "proxy_get_buffer_bytes",
    "proxy_get_shared_data",
    "proxy_dequeue_shared_queue",
];

/// What a host call does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Does nothing and returns this status.
    Status(u32),
    /// Does its work, and hands over half of the bytes that it should.
    Short,
    /// Does its work, and hands over as many bytes, all of them wrong.
    Garbage,
}

/// One host call that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The host call, by the name that it is imported by.
    pub call: &'static str,
    /// How many calls of it go well before.
    pub after: u32,
    /// How many go wrong then.
    pub times: u32,
    pub act: Act,
}

impl Failure {
    /// The next call of that name returns `status`.
    pub fn status(call: &'static str, status: u32) -> Self {
        Self { call, after: 0, times: 1, act: Act::Status(status) }
    }

    /// Whether it concerns this call of `call`; counts it if so.
    pub(crate) fn strikes(&mut self, call: &str) -> Option<Act> {
        if self.call != call {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.act)
    }
}
