//! Shared parts of the bootstraps of both tables.

use std::net::SocketAddr;
use std::path::Path;

use harness::bootstrap::{self, string_value};
use serde_json::{Map, Value, json};

pub(crate) use harness::bootstrap::socket;

/// The number of API keys in the limiters' configurations.
pub(super) const KEYS: usize = 100;

/// The caller whose bucket gets one token an hour.
pub(super) const REJECTED_KEY: &str = "rejected";

pub(super) const FILTER: &str = "target/dynamic_rate_limiter.wasm";

pub(super) fn keys() -> impl Iterator<Item = String> {
    (0..KEYS).map(|number| format!("key-{number}"))
}

/// An HTTP listener with these filters.
pub(super) fn listener(address: SocketAddr, filters: impl IntoIterator<Item = Value>, host: &Value) -> Value {
    let fields = json!({"use_remote_address": true, "route_config": {"virtual_hosts": [host]}});
    bootstrap::listener("bench", &socket(address), fields, filters)
}

pub(super) fn answer() -> Value {
    json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}})
}

pub(crate) fn limiter(configuration: &Value) -> Value {
    wasm(FILTER, configuration)
}

/// The tiers and callers of our configuration: one tier that rejects no request, and one that rejects nearly all.
pub(super) fn callers() -> Value {
    let known = keys().map(|key| (key.clone(), json!({"tier": "endless", "id": key})));
    let rejected = (REJECTED_KEY.to_owned(), json!({"tier": "closed", "id": REJECTED_KEY}));
    json!({
        "tiers": {
            "endless": {"base": {"capacity": 10_000_000, "refill_rate": 1_000_000}, "ttl": 60},
            "closed": {"base": {"capacity": 1, "refill_rate": 0.0003}, "ttl": 60},
        },
        "default_tier": "endless",
        "api_keys": known.chain([rejected]).collect::<Map<_, _>>(),
    })
}

pub(super) fn wasm(file: &str, configuration: &Value) -> Value {
    let configuration = string_value(&configuration.to_string());
    bootstrap::wasm("rate_limiter", Path::new(file), json!({"configuration": configuration}))
}
