//! What several subjects share: configurations in short, and what a complete answer looks like.

use e2e::client::{Request, Response};
use e2e::envoy::Envoy;
use e2e::sha256_hex;
use serde_json::{Value, json};

/// Tokens a second that add up to about one an hour: within a test a bucket gains nothing.
pub(crate) const ONE_PER_HOUR: f64 = 0.000_278;

/// The admin token of every test that needs one.
pub(crate) const TOKEN: &str = "c4nary-admin-token";

/// A tier with the same limit whatever the health.
pub(crate) fn tier(capacity: u64, refill_rate: f64) -> Value {
    json!({"base": {"capacity": capacity, "refill_rate": refill_rate}, "ttl": 3600})
}

/// `free`, the default tier, holds `free` tokens and `pro` holds `pro`; neither refills within a
/// test. The only known key is `pro`.
pub(crate) fn two_tiers(free: u64, pro: u64) -> Value {
    json!({
        "tiers": {"free": tier(free, ONE_PER_HOUR), "pro": tier(pro, ONE_PER_HOUR)},
        "api_keys": {"pro": {"tier": "pro", "id": "pro"}},
        "admin": {"token_sha256": sha256_hex(TOKEN)},
    })
}

/// A request to set the health, with the right token.
pub(crate) fn switch_request(status: &str) -> Request {
    Request::post("/system/health", json!({"status": status}).to_string()).header("X-Admin-Token", TOKEN)
}

/// Sets the health.
#[track_caller]
pub(crate) fn switch(envoy: &Envoy, status: &str) {
    let reply = envoy.send(&switch_request(status));
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// The health that `GET /system/health` tells.
#[track_caller]
pub(crate) fn health(envoy: &Envoy) -> String {
    let reply = envoy.send(&Request::get("/system/health"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["health"].as_str().expect("health is text").to_owned()
}

/// Sends `requests` copies one after the other on one connection; gives the statuses.
#[track_caller]
pub(crate) fn statuses(envoy: &Envoy, request: &Request, requests: usize) -> Vec<u16> {
    let mut connection = envoy.connect();
    (0..requests).map(|_| connection.send(request).status).collect()
}

/// Checks that every header of the rate limit group and its neighbours is there exactly once and
/// well-formed, `Retry-After` on a 429 included.
#[track_caller]
pub(crate) fn assert_headers_complete(reply: &Response, tier: &str, limit: u64, health: &str) {
    assert_eq!(reply.limit(), limit);
    assert!(reply.remaining() <= limit);
    assert!(reply.number("x-ratelimit-reset") > 1_600_000_000);
    assert_eq!(reply.tier(), tier);
    assert_eq!(reply.one("x-system-health"), health);
    assert_processing_time(reply);
    if reply.status == 429 {
        assert!(reply.number("retry-after") >= 1);
        assert_eq!(reply.remaining(), 0);
    } else {
        assert!(!reply.has("retry-after"), "{reply:#?}");
    }
}

/// Checks that `X-Processing-Time` is there once, in seconds with four decimals; gives it.
#[track_caller]
pub(crate) fn assert_processing_time(reply: &Response) -> f64 {
    let text = reply.one("x-processing-time");
    let seconds = text.strip_suffix('s').unwrap_or_default();
    let decimals = seconds.split_once('.').map_or(0, |(_, tail)| tail.len());
    assert_eq!(decimals, 4, "{text:?} has the shape of 0.0234s");
    let seconds: f64 = seconds.parse().expect("a number of seconds");
    assert!((0.0..20.0).contains(&seconds), "{text:?}");
    seconds
}
