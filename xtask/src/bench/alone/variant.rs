//! The measured variants as Envoy bootstraps.

use clap::ValueEnum;
use harness::bootstrap::extension;
use serde_json::{Value, json};

use super::super::config::{answer, callers, keys, limiter, listener, socket, wasm};
use super::super::{ADMIN, Expected, SERVICE};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Variant {
    /// no filter
    None,
    /// Envoy's `local_ratelimit`, a descriptor per key, headers
    Native,
    /// an empty wasm filter
    Empty,
    /// ours, shared data, all headers
    Ours,
    /// ours, rejecting (429)
    OursRejecting,
    /// ours, no headers: less six header calls and a clock
    OursNoHeaders,
    /// ours, an exempt path: also less the key, the bucket and a clock
    OursExempt,
}

impl Variant {
    pub(super) fn expected(self) -> Expected {
        Expected {
            rejects: self == Self::OursRejecting,
            has_limit_headers: matches!(self, Self::Native | Self::Ours | Self::OursRejecting),
        }
    }

    /// An Envoy without an upstream, with this variant's filter.
    pub(super) fn bootstrap(self) -> Value {
        let host = json!({
            "name": "bench",
            "domains": ["*"],
            "rate_limits": [{"actions": [{"request_headers": {
                "header_name": "x-api-key", "descriptor_key": "api_key",
            }}]}],
            "routes": [answer()],
        });
        json!({
            "admin": {"address": socket(ADMIN)},
            "static_resources": {"listeners": [listener(SERVICE, self.filter(), &host)]},
        })
    }

    fn filter(self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::Native => Some(native()),
            Self::Empty => Some(wasm("target/empty_filter.wasm", &json!({}))),
            _ => Some(limiter(&self.limiter())),
        }
    }

    fn limiter(self) -> Value {
        let headers = self != Self::OursNoHeaders;
        let exempt_paths: &[&str] = if self == Self::OursExempt { &["/"] } else { &[] };
        let mut settings = callers();
        settings["headers"] =
            json!({"rate_limit": headers, "system_health": headers, "processing_time": headers});
        settings["exempt_paths"] = json!(exempt_paths);
        settings
    }
}

/// Envoy's own limiter. It takes tokens only from the caller's bucket, as ours does.
fn native() -> Value {
    let endless =
        json!({"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "1s"});
    let always = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let descriptors: Vec<Value> = keys()
        .map(|key| json!({"entries": [{"key": "api_key", "value": key}], "token_bucket": endless}))
        .collect();
    let fields = json!({
        "stat_prefix": "bench",
        "token_bucket": endless,
        "always_consume_default_token_bucket": false,
        "filter_enabled": always,
        "filter_enforced": always,
        "descriptors": descriptors,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
    });
    let kind = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    extension("envoy.filters.http.local_ratelimit", kind, fields)
}
