//! Health that is measured counts every request that was sent on, whichever store let it through.
#![allow(missing_docs, reason = "a scenario's name says what it shows")]

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{PATIENT_MS, in_redis, two_tiers};
use crate::{Answer, Gateway, Host, Request, Setup};

/// More than any scenario sends: no bucket is ever empty here.
const CAPACITY: u64 = 100_000;

const LATENCY_MS: u64 = 300;

/// Some ten seconds of requests, of which four in ten are left.
const ROUNDS: usize = 15;

/// Health that is measured within seconds.
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

#[track_caller]
fn system_health(gateway: &mut dyn Gateway) -> Value {
    gateway.send(&Request::get("/system/health")).json()
}

/// A request without a body goes on from Redis without another callback: what it is afterwards must not depend on one.
pub fn clients_that_leave_a_hanging_upstream_are_measured_with_either_store(host: &dyn Host) {
    let never = Answer { after: Duration::from_secs(60), ..Answer::ok("late") };
    let with_redis = in_redis(measured(), PATIENT_MS, "local");
    for (config, store) in [(measured(), "shared data"), (with_redis, "Redis")] {
        let setup = Setup::new().config(&config).answer("/hangs", never.clone());
        let mut gateway = host.start(&setup.redis());
        let told = (0..ROUNDS).find_map(|_| {
            for _ in 0..15 {
                assert_eq!(gateway.send(&Request::get("/")).status, 200, "{store}");
            }
            gateway.send_and_leave(&Request::get("/hangs"), 10, Duration::from_millis(2 * LATENCY_MS));
            let told = system_health(&mut *gateway);
            // Each worker knows the reason when it has looked itself.
            (told["health"] == "DEGRADED" && told["reason"].is_string()).then_some(told)
        });
        let told = told.unwrap_or_else(|| panic!("never DEGRADED by latency, {store}"));
        assert_eq!(told["reason"], "latency", "{store}: {told}");
    }
}
