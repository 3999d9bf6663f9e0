//! A plugin configuration is rejected with a message of bounded length, or makes a limiter that decides about any
//! request.

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::request::DecisionStart;

use super::check_headers;
use harness::{FakeData, FakeRequest, SECOND, START, TOKEN, decide};

pub(super) const WORDS: &str = "\
    tiers|api_keys|default_tier|config_source|admin|store|headers|ipv6_prefix|namespace|exempt_paths|\
    exempt_preflight|base|burst|degraded|ttl|unlimited|capacity|refill_rate|tier|id|sha256:|kind|redis|\
    shared_data|max_buckets|cluster|timeout_ms|on_failure|local|allow|deny|key_prefix|token_sha256|\
    health_path|system_health_path|ttl_seconds|rate_limit|system_health|processing_time|ietf|true|false|\
    null|{}|[]|\"\"|0|-0|1|0.5|1e-6|1e-7|1e308|1e999|10000000|10000001|4294967295|4294967296|\
    9007199254740993|18446744073709551615|18446744073709551616|-1|\\u0000|\\ud800|canary|free|pro|\
    enterprise|*|/|127.0.0.1|::1|unknown";

pub(super) fn check(bytes: &[u8]) {
    let environments = [
        Environment::default(),
        Environment {
            admin_token: Some(TOKEN.into()),
            default_tier: Some(bytes.get(..8).unwrap_or(b"free").to_vec()),
            config_ttl: Some(bytes.iter().copied().filter(u8::is_ascii_digit).take(6).collect()),
            ..Environment::default()
        },
    ];
    for environment in environments {
        match PluginConfig::parse(bytes, &environment) {
            Ok(plugin) => serve(plugin),
            Err(error) => {
                assert!(!error.is_empty() && error.len() <= 8 * bytes.len() + 2048, "{} bytes", error.len());
            }
        }
    }
}

/// A few requests, with both values of health, over some time.
fn serve(plugin: PluginConfig) {
    let data = FakeData::at(SECOND);
    let mut limiter = Limiter::new(plugin, &data, (1, 2)).expect("what parses can be run");
    let requests = [
        FakeRequest::get("/"),
        FakeRequest::get("/").with("x-api-key", "pro"),
        FakeRequest::get("/health"),
        FakeRequest::post("/system/health").with("x-admin-token", TOKEN),
        FakeRequest::get("/").from("[2001:db8::1]:1"),
        FakeRequest::get("/?query").with("x-api-key", "free"),
    ];
    for advance_us in [0, 1, SECOND, u64::MAX / 2] {
        data.advance(advance_us);
        for (request_id, request) in requests.iter().enumerate() {
            let start = DecisionStart { id: request_id as u32, ..START };
            let decision = decide(&mut limiter, &data, request, start);
            check_headers(&decision, limiter.wall_clock());
            if let Decision::AwaitsBody(pending) = decision {
                limiter.change_health(&pending, br#"{"status":"DEGRADED"}"#, &data, START);
            }
        }
    }
}
