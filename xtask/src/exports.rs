//! What the filter shows Envoy: its exports.
//!
//! The SDK exports a callback for everything that a proxy can report, and Envoy enters the VM for
//! each one that it finds, on every request, whether or not anything is written behind it. So those
//! that the filter leaves empty are taken out, and with them the code that only they used.

use anyhow::{Context, Result, ensure};
use walrus::{Module, ModuleConfig, passes};

/// Every export that stays, and why.
///
/// Two must never: `proxy_on_grpc_receive_initial_metadata` and `…_trailing_metadata`. Envoy may call them from
/// inside a call of ours that opens a stream or sends on it, and the SDK, entered again, panics.
const NEEDED: &[(&str, &str)] = &[
    ("memory", "the proxy reads and writes the filter's memory"),
    ("_initialize", "runs constructors and sets the root context"),
    ("proxy_abi_version_0_2_1", "tells which callbacks to expect"),
    ("proxy_on_memory_allocate", "room for what the proxy hands in"),
    ("proxy_on_context_create", "a context for each plugin and each request"),
    ("proxy_on_configure", "the plugin's configuration"),
    ("proxy_on_tick", "deadlines of Redis, changed health, configuration documents, metrics"),
    ("proxy_on_http_call_response", "the documents fetched"),
    ("proxy_on_queue_ready", "sends Redis in one batch what requests have asked it"),
    ("proxy_on_grpc_receive", "the replies of Redis"),
    ("proxy_on_grpc_close", "the stream to Redis is lost"),
    ("proxy_on_request_headers", "the decision"),
    (
        "proxy_on_request_body",
        "the body of an admin request; the bridge: commands to Redis lose their gRPC frame",
    ),
    ("proxy_on_request_trailers", "the end of an admin request whose body trailers follow"),
    ("proxy_on_response_headers", "the headers on every answer"),
    ("proxy_on_response_body", "the bridge: reply bytes from Redis get their gRPC frame"),
    ("proxy_on_delete", "gives a context's memory back"),
];

/// What the name of an export starts with that takes the place of another: the SDK leaves no other way to have
/// a callback of one's own.
const REPLACES: &str = "replaces_";

/// The module with no export but those in [`NEEDED`], and without the code that only the others used.
///
/// Nor does it keep the names of functions, which would be a tenth of the file: a panic names its file and line anyway.
pub(crate) fn strip(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut module = ModuleConfig::new().generate_name_section(false).parse(wasm)?;
    for (name, why) in NEEDED {
        let exported = module.exports.iter().any(|export| export.name == *name);
        ensure!(exported, "it does not export `{name}` ({why})");
    }
    for name in replaced(&module) {
        module.exports.remove(&name)?;
        let ours = module.exports.iter_mut().find(|export| export.name == [REPLACES, &name].concat());
        ours.context("an export is gone that was there")?.name = name;
    }
    let is_needed = |name: &str| NEEDED.iter().any(|(needed, _)| *needed == name);
    let surplus: Vec<_> =
        module.exports.iter().filter(|export| !is_needed(&export.name)).map(|export| export.id()).collect();
    for export in surplus {
        module.exports.delete(export);
    }
    passes::gc::run(&mut module);
    Ok(module.emit_wasm())
}

/// The callback that traps in [`trapping`].
const TRAPS: &str = "proxy_on_request_body";

/// The module with a trap in place of one callback: nothing that comes from outside traps the filter itself.
pub(crate) fn trapping(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut module = ModuleConfig::new().generate_name_section(false).parse(wasm)?;
    let callback = module.exports.get_func(TRAPS)?;
    module.replace_exported_func(callback, |(body, _)| {
        body.unreachable();
    })?;
    Ok(module.emit_wasm())
}

/// The callbacks of the SDK that the filter has its own for.
fn replaced(module: &Module) -> Vec<String> {
    module.exports.iter().filter_map(|export| export.name.strip_prefix(REPLACES)).map(str::to_owned).collect()
}
