//! Measured health counts every request that was sent to the upstream, with either store.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{LONG_TIMEOUT_MS, in_redis, two_tiers};
use crate::{Answer, Host, Request, Setup};

/// More than any scenario sends: no bucket becomes empty here.
const CAPACITY: u64 = 100_000;

const LATENCY_MS: u64 = 300;

/// Without Redis, the first requests wait so long.
const SHORT_TIMEOUT_MS: u64 = 100;

/// About ten seconds of requests, of which four in ten are aborted by the client.
const ROUNDS: usize = 15;

/// Measured health with a window of seconds.
fn measured() -> Value {
    let mut config = two_tiers(CAPACITY, CAPACITY);
    config["health"] = json!({
        "mode": "auto",
        "window_seconds": 3,
        "min_requests": 20,
        "latency_ms": LATENCY_MS,
        "latency_ratio": null,
        "degrade_after_seconds": 1,
    });
    config
}

/// After the reply of Redis, a request without a body continues without another callback; it must be measured anyway.
pub fn requests_aborted_at_a_hanging_upstream_are_measured_with_either_store(host: &dyn Host) {
    let with_redis = in_redis(measured(), LONG_TIMEOUT_MS, "local");
    for (config, store) in [(measured(), "shared data"), (with_redis, "Redis")] {
        assert_aborted_requests_are_measured(host, Setup::new().config(&config).redis(), store);
    }
}

/// A request that goes on without a command to Redis is complete at its headers.
pub fn requests_aborted_at_a_hanging_upstream_are_measured_if_redis_does_not_decide(host: &dyn Host) {
    for policy in ["local", "allow"] {
        let setup = Setup::new().config(&in_redis(measured(), SHORT_TIMEOUT_MS, policy)).redis();
        assert_aborted_requests_are_measured(host, Setup { is_redis_up: false, ..setup }, policy);
    }
    let mut unlimited = in_redis(measured(), LONG_TIMEOUT_MS, "local");
    unlimited["tiers"]["free"] = json!({"unlimited": true});
    assert_aborted_requests_are_measured(host, Setup::new().config(&unlimited).redis(), "unlimited");
}

#[track_caller]
fn assert_aborted_requests_are_measured(host: &dyn Host, setup: Setup, what: &str) {
    let never = Answer { after: Duration::from_secs(60), ..Answer::ok("late") };
    let mut gateway = host.start(&setup.answer("/hangs", never));
    let report = (0..ROUNDS).find_map(|_| {
        for _ in 0..15 {
            assert_eq!(gateway.send(&Request::get("/")).status, 200, "{what}");
        }
        gateway.send_and_disconnect(&Request::get("/hangs"), 10, Duration::from_millis(2 * LATENCY_MS));
        let report = gateway.send(&Request::get("/system/health")).json();
        // Each worker reports a reason only after its own flush.
        (report["health"] == "DEGRADED" && report["reason"].is_string()).then_some(report)
    });
    let report = report.unwrap_or_else(|| panic!("never DEGRADED by latency, {what}"));
    assert_eq!(report["reason"], "latency", "{what}: {report}");
}
