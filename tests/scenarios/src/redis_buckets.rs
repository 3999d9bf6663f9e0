//! Buckets in Redis, how an operator can change them, and the deny cache.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{A_SECOND, LONG_TIMEOUT_MS, ONE_PER_HOUR, SLACK, in_redis, tier, two_tiers};
use crate::{Gateway, Host, Request, Setup};

/// An Envoy with a Redis timeout that a busy machine does not exceed.
fn setup_in_redis(config: Value) -> Setup {
    Setup::new().config(&in_redis(config, LONG_TIMEOUT_MS, "local")).redis()
}

fn request() -> Request {
    Request::get("/").key("pro")
}

/// Checks that Redis has decided all requests so far.
#[track_caller]
fn assert_no_failures(gateway: &mut dyn Gateway) {
    for name in ["rate_limiter_store_failures_total", "rate_limiter_fallback_decisions_total"] {
        let counted = gateway.values(name);
        assert!(counted.iter().all(|value| *value == 0.0), "{name}: {counted:?}");
    }
}

pub fn namespaces_have_separate_buckets(host: &dyn Host) {
    let mut other = two_tiers(5, 10);
    other["namespace"] = json!("second");
    let setup =
        setup_in_redis(two_tiers(5, 10)).listener("other", &in_redis(other, LONG_TIMEOUT_MS, "local"));
    let mut gateway = host.start(&setup);
    let remaining = [false, false, true, false, true].map(|is_other| match is_other {
        true => gateway.send_to_listener("other", &request()).remaining(),
        false => gateway.send(&request()).remaining(),
    });
    assert_eq!(remaining, [9, 8, 9, 7, 8]);
}

pub fn deleting_a_bucket_frees_its_caller_within_a_second(host: &dyn Host) {
    let mut gateway = host.start(&setup_in_redis(two_tiers(3, 10)));
    let request = Request::get("/");
    assert_eq!(gateway.statuses(&request, 5), [200, 200, 200, 429, 429]);
    // Every worker has the caller in its deny cache.
    gateway.assert_every_worker(&request, 429);
    gateway.redis().delete_bucket("rate_limit:127.0.0.1");
    gateway.until_within(A_SECOND + SLACK, "a token", |gateway| {
        let reply = gateway.send(&request);
        assert!(reply.status == 429 || reply.remaining() == 2, "the bucket is full: {reply:#?}");
        reply.status == 200
    });
}

pub fn tiers_without_a_bucket_and_exempt_paths_send_no_command_to_redis(host: &dyn Host) {
    let mut config = two_tiers(5, 10);
    config["exempt_paths"] = json!(["/metrics"]);
    config["tiers"]["open"] = json!({"unlimited": true});
    config["tiers"]["closed"] = tier(0, ONE_PER_HOUR);
    config["api_keys"]["o"] = json!("open");
    config["api_keys"]["c"] = json!("closed");
    let mut gateway = host.start(&setup_in_redis(config));
    gateway.send(&request());
    gateway.await_redis(0, "connected");
    let before = gateway.redis().scripts();
    assert_eq!(gateway.statuses(&Request::get("/").key("o"), 20), [200; 20]);
    assert_eq!(gateway.statuses(&Request::get("/").key("c"), 20), [429; 20]);
    for path in ["/metrics", "/health"] {
        assert_eq!(gateway.statuses(&Request::get(path), 20), [200; 20]);
    }
    assert_eq!(gateway.redis().scripts(), before);
    assert_eq!(gateway.redis().buckets(), ["rate_limit:pro"]);
}

pub fn a_connected_worker_is_counted_and_logged(host: &dyn Host) {
    let mut gateway = host.start(&setup_in_redis(two_tiers(5, 10)));
    gateway.await_redis(0, "connected");
    let report = json!({"status": "healthy", "redis": "connected", "health": "NORMAL"});
    assert_eq!(gateway.health_report(0), report);
    gateway.send(&request());
    gateway.await_metric("rate_limiter_redis_connected", &[], 1.0);
    assert!(gateway.log().iter().any(|line| line.contains("Redis connected")));
    gateway.await_requests("pro", "allowed", 1);
    assert_no_failures(&mut *gateway);
}

pub fn envoys_share_each_bucket_exactly(host: &dyn Host) {
    let mut gateway = host.start(&Setup { envoys: 2, ..setup_in_redis(two_tiers(3, 10)) });
    let left = [0, 1, 0, 1, 1].map(|envoy| gateway.send_via(envoy, &request()).remaining());
    assert_eq!(left, [9, 8, 7, 6, 5]);
    let admitted = (0..12).filter(|n| gateway.send_via(n % 2, &Request::get("/")).status == 200).count();
    assert_eq!(admitted, 3);
}

pub fn a_request_after_retry_after_is_admitted(host: &dyn Host) {
    let mut gateway = host.start(&setup_in_redis(json!({"tiers": {"free": tier(3, 0.7)}})));
    for _ in 0..3 {
        let refused = loop {
            let reply = gateway.send(&Request::get("/"));
            if reply.status == 429 {
                break reply;
            }
        };
        gateway.advance(Duration::from_secs(refused.number("retry-after")));
        assert_eq!(gateway.send(&Request::get("/")).status, 200);
    }
}

/// Empties the caller's bucket, and sends until every worker of the first Envoy, and one of each other, refuses it.
#[track_caller]
fn empty_everywhere(gateway: &mut dyn Gateway, envoys: usize) {
    while gateway.send(&request()).status == 200 {}
    gateway.assert_every_worker(&request(), 429);
    for envoy in 1..envoys {
        assert_eq!(gateway.send_via(envoy, &request()).status, 429);
    }
}

pub fn a_change_of_health_clears_the_deny_cache_at_once_and_of_other_envoys_within_a_second(host: &dyn Host) {
    let mut config = two_tiers(5, 1);
    config["tiers"]["pro"]["degraded"] = json!({"capacity": 1_000, "refill_rate": 100_000.0});
    let mut gateway = host.start(&Setup { envoys: 2, ..setup_in_redis(config) });
    empty_everywhere(&mut *gateway, 2);
    gateway.set_health("DEGRADED");
    // In this time a thousand tokens are added.
    gateway.advance(Duration::from_millis(10));
    gateway.assert_every_worker(&request(), 200);
    gateway.advance(A_SECOND + SLACK);
    for _ in 0..8 {
        assert_eq!(gateway.send_via(1, &request()).status, 200, "a second later");
    }
}

pub fn a_delivered_configuration_clears_the_deny_cache(host: &dyn Host) {
    let mut next = in_redis(two_tiers(1_001, 1), LONG_TIMEOUT_MS, "local");
    next["tiers"]["pro"] = tier(1_000, 100_000.0);
    let mut gateway = host.start(&Setup { takes_deliveries: true, ..setup_in_redis(two_tiers(1_000, 1)) });
    empty_everywhere(&mut *gateway, 1);
    assert!(gateway.deliver(&next));
    gateway.await_limit(1_001);
    gateway.advance(Duration::from_millis(10));
    gateway.assert_every_worker(&request(), 200);
}

pub fn only_the_empty_caller_is_refused(host: &dyn Host) {
    const OTHERS: usize = 200;
    let mut config = two_tiers(1_000, 1);
    for n in 0..OTHERS {
        config["api_keys"][format!("other-{n}")] = json!({"tier": "free", "id": format!("o-{n}")});
    }
    let mut gateway = host.start(&setup_in_redis(config));
    empty_everywhere(&mut *gateway, 1);
    for n in 0..OTHERS {
        let reply = gateway.send(&Request::get("/").key(format!("other-{n}")));
        assert_eq!((reply.status, reply.remaining()), (200, 999), "other-{n}");
        assert_eq!(gateway.send(&request()).status, 429, "after other-{n}");
    }
    gateway.until("buckets in Redis", |gateway| gateway.redis().buckets().len() == OTHERS + 1);
}
