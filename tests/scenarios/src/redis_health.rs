//! A change of health is in Redis before it is answered, reaches every Envoy within a second, and survives an outage.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{A_SECOND, LONG_TIMEOUT_MS, RECOVERY, SLACK, in_redis, set_health_request, two_tiers};
use crate::{Gateway, Host, Request, Setup};

const CONNECTED: &str = "rate_limiter_redis_connected";

fn setup(config: Value, envoys: usize) -> Setup {
    Setup { envoys, ..Setup::new().config(&in_redis(config, LONG_TIMEOUT_MS, "local")).redis() }
}

fn reported(gateway: &mut dyn Gateway, envoy: usize) -> String {
    gateway.send_via(envoy, &Request::get("/")).one("x-system-health")
}

/// Waits until the Envoys report this health, but not longer than a change may take.
#[track_caller]
fn await_health(gateway: &mut dyn Gateway, envoys: usize, status: &str) {
    for envoy in 0..envoys {
        gateway.until_within(A_SECOND + SLACK, &format!("Envoy {envoy} reports {status}"), |gateway| {
            reported(gateway, envoy) == status
        });
    }
}

/// Checks that health does not change for as long as a change may take.
#[track_caller]
fn assert_health_stays(gateway: &mut dyn Gateway, envoys: usize, status: &str) {
    for _ in 0..30 {
        for envoy in 0..envoys {
            assert_eq!(reported(gateway, envoy), status, "Envoy {envoy}");
        }
        gateway.advance(Duration::from_millis(50));
    }
}

pub fn a_change_is_in_redis_before_it_is_answered_and_reaches_every_envoy_within_a_second(host: &dyn Host) {
    let mut gateway = host.start(&setup(two_tiers(1_000, 10), 3));
    for round in 0..4 {
        let status = if round % 2 == 0 { "DEGRADED" } else { "NORMAL" };
        gateway.set_health_via(round % 3, status);
        assert_eq!(gateway.redis().health().as_deref(), Some(status), "in Redis before the response");
        assert_eq!(reported(&mut *gateway, round % 3), status, "at once in this Envoy");
        await_health(&mut *gateway, 3, status);
    }
    assert!(gateway.redis().keeps_health(), "what an operator set does not expire");
}

pub fn a_change_by_another_envoy_reaches_every_worker(host: &dyn Host) {
    let mut gateway = host.start(&setup(two_tiers(1_000, 10), 2).workers(4));
    gateway.send_to_every_worker(&Request::get("/"));
    for status in ["DEGRADED", "NORMAL"] {
        gateway.set_health_via(1, status);
        await_health(&mut *gateway, 1, status);
        for reply in gateway.send_to_every_worker(&Request::get("/")) {
            assert_eq!(reply.one("x-system-health"), status);
        }
    }
}

pub fn a_health_that_an_operator_writes_into_redis_applies_and_invalid_ones_are_ignored(host: &dyn Host) {
    let mut gateway = host.start(&setup(two_tiers(1_000, 10), 2));
    gateway.redis().set_health("DEGRADED");
    await_health(&mut *gateway, 2, "DEGRADED");
    for invalid in ["", "normal", "NORMAL ", "HEALTHY", "NORMAL\n", "\u{fffd}", "{}"] {
        gateway.redis().set_health(invalid);
        gateway.advance(Duration::from_millis(300));
        assert_eq!(reported(&mut *gateway, 0), "DEGRADED", "{invalid:?}");
    }
    assert_eq!(gateway.health_report(0)["redis"], "connected", "one wrong key is no outage");
    gateway.redis().set_health("NORMAL");
    await_health(&mut *gateway, 2, "NORMAL");
}

pub fn during_an_outage_every_envoy_keeps_its_health(host: &dyn Host) {
    let config = in_redis(two_tiers(1_000, 10), 100, "local");
    let mut gateway = host.start(&Setup { envoys: 2, ..Setup::new().config(&config).redis() });
    gateway.set_health_via(0, "DEGRADED");
    await_health(&mut *gateway, 2, "DEGRADED");
    gateway.redis().kill();
    for envoy in 0..2 {
        gateway.await_redis(envoy, "disconnected");
        let report = json!({"status": "degraded", "redis": "disconnected", "health": "DEGRADED"});
        assert_eq!(gateway.health_report(envoy), report);
    }
    let reply = gateway.send_via(0, &set_health_request("NORMAL"));
    assert_eq!(reply.status, 500, "without Redis no change is accepted: {}", reply.text());
    assert_eq!(reply.json(), json!({"detail": "Failed to update health"}));
    assert_health_stays(&mut *gateway, 2, "DEGRADED");
    gateway.redis().restart();
    for envoy in 0..2 {
        gateway.await_redis(envoy, "connected");
    }
    gateway.until_within(A_SECOND + SLACK, "the health is in Redis again", |gateway| {
        gateway.redis().health().as_deref() == Some("DEGRADED")
    });
    assert_health_stays(&mut *gateway, 2, "DEGRADED");
}

pub fn after_a_change_every_envoy_applies_its_limit_and_buckets_keep_their_tokens(host: &dyn Host) {
    let mut config = two_tiers(1_000, 10);
    config["tiers"]["pro"]["degraded"] = json!({"capacity": 4});
    let mut gateway = host.start(&setup(config, 2));
    let send_to_both = |gateway: &mut dyn Gateway| {
        [0, 1].map(|envoy| {
            let reply = gateway.send_via(envoy, &Request::get("/").key("pro"));
            (reply.limit(), reply.remaining())
        })
    };
    assert_eq!(send_to_both(&mut *gateway), [(10, 9), (10, 8)]);
    gateway.set_health_via(0, "DEGRADED");
    await_health(&mut *gateway, 2, "DEGRADED");
    assert_eq!(send_to_both(&mut *gateway), [(4, 3), (4, 2)], "tokens above four are lost");
    gateway.set_health_via(1, "NORMAL");
    await_health(&mut *gateway, 2, "NORMAL");
    assert_eq!(send_to_both(&mut *gateway), [(10, 1), (10, 0)], "and stay lost");
}

pub fn before_the_first_connection_redis_is_disconnected_and_the_policy_decides(host: &dyn Host) {
    for (policy, status) in [("local", 200), ("deny", 503)] {
        let config = in_redis(two_tiers(5, 10), LONG_TIMEOUT_MS, policy);
        let mut gateway = host.start(&Setup { is_redis_up: false, ..Setup::new().config(&config).redis() });
        let report = json!({"status": "degraded", "redis": "disconnected", "health": "NORMAL"});
        assert_eq!(gateway.health_report(0), report);
        assert_eq!(gateway.send(&set_health_request("DEGRADED")).status, 500);
        assert_eq!(gateway.health_report(0)["health"], "NORMAL");
        for _ in 0..5 {
            assert_eq!(gateway.send(&Request::get("/").key("pro")).status, status, "{policy}");
        }
        gateway.await_metric(CONNECTED, &[], 0.0);

        gateway.redis().restart();
        gateway.await_redis(0, "connected");
        gateway.until_within(RECOVERY, "Redis decides on every worker", |gateway| {
            let replies = gateway.send_to_every_worker(&Request::get("/"));
            let is_denied = replies.iter().any(|reply| reply.status == 503);
            let is_in_redis = gateway.redis().buckets().contains(&"rate_limit:127.0.0.1".to_owned());
            !is_denied && is_in_redis
        });
        gateway.await_metric(CONNECTED, &[], 1.0);
        assert!(gateway.log().iter().any(|line| line.contains("Redis connected")), "{policy}");
    }
}
