//! Host calls as the limiter wants them: bytes, never strings, and no unexpected status where it matters.

use std::time::UNIX_EPOCH;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{MapType, Status};

use super::metrics;
use crate::request::Request;
use crate::store::{Conflict, SharedData};
use crate::time::{StoreTime, UnixTime, WallClock, whole_micros};

/// gRPC's names for a rejection and for a missing store. Envoy uses them for gRPC requests alone, which it tells apart
/// by itself.
const GRPC_RESOURCE_EXHAUSTED: i32 = 8;
const GRPC_UNAVAILABLE: i32 = 14;
/// The status that Envoy derives from the HTTP status.
const GRPC_BY_STATUS: i32 = -1;

/// WASI's number for the clock that does not step.
const CLOCK_MONOTONIC: u32 = 1;

/// A version that no record has: with it, `set` inserts a missing key and refuses a present one.
///
/// `set` without a version overwrites whatever is there, so it cannot tell who came first.
const NEVER_SET: u32 = u32::MAX;

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_send_local_response(
        status_code: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> Status;
}

/// The host's shared data and monotonic clock.
pub(super) struct HostData;

impl SharedData for HostData {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        let (value, version) = hostcalls::get_shared_data(key).ok()?;
        // An empty value has a version only.
        version.map(|version| (value.unwrap_or_default(), version))
    }

    fn changes(&self) -> Option<u64> {
        metrics::change_count()
    }

    fn announce_change(&self) {
        metrics::count_change();
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        let version = version.unwrap_or(NEVER_SET);
        hostcalls::set_shared_data(key, Some(value), Some(version)).map_err(|_| Conflict)
    }

    fn now(&self) -> StoreTime {
        let mut nanoseconds = 0;
        // SAFETY: the host writes eight bytes to the address of a `u64` that lives until the call returns. It
        // fails for unknown clocks only.
        unsafe { clock_time_get(CLOCK_MONOTONIC, 0, &mut nanoseconds) };
        StoreTime::from_micros(nanoseconds / 1_000)
    }
}

/// The host's wall clock at the moment `now`.
pub(super) fn wall_clock(now: StoreTime) -> WallClock {
    let time = hostcalls::get_current_time().unwrap_or(UNIX_EPOCH);
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    WallClock::new(UnixTime::from_micros(whole_micros(since_epoch)), now)
}

/// The request in effect, whose headers have not gone on yet.
pub(super) struct HostRequest;

impl Request for HostRequest {
    fn header(&self, name: &str) -> Option<Vec<u8>> {
        hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, name).ok().flatten()
    }

    fn source_address(&self) -> Option<Vec<u8>> {
        hostcalls::get_property(vec!["source", "address"]).ok().flatten()
    }
}

/// The upstream cluster of that request; `None` where Envoy answers it itself.
pub(super) fn cluster_name() -> Option<Vec<u8>> {
    let name = hostcalls::get_property(vec!["xds", "cluster_name"]).ok().flatten();
    name.filter(|name| !name.is_empty())
}

/// Sets a response header, replacing all values that it has.
pub(super) fn set_response_header(name: &str, value: &[u8]) {
    // A response that has gone away has no headers to set, and no client to tell.
    let _ = hostcalls::set_map_value_bytes(MapType::HttpResponseHeaders, name, Some(value));
}

/// Who answers, and why: `via_upstream` for a response of the upstream.
pub(super) fn response_code_details() -> Option<Vec<u8>> {
    hostcalls::get_property(vec!["response", "code_details"]).ok().flatten()
}

/// A header of the response whose headers have just come in.
pub(super) fn response_header(name: &str) -> Option<Vec<u8>> {
    hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name).ok().flatten()
}

/// Headers in the form that the host reads: a count, the lengths of names and values, then names and values,
/// each closed by a zero byte.
#[derive(Default)]
pub(super) struct HeaderBlock {
    count: u32,
    lengths: Vec<u8>,
    texts: Vec<u8>,
}

impl HeaderBlock {
    pub(super) fn push(&mut self, name: &str, value: &[u8]) {
        self.count += 1;
        for text in [name.as_bytes(), value] {
            self.lengths.extend((text.len() as u32).to_le_bytes());
            self.texts.extend_from_slice(text);
            self.texts.push(0);
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.lengths.len() + self.texts.len());
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(self.lengths);
        bytes.extend(self.texts);
        bytes
    }
}

/// Answers the request instead of its upstream. A gRPC request gets a gRPC status where `status` is an error, in the
/// form that gRPC clients read; Envoy does that.
pub(super) fn send_local_reply(status: u32, headers: HeaderBlock, body: &[u8]) {
    let headers = headers.into_bytes();
    let grpc_status = match status {
        429 => GRPC_RESOURCE_EXHAUSTED,
        503 => GRPC_UNAVAILABLE,
        _ => GRPC_BY_STATUS,
    };
    // SAFETY: the host copies both buffers before the call returns. The SDK's own functions are not used, as
    // they send either the HTTP status or the gRPC status, and would need to know which of them is wanted.
    unsafe {
        proxy_send_local_response(
            status,
            std::ptr::null(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        );
    }
}
