//! The door to Envoy: the only code that knows the proxy-wasm ABI, compiled for wasm alone.
//!
//! [`root`] is the plugin (configuration, ticks, fetched documents), [`http`] one request, and the rest are the
//! host calls that the limiter asks for through its traits.

mod calls;
mod http;
mod metrics;
mod root;

use proxy_wasm::types::LogLevel;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(root::Root::default()));
}}
