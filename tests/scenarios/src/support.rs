//! Shared by several subjects: configurations, waiting, and checks of responses.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::{Gateway, Request, Response};

/// About one token an hour: within a test a bucket does not refill.
pub const ONE_PER_HOUR: f64 = 0.000_278;

/// The admin token of the scenarios.
pub const TOKEN: &str = "c4nary-admin-token";

/// Texts that no client, log line or metric may show, in addition to those that contain `c4nary`.
pub const SECRETS: [&str; 2] = [TOKEN, "c4nary-of-acme"];

/// The pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest sum of pauses.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// The counter of requests by tier and status.
pub const REQUESTS: &str = "rate_limiter_requests_total";

/// SHA-256 of `text` in lower-case hex, as in configurations.
pub fn sha256_hex(text: &str) -> String {
    sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tier with the same limit in both states of health.
pub fn tier(capacity: u64, refill_rate: f64) -> Value {
    json!({"base": {"capacity": capacity, "refill_rate": refill_rate}, "ttl": 3600})
}

/// Two tiers with these capacities, which do not refill within a test; `free` is the default tier. The only key is
/// `pro`.
pub fn two_tiers(free: u64, pro: u64) -> Value {
    json!({
        "tiers": {"free": tier(free, ONE_PER_HOUR), "pro": tier(pro, ONE_PER_HOUR)},
        "api_keys": {"pro": {"tier": "pro", "id": "pro"}},
        "admin": {"token_sha256": sha256_hex(TOKEN)},
    })
}

/// A request to set the health, with the valid token.
pub fn set_health_request(status: &str) -> Request {
    post_to_system_health(json!({"status": status}).to_string())
}

/// A request with this body and the valid token.
pub fn post_to_system_health(body: impl Into<Vec<u8>>) -> Request {
    Request::post("/system/health", body).header("X-Admin-Token", TOKEN)
}

/// What scenarios do with every gateway.
impl dyn Gateway + '_ {
    #[track_caller]
    pub fn set_health(&mut self, status: &str) {
        self.set_health_via(0, status);
    }

    /// Sets the health at this Envoy of the setup.
    #[track_caller]
    pub fn set_health_via(&mut self, envoy: usize, status: &str) {
        let reply = self.send_via(envoy, &set_health_request(status));
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// The health that `GET /system/health` reports.
    #[track_caller]
    pub fn health(&mut self) -> String {
        let reply = self.send(&Request::get("/system/health"));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["health"].as_str().expect("health is text").to_owned()
    }

    /// The response of `GET /health`.
    #[track_caller]
    pub fn health_report(&mut self, envoy: usize) -> Value {
        let reply = self.send_via(envoy, &Request::get("/health"));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// Sends `requests` copies one after the other; returns the statuses.
    #[track_caller]
    pub fn statuses(&mut self, request: &Request, requests: usize) -> Vec<u16> {
        (0..requests).map(|_| self.send(request).status).collect()
    }

    /// Checks that every worker answers with this status.
    #[track_caller]
    pub fn assert_every_worker(&mut self, request: &Request, status: u16) {
        for reply in self.send_to_every_worker(request) {
            assert_eq!(reply.status, status, "{reply:#?}");
        }
    }

    /// Waits for this condition.
    #[track_caller]
    pub fn until(&mut self, what: &str, holds: impl FnMut(&mut Self) -> bool) {
        self.until_within(MAX_WAIT, what, holds);
    }

    /// Waits for this condition; panics after `limit` by the gateway's own clock.
    #[track_caller]
    pub fn until_within(&mut self, limit: Duration, what: &str, holds: impl FnMut(&mut Self) -> bool) {
        assert!(self.holds_within(limit, holds), "not within {limit:?}: {what}");
    }

    fn holds_within(&mut self, limit: Duration, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let mut waited = Duration::ZERO;
        while !holds(self) {
            if waited > limit {
                return false;
            }
            self.advance(PAUSE);
            waited += PAUSE;
        }
        true
    }

    /// Waits until a metric has this value; workers report once a second.
    #[track_caller]
    pub fn await_metric(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = None;
        let is_reached = self.holds_within(MAX_WAIT, |gateway| {
            last = gateway.metric(name, labels);
            last == Some(value)
        });
        assert!(is_reached, "{name} {labels:?} should become {value}, is {last:?}");
    }

    /// Waits until so many requests of a tier are counted with this status.
    #[track_caller]
    pub fn await_requests(&mut self, tier: &str, status: &str, requests: usize) {
        self.await_metric(REQUESTS, &[("tier", tier), ("status", status)], requests as f64);
    }

    /// Waits until every worker answers a request without a key with this limit.
    #[track_caller]
    pub fn await_limit(&mut self, limit: u64) {
        self.until(&format!("a limit of {limit} on every worker"), |gateway| {
            let replies = gateway.send_to_every_worker(&Request::get("/"));
            replies.iter().all(|reply| reply.limit() == limit)
        });
    }

    /// Waits until a warning contains this text.
    #[track_caller]
    pub fn await_warning(&mut self, text: &str) {
        self.until(&format!("a warning with {text:?}"), |gateway| {
            gateway.warnings().iter().any(|line| line.contains(text))
        });
    }

    /// Waits until `GET /health` reports this state of Redis, but not longer than [`RECOVERY`].
    #[track_caller]
    pub fn await_redis(&mut self, envoy: usize, state: &str) {
        self.until_within(RECOVERY, &format!("redis {state}"), |gateway| {
            gateway.health_report(envoy)["redis"] == state
        });
    }
}

/// Checks that every header of the filter is sent exactly once and well-formed, and `Retry-After` exactly with a 429 or
/// its gRPC status.
#[track_caller]
pub fn assert_headers_complete(reply: &Response, tier: &str, limit: u64, health: &str) {
    assert_eq!(reply.limit(), limit);
    assert!(reply.remaining() <= limit);
    assert!(reply.number("x-ratelimit-reset") > 1_600_000_000);
    assert_eq!(reply.tier(), tier);
    assert_eq!(reply.one("x-system-health"), health);
    assert_processing_time(reply);
    if reply.status == 429 || reply.all("grpc-status") == ["8"] {
        assert!(reply.number("retry-after") >= 1);
        assert_eq!(reply.remaining(), 0);
    } else {
        assert!(!reply.has("retry-after"), "{reply:#?}");
    }
}

/// Checks that `X-Processing-Time` is sent once, in seconds with four decimals; returns it.
#[track_caller]
pub fn assert_processing_time(reply: &Response) -> f64 {
    let text = reply.one("x-processing-time");
    let seconds = text.strip_suffix('s').unwrap_or_default();
    let decimals = seconds.split_once('.').map_or(0, |(_, tail)| tail.len());
    assert_eq!(decimals, 4, "{text:?} has the form 0.0234s");
    let seconds: f64 = seconds.parse().expect("a number of seconds");
    assert!((0.0..20.0).contains(&seconds), "{text:?}");
    seconds
}

/// Long enough that no reply of a healthy Redis times out on a busy machine.
pub const LONG_TIMEOUT_MS: u64 = 5_000;

/// How soon the limiter uses Redis again after it has recovered.
pub const RECOVERY: Duration = Duration::from_secs(5);

/// How soon a change of health reaches every Envoy, and Redis is queried again for a refused caller.
pub const A_SECOND: Duration = Duration::from_secs(1);

/// The delay that a busy machine may add to a second.
pub const SLACK: Duration = Duration::from_millis(500);

/// `config` with its buckets in Redis.
pub fn in_redis(mut config: Value, timeout_ms: u64, on_failure: &str) -> Value {
    config["store"] = json!({
        "kind": "redis",
        "cluster": crate::REDIS_CLUSTER,
        "timeout_ms": timeout_ms,
        "on_failure": on_failure,
    });
    config
}
