//! The proxy-wasm ABI of the host. Every call returns the status of the host, known or not.

use std::fmt;
use std::ptr;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        kind: u32,
        start: usize,
        most: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(kind: u32, start: usize, size: usize, data: *const u8, length: usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        version: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        version: u32,
    ) -> u32;
    fn proxy_register_shared_queue(name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_resolve_shared_queue(
        vm: *const u8,
        vm_size: usize,
        name: *const u8,
        name_size: usize,
        id: *mut u32,
    ) -> u32;
    fn proxy_dequeue_shared_queue(id: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_enqueue_shared_queue(id: u32, value: *const u8, value_size: usize) -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout: u32,
        token: *mut u32,
    ) -> u32;
    fn proxy_grpc_stream(
        service: *const u8,
        service_size: usize,
        name: *const u8,
        name_size: usize,
        method: *const u8,
        method_size: usize,
        metadata: *const u8,
        metadata_size: usize,
        token: *mut u32,
    ) -> u32;
    fn proxy_grpc_send(token: u32, message: *const u8, size: usize, end: u32) -> u32;
    fn proxy_grpc_cancel(token: u32) -> u32;
    fn proxy_grpc_close(token: u32) -> u32;
    fn proxy_set_effective_context(id: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, size: usize, id: *mut u32) -> u32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
}

/// The status of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u32);

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
pub(crate) enum Map {
    Request = 0,
    Response = 2,
    HttpCallResponse = 6,
}

#[derive(Clone, Copy)]
pub(crate) enum Buffer {
    RequestBody = 0,
    ResponseBody = 1,
    HttpCallResponseBody = 4,
    GrpcMessage = 5,
    PluginConfiguration = 7,
}

#[derive(Clone, Copy)]
pub(crate) enum Metric {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

pub(crate) const WALL: u32 = 0;
pub(crate) const MONOTONIC: u32 = 1;

/// Runs a call that returns bytes in memory from `proxy_on_memory_allocate`.
fn bytes(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Bytes {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    let status = Status(call(&mut data, &mut size));
    // SAFETY: the host returns memory that our allocator gave it, with exactly this size.
    let bytes = match data.is_null() {
        true => Vec::new(),
        false => unsafe { Vec::from_raw_parts(data, size, size) },
    };
    if status == Status::OK { Ok(bytes) } else { Err(status) }
}

/// Runs a call that writes a number.
fn number<T: Default>(call: impl FnOnce(*mut T) -> u32) -> Result<T, Status> {
    let mut value = T::default();
    match Status(call(&mut value)) {
        Status::OK => Ok(value),
        status => Err(status),
    }
}

// SAFETY, of every call below: the host reads and writes only within the pointers and sizes, and only until
// the call returns; each names a live buffer of that size.

pub(crate) fn host_time() -> Result<u64, Status> {
    number(|time| unsafe { proxy_get_current_time_nanoseconds(time) })
}

/// WASI's clock, or its error number.
pub(crate) fn clock(clock: u32) -> Result<u64, u16> {
    let mut time = 0;
    match unsafe { clock_time_get(clock, 0, &mut time) } {
        0 => Ok(time),
        errno => Err(errno),
    }
}

pub(crate) fn log_level() -> Result<u32, Status> {
    number(|level| unsafe { proxy_get_log_level(level) })
}

pub(crate) fn set_tick_period(milliseconds: u32) -> Status {
    Status(unsafe { proxy_set_tick_period_milliseconds(milliseconds) })
}

pub(crate) fn buffer(kind: Buffer, start: usize, most: usize) -> Bytes {
    bytes(|data, size| unsafe { proxy_get_buffer_bytes(kind as u32, start, most, data, size) })
}

pub(crate) fn set_buffer(kind: Buffer, start: usize, size: usize, value: &[u8]) -> Status {
    Status(unsafe { proxy_set_buffer_bytes(kind as u32, start, size, value.as_ptr(), value.len()) })
}

pub(crate) fn header(map: Map, name: &str) -> Bytes {
    bytes(|data, size| unsafe {
        proxy_get_header_map_value(map as u32, name.as_ptr(), name.len(), data, size)
    })
}

pub(crate) fn replace_header(map: Map, name: &str, value: &[u8]) -> Status {
    Status(unsafe {
        proxy_replace_header_map_value(map as u32, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

pub(crate) fn add_header(map: Map, name: &str, value: &[u8]) -> Status {
    Status(unsafe {
        proxy_add_header_map_value(map as u32, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
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
    Status(unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), version) })
}

/// [`set_shared`] with a value that lies outside the filter's memory.
pub(crate) fn set_shared_out_of_bounds(key: &str) -> Status {
    // The host has to check the bounds.
    Status(unsafe {
        proxy_set_shared_data(key.as_ptr(), key.len(), ptr::without_provenance(0xffff_0000), 4096, 0)
    })
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
    Status(unsafe { proxy_enqueue_shared_queue(id, value.as_ptr(), value.len()) })
}

/// Continues the request in effect.
pub(crate) fn continue_request() -> Status {
    Status(unsafe { proxy_continue_stream(0) })
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
    Status(unsafe {
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
    })
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
    Status(unsafe { proxy_grpc_send(token, message.as_ptr(), message.len(), 0) })
}

pub(crate) fn grpc_cancel(token: u32) -> Status {
    Status(unsafe { proxy_grpc_cancel(token) })
}

pub(crate) fn grpc_close(token: u32) -> Status {
    Status(unsafe { proxy_grpc_close(token) })
}

pub(crate) fn set_effective_context(id: u32) -> Status {
    Status(unsafe { proxy_set_effective_context(id) })
}

pub(crate) fn define_metric(kind: Metric, name: &str) -> Result<u32, Status> {
    number(|id| unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), id) })
}

pub(crate) fn metric(id: u32) -> Result<u64, Status> {
    number(|value| unsafe { proxy_get_metric(id, value) })
}

pub(crate) fn record_metric(id: u32, value: u64) -> Status {
    Status(unsafe { proxy_record_metric(id, value) })
}

pub(crate) fn increment_metric(id: u32, offset: i64) -> Status {
    Status(unsafe { proxy_increment_metric(id, offset) })
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
