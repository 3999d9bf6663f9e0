//! What the filter shows Envoy: its exports, and names for traps.
//!
//! The SDK exports a callback for everything that a proxy can report, and Envoy enters the VM for
//! each one that it finds, on every request, whether or not anything is written behind it. So those
//! that the filter leaves empty are taken out, and with them the code that only they used.

use anyhow::{Context, Result, ensure};
use walrus::{Module, passes};

/// Every export that stays, and why.
///
/// Two must never: `proxy_on_grpc_receive_initial_metadata` and `…_trailing_metadata`. Envoy may call them from inside a
/// call of ours that opens a stream or sends on it, and the SDK, entered again, panics.
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
    ("proxy_on_grpc_close", "the pipe to Redis is lost"),
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

/// Longest name of a function that stays.
const MAX_NAME: usize = 48;

/// The module with no export but those in [`NEEDED`], and without the code that only the others used.
pub(crate) fn strip(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut module = Module::from_buffer(wasm)?;
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
    for function in module.funcs.iter_mut() {
        function.name = function.name.take().map(|name| readable(&name));
    }
    Ok(module.emit_wasm())
}

/// The callbacks of the SDK that the filter has its own for.
fn replaced(module: &Module) -> Vec<String> {
    module.exports.iter().filter_map(|export| export.name.strip_prefix(REPLACES)).map(str::to_owned).collect()
}

/// A function's name as a trap shows it, without what tells one instance of generic code from another: the compiler's own
/// names take a fifth of the file.
fn readable(mangled: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(mangled)).replace("dynamic_rate_limiter::", "");
    without_generics(&name).chars().take(MAX_NAME).collect()
}

/// `<a::b::Map<c::D, e::F> as g::Iterator>::next` is `<Map as Iterator>::next`: in brackets a path's last part alone, and
/// nothing of what is in brackets within brackets.
fn without_generics(name: &str) -> String {
    let mut short = String::new();
    let mut depth = 0_usize;
    let mut before = ' ';
    // Where the path began that is being read.
    let mut path = 0;
    for character in name.chars() {
        let closes = character == '>' && before != '-';
        depth = depth.saturating_sub(usize::from(closes));
        if depth == 0 || (depth == 1 && character != '<' && !closes) {
            short.push(character);
        }
        depth += usize::from(character == '<');
        let is_of_path = character.is_alphanumeric() || character == '_';
        if depth == 1 && character == ':' && before == ':' {
            short.truncate(path);
        } else if depth <= 1 && !is_of_path && character != ':' {
            path = short.len();
        }
        before = character;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_what_a_person_looks_for() {
        let cases = [
            ("config::config_ttl", "config::config_ttl"),
            ("<documents::Texts>::without_keys", "<Texts>::without_keys"),
            (
                "<limiter::Limiter>::read_control::<host::calls::HostData>",
                "<Limiter>::read_control::<HostData>",
            ),
            (
                "alloc::str::join_generic_copy::<str, u8, &str>",
                "alloc::str::join_generic_copy::<str, u8, &str>",
            ),
            (
                "<core::iter::Shunt<core::iter::Map<a::B, c::D>, e::F> as core::iter::Iterator>::next",
                "<Shunt as Iterator>::next",
            ),
            ("<str as core::fmt::Debug>::fmt", "<str as Debug>::fmt"),
            ("<[(u8, a::B)]>::sort::<fn(a::C) -> d::E>", "<[(u8, B)]>::sort::<fn(C) -> E>"),
            ("<net::Parser>::number::<u16>::{closure#0}", "<Parser>::number::<u16>::{closure#0}"),
            ("memcpy", "memcpy"),
        ];
        for (name, short) in cases {
            assert_eq!(without_generics(name), short);
        }
    }

    #[test]
    fn a_name_tells_nothing_of_the_directory_that_it_was_compiled_in() {
        let named = |hash: &str| readable(&format!("_ZN4core3ptr13drop_in_place17h{hash}E"));
        assert_eq!(named("0123456789abcdef"), "core::ptr::drop_in_place");
        assert_eq!(named("0123456789abcdef"), named("fedcba9876543210"));
    }
}
