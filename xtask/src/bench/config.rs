//! What the bootstraps of both tables have in common.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

/// How many API keys the limiters are told of.
pub(super) const KEYS: usize = 100;

/// The caller whose bucket is empty but for one token an hour.
pub(super) const REFUSED_KEY: &str = "refused";

const FILTER: &str = "target/dynamic_rate_limiter.wasm";

pub(super) fn keys() -> impl Iterator<Item = String> {
    (0..KEYS).map(|number| format!("key-{number}"))
}

/// A listener that serves HTTP through these filters.
pub(super) fn listener(address: SocketAddr, filters: impl IntoIterator<Item = Value>, host: &Value) -> Value {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        },
    });
    let filters: Vec<Value> = filters.into_iter().chain([router]).collect();
    json!({
        "address": socket(address),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "bench",
                "use_remote_address": true,
                "http_filters": filters,
                "route_config": {"virtual_hosts": [host]},
            },
        }]}],
    })
}

/// A route on which Envoy answers by itself.
pub(super) fn answer() -> Value {
    json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}})
}

/// Our limiter.
pub(crate) fn limiter(configuration: &Value) -> Value {
    wasm("rate_limiter", FILTER, configuration)
}

/// Our limiter's other half, on the way to Redis.
pub(super) fn bridge() -> Value {
    wasm("redis_bridge", FILTER, &json!({}))
}

/// Our configuration's tiers and callers: one tier that refuses nobody and one that refuses nearly all.
pub(super) fn callers() -> Value {
    let known = keys().map(|key| (key.clone(), json!({"tier": "endless", "id": key})));
    let refused = (REFUSED_KEY.to_owned(), json!({"tier": "closed", "id": REFUSED_KEY}));
    json!({
        "tiers": {
            "endless": {"base": {"capacity": 10_000_000, "refill_rate": 1_000_000}, "ttl": 60},
            "closed": {"base": {"capacity": 1, "refill_rate": 0.0003}, "ttl": 60},
        },
        "default_tier": "endless",
        "api_keys": known.chain([refused]).collect::<Map<_, _>>(),
    })
}

/// A filter in a VM of its own; its name is also the VM's and the root context's.
pub(super) fn wasm(name: &str, file: &str, configuration: &Value) -> Value {
    json!({
        "name": name,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": name,
                "root_id": name,
                "allow_on_headers_stop_iteration": true,
                "vm_config": {
                    "vm_id": name,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": file}},
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": configuration.to_string(),
                },
            },
        },
    })
}

pub(crate) fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}
