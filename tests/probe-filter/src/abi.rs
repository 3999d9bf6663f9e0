//! The proxy-wasm ABI of the host. Every call returns the status of the host, known or not.

use std::fmt;
use std::ptr;

/// The start of bytes that the host reads.
type Ptr = *const u8;

/// Where the host writes the start and the length of bytes from `proxy_on_memory_allocate`.
type OutPtr = *mut *mut u8;
type OutLength = *mut usize;

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
}

// These have wrappers below. A nameless argument is the length of the bytes before it.
#[link(wasm_import_module = "env")]
unsafe extern "C" {
    safe fn proxy_get_current_time_nanoseconds(time: &mut u64) -> Status;
    safe fn proxy_get_log_level(level: &mut u32) -> Status;
    safe fn proxy_get_metric(id: u32, value: &mut u64) -> Status;
    safe fn proxy_continue_stream(stream: u32) -> Status;
    fn proxy_define_metric(kind: Metric, name: Ptr, _: usize, id: &mut u32) -> Status;
    fn proxy_get_buffer_bytes(kind: Buffer, start: usize, most: usize, data: OutPtr, _: OutLength) -> Status;
    fn proxy_set_buffer_bytes(kind: Buffer, start: usize, size: usize, data: Ptr, _: usize) -> Status;
    fn proxy_get_header_map_value(map: Map, name: Ptr, _: usize, data: OutPtr, _: OutLength) -> Status;
    fn proxy_replace_header_map_value(map: Map, name: Ptr, _: usize, value: Ptr, _: usize) -> Status;
    fn proxy_add_header_map_value(map: Map, name: Ptr, _: usize, value: Ptr, _: usize) -> Status;
    fn proxy_get_property(path: Ptr, _: usize, data: OutPtr, _: OutLength) -> Status;
    fn proxy_get_shared_data(key: Ptr, _: usize, data: OutPtr, _: OutLength, version: &mut u32) -> Status;
    fn proxy_set_shared_data(key: Ptr, _: usize, value: Ptr, _: usize, version: u32) -> Status;
    fn proxy_register_shared_queue(name: Ptr, _: usize, id: &mut u32) -> Status;
    fn proxy_resolve_shared_queue(vm: Ptr, _: usize, name: Ptr, _: usize, id: &mut u32) -> Status;
    fn proxy_dequeue_shared_queue(id: u32, data: OutPtr, _: OutLength) -> Status;
    fn proxy_enqueue_shared_queue(id: u32, value: Ptr, _: usize) -> Status;
    fn proxy_send_local_response(
        status: u32,
        details: Ptr,
        _: usize,
        body: Ptr,
        _: usize,
        headers: Ptr,
        _: usize,
        grpc_status: i32,
    ) -> Status;
    fn proxy_http_call(
        cluster: Ptr,
        _: usize,
        headers: Ptr,
        _: usize,
        body: Ptr,
        _: usize,
        trailers: Ptr,
        _: usize,
        timeout_ms: u32,
        token: &mut u32,
    ) -> Status;
    fn proxy_grpc_stream(
        service: Ptr,
        _: usize,
        name: Ptr,
        _: usize,
        method: Ptr,
        _: usize,
        metadata: Ptr,
        _: usize,
        token: &mut u32,
    ) -> Status;
    fn proxy_grpc_send(token: u32, message: Ptr, _: usize, end: u32) -> Status;
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
fn bytes(call: impl FnOnce(OutPtr, OutLength) -> Status) -> Bytes {
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

// SAFETY, of every call below: the host reads and writes only within the pointers and sizes, and only until
// the call returns; each names a live buffer of that size.

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
    bytes(|data, size| unsafe { proxy_get_buffer_bytes(kind, start, most, data, size) })
}

pub(crate) fn set_buffer(kind: Buffer, start: usize, size: usize, value: &[u8]) -> Status {
    unsafe { proxy_set_buffer_bytes(kind, start, size, value.as_ptr(), value.len()) }
}

pub(crate) fn header(map: Map, name: &str) -> Bytes {
    bytes(|data, size| unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), data, size) })
}

pub(crate) fn replace_header(map: Map, name: &str, value: &[u8]) -> Status {
    unsafe { proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) }
}

pub(crate) fn add_header(map: Map, name: &str, value: &[u8]) -> Status {
    unsafe { proxy_add_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) }
}

pub(crate) fn property(path: &[&str]) -> Bytes {
    let path = path.join("\0");
    bytes(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// A record and its version.
pub(crate) fn shared(key: &str) -> Result<(Vec<u8>, u32), Status> {
    let mut version = 0;
    let value = bytes(|data, size| unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &mut version)
    })?;
    Ok((value, version))
}

pub(crate) fn set_shared(key: &str, value: &[u8], version: u32) -> Status {
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), version) }
}

/// [`set_shared`] with a value that lies outside the filter's memory.
pub(crate) fn set_shared_out_of_bounds(key: &str) -> Status {
    // The host has to check the bounds.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), ptr::without_provenance(0xffff_0000), 4096, 0) }
}

pub(crate) fn register_queue(name: &str) -> Result<u32, Status> {
    number(|id| unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), id) })
}

pub(crate) fn resolve_queue(vm: &str, name: &str) -> Result<u32, Status> {
    number(|id| unsafe { proxy_resolve_shared_queue(vm.as_ptr(), vm.len(), name.as_ptr(), name.len(), id) })
}

pub(crate) fn dequeue(id: u32) -> Bytes {
    bytes(|data, size| unsafe { proxy_dequeue_shared_queue(id, data, size) })
}

pub(crate) fn enqueue(id: u32, value: &[u8]) -> Status {
    unsafe { proxy_enqueue_shared_queue(id, value.as_ptr(), value.len()) }
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
    send_local_reply_raw(status, &pairs(headers), body, grpc_status)
}

/// [`send_local_reply`] with a header block in the host's own form.
pub(crate) fn send_local_reply_raw(status: u32, headers: &[u8], body: &[u8], grpc_status: i32) -> Status {
    unsafe {
        proxy_send_local_response(
            status,
            ptr::null(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        )
    }
}

pub(crate) fn http_call(cluster: &str, headers: &[(&str, &[u8])], timeout_ms: u32) -> Result<u32, Status> {
    let (headers, trailers) = (pairs(headers), pairs(&[]));
    number(|token| unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            ptr::null(),
            0,
            trailers.as_ptr(),
            trailers.len(),
            timeout_ms,
            token,
        )
    })
}

pub(crate) fn grpc_stream(service: &[u8], name: &str, method: &str) -> Result<u32, Status> {
    let metadata = pairs(&[]);
    number(|token| unsafe {
        proxy_grpc_stream(
            service.as_ptr(),
            service.len(),
            name.as_ptr(),
            name.len(),
            method.as_ptr(),
            method.len(),
            metadata.as_ptr(),
            metadata.len(),
            token,
        )
    })
}

pub(crate) fn grpc_send(token: u32, message: &[u8]) -> Status {
    unsafe { proxy_grpc_send(token, message.as_ptr(), message.len(), 0) }
}

pub(crate) fn define_metric(kind: Metric, name: &str) -> Result<u32, Status> {
    number(|id| unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), id) })
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
