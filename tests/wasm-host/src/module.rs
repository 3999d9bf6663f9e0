//! The compiled filter: finds it, compiles it once a process, and links its imports.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use wasmtime::{Config, Engine, InstancePre, Linker, Module};

use crate::imports;
use crate::state::VmState;

/// The limiter. Compiling takes some seconds with an unoptimised compiler, so it is done once a process.
pub(crate) fn limiter() -> &'static InstancePre<VmState> {
    static LINKED: OnceLock<InstancePre<VmState>> = OnceLock::new();
    LINKED.get_or_init(|| link("FILTER_WASM", "dynamic_rate_limiter.wasm"))
}

/// The probe filter, which reports facts about its host.
pub(crate) fn probe() -> &'static InstancePre<VmState> {
    static LINKED: OnceLock<InstancePre<VmState>> = OnceLock::new();
    LINKED.get_or_init(|| link("PROBE_WASM", "probe_filter.wasm"))
}

/// The filter in the environment variable, else the one that `cargo xtask dist` builds.
fn link(variable: &str, name: &str) -> InstancePre<VmState> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(name);
    let path = env::var_os(variable).map_or(built, PathBuf::from);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| {
        panic!("no filter at {}: {error}; `cargo xtask test filter` builds it, or set FILTER_WASM and PROBE_WASM", path.display())
    });
    let mut config = Config::new();
    config.consume_fuel(true);
    let engine = Engine::new(&config).expect("an engine that counts fuel");
    let module = Module::new(&engine, &bytes)
        .unwrap_or_else(|error| panic!("{} is not a module: {error:#}", path.display()));
    let mut linker = Linker::new(&engine);
    imports::define(&mut linker).expect("imports with distinct names");
    linker
        .instantiate_pre(&module)
        .unwrap_or_else(|error| panic!("the filter imports a function that Envoy does not have: {error:#}"))
}
