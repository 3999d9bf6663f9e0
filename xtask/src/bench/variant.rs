//! What is measured, as Envoy bootstraps.

use std::net::SocketAddr;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

/// How many API keys both limiters are told of.
const KEYS: usize = 100;

/// The headers that an answer has if and only if a limiter saw the request.
pub(crate) const LIMIT_HEADERS: [&str; 3] =
    ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];

/// One way to run Envoy.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Variant {
    None,
    Native,
    Empty,
    Ours,
    OursRefusing,
    OursNoHeaders,
    OursExempt,
}

impl Variant {
    pub(crate) const ALL: [Self; 7] = [
        Self::None,
        Self::Native,
        Self::Empty,
        Self::Ours,
        Self::OursRefusing,
        Self::OursNoHeaders,
        Self::OursExempt,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Native => "native",
            Self::Empty => "empty",
            Self::Ours => "ours",
            Self::OursRefusing => "ours-refusing",
            Self::OursNoHeaders => "ours-no-headers",
            Self::OursExempt => "ours-exempt",
        }
    }

    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::None => "no filter",
            Self::Native => "Envoy's `local_ratelimit`, a descriptor per key, headers",
            Self::Empty => "an empty wasm filter",
            Self::Ours => "ours, shared data, all headers",
            Self::OursRefusing => "ours, refusing (429)",
            Self::OursNoHeaders => "ours, no headers: less six header calls and a clock",
            Self::OursExempt => "ours, an exempt path: also less the key, the bucket and a clock",
        }
    }

    /// Whether it says in headers what it took.
    pub(crate) fn has_limit_headers(self) -> bool {
        matches!(self, Self::Native | Self::Ours | Self::OursRefusing)
    }

    /// Whether it refuses nearly every request rather than none.
    pub(crate) fn refuses(self) -> bool {
        self == Self::OursRefusing
    }

    /// The key to send: one of those that the variant knows.
    pub(crate) fn api_key(self) -> &'static str {
        if self.refuses() { "refused" } else { "key-50" }
    }

    /// An Envoy that answers by itself, with this variant's filter.
    pub(crate) fn bootstrap(self, service: SocketAddr, admin: SocketAddr) -> Value {
        let router = json!({
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        });
        let filters: Vec<Value> = self.filter().into_iter().chain([router]).collect();
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "use_remote_address": true,
            "http_filters": filters,
            "route_config": {
                "virtual_hosts": [{
                    "name": "bench",
                    "domains": ["*"],
                    "rate_limits": [{"actions": [{"request_headers": {
                        "header_name": "x-api-key", "descriptor_key": "api_key",
                    }}]}],
                    "routes": [{
                        "match": {"prefix": "/"},
                        "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
                    }],
                }],
            },
        });
        json!({
            "admin": {"address": socket(admin)},
            "static_resources": {"listeners": [{
                "address": socket(service),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }]}],
            }]},
        })
    }

    fn filter(self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::Native => Some(native()),
            Self::Empty => Some(wasm("target/empty_filter.wasm", &json!({}))),
            _ => Some(wasm("target/dynamic_rate_limiter.wasm", &self.limiter())),
        }
    }

    /// Our configuration: one tier that refuses nobody and one that refuses nearly all.
    fn limiter(self) -> Value {
        let known = keys().map(|key| (key.clone(), json!({"tier": "endless", "id": key})));
        let refused = ("refused".to_owned(), json!({"tier": "closed", "id": "refused"}));
        let headers = self != Self::OursNoHeaders;
        let exempt_paths: &[&str] = if self == Self::OursExempt { &["/"] } else { &[] };
        json!({
            "tiers": {
                "endless": {"base": {"capacity": 10_000_000, "refill_rate": 1_000_000}, "ttl": 60},
                "closed": {"base": {"capacity": 1, "refill_rate": 0.0003}, "ttl": 60},
            },
            "default_tier": "endless",
            "api_keys": known.chain([refused]).collect::<Map<_, _>>(),
            "headers": {"rate_limit": headers, "system_health": headers, "processing_time": headers},
            "exempt_paths": exempt_paths,
        })
    }
}

/// Envoy's own limiter. It takes from the caller's bucket only, as ours does.
fn native() -> Value {
    let endless =
        json!({"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s"});
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let descriptors: Vec<Value> = keys()
        .map(|key| json!({"entries": [{"key": "api_key", "value": key}], "token_bucket": endless}))
        .collect();
    json!({
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "bench",
            "token_bucket": endless,
            "always_consume_default_token_bucket": false,
            "filter_enabled": always,
            "filter_enforced": always,
            "descriptors": descriptors,
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        },
    })
}

fn keys() -> impl Iterator<Item = String> {
    (0..KEYS).map(|number| format!("key-{number}"))
}

fn wasm(file: &str, configuration: &Value) -> Value {
    json!({
        "name": "rate_limiter",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": "rate_limiter",
                "root_id": "rate_limiter",
                "allow_on_headers_stop_iteration": true,
                "vm_config": {
                    "vm_id": "rate_limiter",
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

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}
