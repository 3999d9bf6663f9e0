//! The proxy-wasm ABI of the host. Every call returns the status of the host, known or not.

use std::fmt;
use std::ptr;

/// Where the host writes the start of bytes from `proxy_on_memory_allocate`.
type OutStart<'a> = &'a mut *mut u8;
type OutLength<'a> = &'a mut usize;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    #[link_name = "proxy_set_tick_period_milliseconds"]
    pub(crate) safe fn set_tick_period(milliseconds: u32) -> Status;
    #[link_name = "proxy_set_effective_context"]
    pub(crate) safe fn set_effective_context(id: u32) -> Status;
    #[link_name = "proxy_grpc_cancel"]
    pub(crate) safe fn grpc_cancel(token: u32) -> Status;
    #[link_name = "proxy_grpc_close"]
    pub(crate) safe fn grpc_close(token: u32) -> Status;
    #[link_name = "proxy_record_metric"]
    pub(crate) safe fn record_metric(id: u32, value: u64) -> Status;
    #[link_name = "proxy_increment_metric"]
    pub(crate) safe fn increment_metric(id: u32, offset: i64) -> Status;
    // These have wrappers below.
    safe fn proxy_get_current_time_nanoseconds(time: &mut u64) -> Status;
    safe fn proxy_get_log_level(level: &mut u32) -> Status;
    safe fn proxy_get_metric(id: u32, value: &mut u64) -> Status;
    safe fn proxy_continue_stream(stream: u32) -> Status;
}

/// Declares functions of the host that read bytes, with a safe function for each. The names between the semicolons are
/// arguments with bytes, which the host receives as start and length.
macro_rules! functions_with_bytes {
    ($($name:ident = $of_host:ident(
        $($first:ident: $first_type:ty),*; $($bytes:ident),*; $($last:ident: $last_type:ty),*
    );)*) => {
        #[link(wasm_import_module = "env")]
        unsafe extern "C" {
            $(fn $of_host(
                $($first: $first_type,)* $($bytes: *const u8, _: usize,)* $($last: $last_type),*
            ) -> Status;)*
        }

        $(pub(crate) fn $name(
            $($first: $first_type,)* $($bytes: impl AsRef<[u8]>,)* $($last: $last_type),*
        ) -> Status {
            $(let $bytes = $bytes.as_ref();)*
            // SAFETY: the host reads only these bytes, and only until the call returns.
            unsafe { $of_host($($first,)* $($bytes.as_ptr(), $bytes.len(),)* $($last),*) }
        })*
    };
}

functions_with_bytes! {
    get_buffer = proxy_get_buffer_bytes(kind: Buffer, start: usize, most: usize;; data: OutStart, size: OutLength);
    set_buffer = proxy_set_buffer_bytes(kind: Buffer, start: usize, size: usize; value;);
    get_header = proxy_get_header_map_value(map: Map; name; data: OutStart, size: OutLength);
    replace_header = proxy_replace_header_map_value(map: Map; name, value;);
    add_header = proxy_add_header_map_value(map: Map; name, value;);
    get_property = proxy_get_property(; path; data: OutStart, size: OutLength);
    get_shared = proxy_get_shared_data(; key; data: OutStart, size: OutLength, version: &mut u32);
    set_shared = proxy_set_shared_data(; key, value; version: u32);
    new_queue = proxy_register_shared_queue(; name; id: &mut u32);
    find_queue = proxy_resolve_shared_queue(; vm, name; id: &mut u32);
    take_message = proxy_dequeue_shared_queue(id: u32;; data: OutStart, size: OutLength);
    enqueue = proxy_enqueue_shared_queue(id: u32; value;);
    new_metric = proxy_define_metric(kind: Metric; name; id: &mut u32);
    send_response = proxy_send_local_response(status: u32; details, body, headers; grpc_status: i32);
    new_http_call = proxy_http_call(; cluster, headers, body, trailers; timeout_ms: u32, token: &mut u32);
    new_grpc_stream = proxy_grpc_stream(; service, name, method, metadata; token: &mut u32);
    grpc_send = proxy_grpc_send(token: u32; message; end_of_stream: u32);
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    safe fn clock_time_get(clock: u32, precision: u64, time: &mut u64) -> u16;
}

/// The status of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Status(u32);

impl Status {
    pub(crate) const OK: Self = Self(0);
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 13] = [
            "ok",
            "not-found",
            "bad-argument",
            "serialization-failure",
            "parse-failure",
            "bad-expression",
            "invalid-memory-access",
            "empty",
            "cas-mismatch",
            "result-mismatch",
            "internal-failure",
            "broken-connection",
            "unimplemented",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "status-{}", self.0),
        }
    }
}

/// Bytes from the host, or the status of an error.
pub(crate) type Bytes = Result<Vec<u8>, Status>;

/// Bytes as text, with other bytes as `\xff`; an error as its status.
pub(crate) fn shown(bytes: &Bytes) -> String {
    match bytes {
        Ok(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Err(status) => status.to_string(),
    }
}

/// The owner of the headers.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Map {
    Request = 0,
    Response = 2,
    HttpCallResponse = 6,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Buffer {
    RequestBody = 0,
    ResponseBody = 1,
    HttpCallResponseBody = 4,
    GrpcMessage = 5,
    PluginConfiguration = 7,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Metric {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

pub(crate) const WALL: u32 = 0;
pub(crate) const MONOTONIC: u32 = 1;

/// Runs a call that returns bytes in memory from `proxy_on_memory_allocate`.
fn bytes(call: impl FnOnce(OutStart, OutLength) -> Status) -> Bytes {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    let status = call(&mut data, &mut size);
    // SAFETY: the host returns memory that our allocator gave it, with exactly this size.
    let bytes = match data.is_null() {
        true => Vec::new(),
        false => unsafe { Vec::from_raw_parts(data, size, size) },
    };
    if status == Status::OK { Ok(bytes) } else { Err(status) }
}

/// Runs a call that writes a number.
fn number<T: Default>(call: impl FnOnce(&mut T) -> Status) -> Result<T, Status> {
    let mut value = T::default();
    match call(&mut value) {
        Status::OK => Ok(value),
        status => Err(status),
    }
}

pub(crate) fn host_time() -> Result<u64, Status> {
    number(|time| proxy_get_current_time_nanoseconds(time))
}

/// WASI's clock, or its error number.
pub(crate) fn clock(clock: u32) -> Result<u64, u16> {
    let mut time = 0;
    match clock_time_get(clock, 0, &mut time) {
        0 => Ok(time),
        errno => Err(errno),
    }
}

pub(crate) fn log_level() -> Result<u32, Status> {
    number(|level| proxy_get_log_level(level))
}

pub(crate) fn buffer(kind: Buffer, start: usize, most: usize) -> Bytes {
    bytes(|data, size| get_buffer(kind, start, most, data, size))
}

pub(crate) fn header(map: Map, name: &str) -> Bytes {
    bytes(|data, size| get_header(map, name, data, size))
}

pub(crate) fn property(path: &[&str]) -> Bytes {
    bytes(|data, size| get_property(path.join("\0"), data, size))
}

/// A record and its version.
pub(crate) fn shared(key: &str) -> Result<(Vec<u8>, u32), Status> {
    let mut version = 0;
    let value = bytes(|data, size| get_shared(key, data, size, &mut version))?;
    Ok((value, version))
}

/// [`set_shared`] with a value that lies outside the filter's memory.
pub(crate) fn set_shared_out_of_bounds(key: &str) -> Status {
    // SAFETY: the host has to check the bounds.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), ptr::without_provenance(0xffff_0000), 4096, 0) }
}

pub(crate) fn register_queue(name: &str) -> Result<u32, Status> {
    number(|id| new_queue(name, id))
}

pub(crate) fn resolve_queue(vm: &str, name: &str) -> Result<u32, Status> {
    number(|id| find_queue(vm, name, id))
}

pub(crate) fn dequeue(id: u32) -> Bytes {
    bytes(|data, size| take_message(id, data, size))
}

/// Continues the request in effect.
pub(crate) fn continue_request() -> Status {
    proxy_continue_stream(0)
}

/// No gRPC status of its own.
pub(crate) const NO_GRPC_STATUS: i32 = -1;

pub(crate) fn send_local_reply(
    status: u32,
    headers: &[(&str, &[u8])],
    body: &[u8],
    grpc_status: i32,
) -> Status {
    send_response(status, "", body, pairs(headers), grpc_status)
}

pub(crate) fn http_call(cluster: &str, headers: &[(&str, &[u8])], timeout_ms: u32) -> Result<u32, Status> {
    number(|token| new_http_call(cluster, pairs(headers), "", pairs(&[]), timeout_ms, token))
}

pub(crate) fn grpc_stream(service: &[u8], name: &str, method: &str) -> Result<u32, Status> {
    number(|token| new_grpc_stream(service, name, method, pairs(&[]), token))
}

pub(crate) fn define_metric(kind: Metric, name: &str) -> Result<u32, Status> {
    number(|id| new_metric(kind, name, id))
}

pub(crate) fn metric(id: u32) -> Result<u64, Status> {
    number(|value| proxy_get_metric(id, value))
}

/// Names and values as the host reads them: a count, the lengths, then each text with a zero byte after it.
fn pairs(headers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = u32::try_from(headers.len()).unwrap_or(0).to_le_bytes().to_vec();
    for (name, value) in headers {
        for size in [name.len(), value.len()] {
            bytes.extend(u32::try_from(size).unwrap_or(0).to_le_bytes());
        }
    }
    for (name, value) in headers {
        for text in [name.as_bytes(), value] {
            bytes.extend_from_slice(text);
            bytes.push(0);
        }
    }
    bytes
}
