//! The door to Envoy: the only code that knows the proxy-wasm ABI, compiled for wasm alone.
//!
//! [`root`] is the plugin (configuration, ticks), [`fetch`] its documents on their way, [`http`] one request,
//! [`worker`] what the requests of a worker share, [`redis_stream`] its stream to Redis, [`bridge`] that stream's other
//! end, [`log`] what it writes, and the rest are the host calls that the limiter makes through its traits.

mod bridge;
mod fetch;
mod hostcalls;
mod http;
mod log;
mod metrics;
mod overload;
mod redis_stream;
mod root;
mod ticks;
mod turn;
mod worker;

use std::hash::{BuildHasher, Hasher, RandomState};

use proxy_wasm::traits::{Context, RootContext};

proxy_wasm::main! {{
    log::install();
    proxy_wasm::set_root_context(root_context);
}}

/// The plugin that `root_id` names.
fn root_context(id: u32) -> Box<dyn RootContext> {
    match proxy_wasm::hostcalls::get_property(vec!["plugin_root_id"]).ok().flatten().as_deref() {
        Some(b"redis_bridge") => Box::new(bridge::BridgeRoot::new()),
        Some(b"shared_data") => Box::new(SharedDataRoot),
        _ => Box::new(root::Root::new(id)),
    }
}

/// A service of Envoy's bootstrap that does nothing: while its VM lives, Envoy keeps the shared data of that
/// `vm_id`, also when no listener has the limiter.
struct SharedDataRoot;

impl Context for SharedDataRoot {}
impl RootContext for SharedDataRoot {}

/// A number that differs from VM to VM and from call to call.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
