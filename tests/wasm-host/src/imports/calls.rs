//! Outgoing calls of the filter: HTTP calls and gRPC streams, and the imports that the filter never calls.

use wasmtime::{FuncType, Linker, Result, ValType};

use super::{import, kind};
use crate::failures::status;
use crate::guest::{Host, Stop, bail, read, read_headers, read_text, status_of, write_u32};
use crate::state::{HttpCall, Out, VmState, header};

/// The low bits of a token are its kind.
const TOKEN_KINDS: u32 = 3;
const HTTP_CALL: u32 = 0;
const GRPC_STREAM: u32 = 2;

pub(super) fn define(linker: &mut Linker<VmState>) -> Result<()> {
    http_call(linker)?;
    grpc_streams(linker)?;
    unused(linker)
}

fn http_call(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker env proxy_http_call(
        host, cluster, cluster_size, headers, headers_size, _body, _body_size, _trailers, _trailers_size,
        timeout_ms, to
    ) {
        let cluster = read_text(&host, cluster, cluster_size)?;
        let Some(headers) = read_headers(&read(&host, headers, headers_size)?) else {
            bail!("a call with invalid headers");
        };
        let has = |name: &str| header(&headers, name).is_some();
        let is_known = host.data().process.clusters.contains(&cluster.as_str());
        if !is_known || ![":path", ":method", ":authority"].into_iter().all(has) {
            return Err(Stop::Status(status::BAD_ARGUMENT));
        }
        let token = host.data_mut().next_token(HTTP_CALL);
        write_u32(&mut host, to, token)?;
        let context = host.data().root();
        let due_us = host.data().process.clock.now_us() + u64::from(timeout_ms) * 1_000;
        let path = String::from_utf8_lossy(header(&headers, ":path").unwrap_or_default()).into_owned();
        let call = HttpCall { token, cluster, path, context, due_us };
        host.data_mut().out.push_back(Out::HttpCall(call));
    } }
    Ok(())
}

fn grpc_streams(linker: &mut Linker<VmState>) -> Result<()> {
    import! { linker env proxy_grpc_stream(
        host, service, service_size, _name, _name_size, _method, _method_size, _metadata, _metadata_size, to
    ) {
        let service = read(&host, service, service_size)?;
        // If it is not such a message, it is the name of a cluster.
        let bare = || String::from_utf8(service.clone()).ok();
        let cluster = envoy_grpc_cluster(&service).or_else(bare).ok_or(status::PARSE_FAILURE)?;
        if !host.data().process.clusters.contains(&cluster.as_str()) {
            return Err(Stop::Status(status::INTERNAL_FAILURE));
        }
        let token = host.data_mut().next_token(GRPC_STREAM);
        write_u32(&mut host, to, token)?;
        let context = host.data().root();
        host.data_mut().grpc_streams.insert(token, context);
        host.data_mut().out.push_back(Out::Open(token, cluster));
    } }
    import! { linker env proxy_grpc_send(host, token, data, size, _end) {
        let data = read(&host, data, size)?;
        check_stream(&host, token)?;
        host.data_mut().out.push_back(Out::Send(token, data));
    } }
    import! { linker env proxy_grpc_cancel(host, token) {
        check_stream(&host, token)?;
        host.data_mut().grpc_streams.remove(&token);
        host.data_mut().out.push_back(Out::Cancel(token));
    } }
    import! { linker env proxy_grpc_close(host, token) {
        check_stream(&host, token)?;
        bail!("the filter closes a stream, which this host does not support: the limiter cancels");
    } }
    Ok(())
}

/// Whether a stream can be used. Streams belong to root contexts; Envoy searches only those of the effective context's
/// root.
fn check_stream(host: &Host<'_>, token: u32) -> Result<(), u32> {
    let state = host.data();
    match state.grpc_streams.get(&token) {
        _ if token & TOKEN_KINDS != GRPC_STREAM => Err(status::BAD_ARGUMENT),
        Some(owner) if *owner == state.root() => Ok(()),
        _ => Err(status::NOT_FOUND),
    }
}

/// The cluster in a `GrpcService` message: field 1 is `envoy_grpc`, whose field 1 is the name.
fn envoy_grpc_cluster(message: &[u8]) -> Option<String> {
    let field = |bytes: &[u8]| match bytes {
        [0x0a, length, rest @ ..] if usize::from(*length) == rest.len() && *length < 128 => {
            Some(rest.to_vec())
        }
        _ => None,
    };
    String::from_utf8(field(&field(message)?)?).ok()
}

/// Imports of the SDK that the filter never calls: a call is a defect.
fn unused(linker: &mut Linker<VmState>) -> Result<()> {
    let calls_and_arguments = [
        ("proxy_close_stream", 1),
        ("proxy_get_header_map_pairs", 3),
        ("proxy_remove_header_map_value", 3),
        ("proxy_set_property", 4),
        ("proxy_set_header_map_pairs", 3),
        ("proxy_get_status", 3),
        ("proxy_grpc_call", 12),
        ("proxy_call_foreign_function", 6),
        ("proxy_done", 0),
    ];
    for (name, arguments) in calls_and_arguments {
        let kind = FuncType::new(linker.engine(), vec![ValType::I32; arguments], [ValType::I32]);
        linker.func_new("env", name, kind, move |_, _, _| {
            bail!("the filter calls {name}, which this host does not support")
        })?;
    }
    Ok(())
}
