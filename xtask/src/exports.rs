//! The exports of the filter.
//!
//! The SDK exports all callbacks of the ABI, and Envoy calls each exported one on every request, even if it is empty.
//! So the callbacks that the filter does not implement are removed, with the code that only they use.

use anyhow::{Context, Result, ensure};
use walrus::{ModuleConfig, passes};

/// The exports that remain, and why.
///
/// `proxy_on_grpc_receive_initial_metadata` and `…_trailing_metadata` must not remain. Envoy may call them during a
/// host call that opens a stream or sends on it, and the SDK panics when it is re-entered.
const NEEDED: &[(&str, &str)] = &[
    ("memory", "the proxy reads and writes the filter's memory"),
    ("_initialize", "runs constructors and sets the root context"),
    ("proxy_abi_version_0_2_1", "the version of the ABI"),
    ("proxy_on_memory_allocate", "memory for data of the proxy"),
    ("proxy_on_context_create", "a context for each plugin and each request"),
    ("proxy_on_configure", "the plugin's configuration"),
    ("proxy_on_tick", "deadlines of Redis, changed health, configuration documents, metrics"),
    ("proxy_on_http_call_response", "the documents fetched"),
    ("proxy_on_queue_ready", "sends the commands of all requests to Redis in one batch"),
    ("proxy_on_grpc_receive", "the replies of Redis"),
    ("proxy_on_grpc_close", "the stream to Redis is lost"),
    ("proxy_on_request_headers", "the decision"),
    (
        "proxy_on_request_body",
        "the body of an admin request; the bridge: commands to Redis lose their gRPC frame",
    ),
    ("proxy_on_request_trailers", "the end of an admin request whose body trailers follow"),
    ("proxy_on_response_headers", "the headers of every response"),
    ("proxy_on_response_body", "the bridge: reply bytes from Redis get their gRPC frame"),
    ("proxy_on_delete", "frees a context's memory"),
];

/// The prefix of exports that replace another one. The SDK has no other way to implement these callbacks.
const REPLACES: &str = "replaces_";

/// The module with only the exports in [`NEEDED`], and without the code that only the others use.
///
/// The names of functions are removed, too. They are a tenth of the file, and a panic has its file and line anyway.
pub(crate) fn strip(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut module = ModuleConfig::new().generate_name_section(false).parse(wasm)?;
    for (name, why) in NEEDED {
        let exported = module.exports.iter().any(|export| export.name == *name);
        ensure!(exported, "it does not export `{name}` ({why})");
    }
    // The callbacks of the SDK that the filter replaces.
    let replaced = module.exports.iter().filter_map(|export| export.name.strip_prefix(REPLACES));
    for name in replaced.map(str::to_owned).collect::<Vec<_>>() {
        module.exports.remove(&name)?;
        let ours = module.exports.iter_mut().find(|export| export.name == [REPLACES, &name].concat());
        ours.context("an export has disappeared")?.name = name;
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

/// The module with a trap instead of one callback, because no input traps the filter itself.
pub(crate) fn trapping(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut module = ModuleConfig::new().generate_name_section(false).parse(wasm)?;
    let callback = module.exports.get_func(TRAPS)?;
    module.replace_exported_func(callback, |(body, _)| {
        body.unreachable();
    })?;
    Ok(module.emit_wasm())
}
