//! Scripted failures: which host call fails, when, and how.

/// A status of the proxy-wasm ABI.
pub mod status {
    pub const OK: u32 = 0;
    pub const NOT_FOUND: u32 = 1;
    pub const BAD_ARGUMENT: u32 = 2;
    pub const SERIALIZATION_FAILURE: u32 = 3;
    pub const PARSE_FAILURE: u32 = 4;
    pub const INVALID_MEMORY_ACCESS: u32 = 6;
    pub const EMPTY: u32 = 7;
    pub const CAS_MISMATCH: u32 = 8;
    pub const INTERNAL_FAILURE: u32 = 10;
    pub const UNIMPLEMENTED: u32 = 12;

    /// All statuses except `OK`.
    pub const FAILURES: std::ops::RangeInclusive<u32> = NOT_FOUND..=UNIMPLEMENTED;
}

/// The failures that Envoy 1.40 can return for each host call of the filter, by its source (`exports.cc` of
/// proxy-wasm-cpp-host, `context.cc` of Envoy). None of these may trap the filter.
///
/// Omitted: `InvalidMemoryAccess`, which means that the filter has passed an invalid address; and the status for a
/// header map that is not available, because the filter reads and writes headers only in their own callbacks.
pub const ENVOY_FAILURES: &[(&str, &[u32])] = &[
    ("proxy_log", &[]),
    ("proxy_get_log_level", &[]),
    ("proxy_get_current_time_nanoseconds", &[]),
    ("proxy_set_tick_period_milliseconds", &[]),
    // The host itself returns `BadArgument` for a request that has ended. The root context always exists.
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

/// Host calls that return bytes, of which there may be too few or wrong ones.
const RETURNS_BYTES: &[&str] = &[
    "proxy_get_property",
    "proxy_get_header_map_value",
    "proxy_get_buffer_bytes",
    "proxy_get_shared_data",
    "proxy_dequeue_shared_queue",
];

/// All ways in which a host call can fail in Envoy, or its bytes be damaged.
pub fn acts(call: &str, statuses: &[u32]) -> Vec<Act> {
    let spoiled: &[Act] = if RETURNS_BYTES.contains(&call) { &[Act::Short, Act::Garbage] } else { &[] };
    statuses.iter().map(|status| Act::Status(*status)).chain(spoiled.iter().copied()).collect()
}

/// How a host call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It does nothing and returns this status.
    Status(u32),
    /// It returns half of the bytes.
    Short,
    /// It returns the right number of bytes, all of them wrong.
    Garbage,
}

/// One host call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The name of the import.
    pub call: &'static str,
    /// How many calls succeed before.
    pub after: u32,
    /// How many calls then fail.
    pub times: u32,
    pub act: Act,
}

impl Failure {
    /// How this call of `call` fails, if it does; counts the call.
    pub(crate) fn apply(&mut self, call: &str) -> Option<Act> {
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
