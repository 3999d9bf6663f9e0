//! Outgoing calls of the filter: HTTP calls and gRPC streams, and the imports that the filter never calls.

use wasmtime::{Linker, Result};

use super::{import, kind};
use crate::failures::status;
use crate::guest::{Host, OutOfBounds, bail, read, read_headers, read_text, write_u32};
use crate::state::{HttpCall, Out, VmState};

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
        let has = |name: &str| headers.iter().any(|(known, _)| known == name);
        let is_known = host.data().process.clusters.borrow().contains(&cluster);
        if !is_known || ![":path", ":method", ":authority"].into_iter().all(has) {
            return Ok(status::BAD_ARGUMENT);
        }
        let token = host.data_mut().next_token(HTTP_CALL);
        write_u32(&mut host, to, token)?;
        let context = host.data().root();
        let due_us = host.data().process.clock.now_us() + u64::from(timeout_ms) * 1_000;
        let call = HttpCall { token, cluster, headers, timeout_ms, context, due_us };
        host.data_mut().out.push_back(Out::HttpCall(call));
        Ok(status::OK)
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
        let Some(cluster) = envoy_grpc_cluster(&service).or_else(bare) else {
            return Ok(status::PARSE_FAILURE);
        };
        if !host.data().process.clusters.borrow().contains(&cluster) {
            return Ok(status::INTERNAL_FAILURE);
        }
        let token = host.data_mut().next_token(GRPC_STREAM);
        write_u32(&mut host, to, token)?;
        let context = host.data().root();
        host.data_mut().grpc_streams.insert(token, context);
        host.data_mut().out.push_back(Out::Open(token, cluster));
        Ok(status::OK)
    } }
    import! { linker env proxy_grpc_send(host, token, data, size, _end) {
        let data = read(&host, data, size)?;
        if let Some(refused) = refused(&host, token) {
            return Ok(refused);
        }
        host.data_mut().out.push_back(Out::Send(token, data));
        Ok(status::OK)
    } }
    import! { linker env proxy_grpc_cancel(host, token) {
        if let Some(refused) = refused(&host, token) {
            return Ok(refused);
        }
        host.data_mut().grpc_streams.remove(&token);
        host.data_mut().out.push_back(Out::Cancel(token));
        Ok(status::OK)
    } }
    import! { linker env proxy_grpc_close(host, token) {
        match refused(&host, token) {
            Some(refused) => Ok(refused),
            None => bail!("the filter closes a stream, which this host does not support: the limiter cancels"),
        }
    } }
    Ok(())
}

/// Why a stream cannot be used. Streams belong to root contexts; Envoy searches only those of the effective context's
/// root.
fn refused(host: &Host<'_>, token: u32) -> Option<u32> {
    let state = host.data();
    match state.grpc_streams.get(&token) {
        _ if token & TOKEN_KINDS != GRPC_STREAM => Some(status::BAD_ARGUMENT),
        Some(owner) if *owner == state.root() => None,
        _ => Some(status::NOT_FOUND),
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
    macro_rules! never {
        ($($name:literal($($argument:ident),*);)*) => {
            $(linker.func_wrap("env", $name, |$($argument: u32),*| -> Result<u32> {
                let _ = ($($argument,)*);
                bail!("the filter calls {}, which this host does not support", $name)
            })?;)*
        };
    }
    never! {
        "proxy_close_stream"(a);
        "proxy_get_header_map_pairs"(a, b, c);
        "proxy_remove_header_map_value"(a, b, c);
        "proxy_set_property"(a, b, c, d);
        "proxy_set_header_map_pairs"(a, b, c);
        "proxy_get_status"(a, b, c);
        "proxy_grpc_call"(a, b, c, d, e, f, g, h, i, j, k, l);
        "proxy_call_foreign_function"(a, b, c, d, e, f);
    }
    linker.func_wrap("env", "proxy_done", || -> Result<u32> {
        bail!("the filter calls proxy_done, which this host does not support")
    })?;
    Ok(())
}
