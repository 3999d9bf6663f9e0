//! Envoy delivers a new plugin configuration while it serves: ECDS from a file.

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

use crate::support::{ONE_PER_HOUR, switch, tier, two_tiers};

/// Waits until every worker answers a request without a key with this limit.
#[track_caller]
fn await_limit(envoy: &Envoy, limit: u64) {
    wait::until(&format!("a limit of {limit} on every worker"), || {
        (0..12).all(|_| envoy.send(&Request::get("/")).limit() == limit).then_some(())
    });
}

#[test]
fn a_delivered_configuration_takes_hold_and_buckets_and_health_stay() {
    let mut envoy = Setup::new().config(&two_tiers(1_000, 10)).by_ecds().workers(4).start();
    await_limit(&envoy, 1_000);
    let ask = |envoy: &Envoy| envoy.send(&Request::get("/").key("pro")).remaining();
    assert_eq!([ask(&envoy), ask(&envoy), ask(&envoy)], [9, 8, 7]);
    switch(&envoy, "DEGRADED");

    envoy.deliver(&two_tiers(1_001, 20));
    await_limit(&envoy, 1_001);
    assert_eq!(ask(&envoy), 6);
    let reply = envoy.send(&Request::get("/").key("pro"));
    assert_eq!(reply.one("x-system-health"), "DEGRADED");
    assert_eq!((reply.limit(), reply.remaining()), (20, 5));
}

#[test]
fn a_bad_configuration_is_refused_and_the_old_one_goes_on() {
    let mut envoy = Setup::new().config(&two_tiers(1_000, 10)).by_ecds().workers(4).start();
    await_limit(&envoy, 1_000);
    let bad = [
        (json!({"tiers": {"free": tier(5, -0.25)}}), "-0.25"),
        (json!({"default_tier": "platinum"}), "platinum"),
        (json!({"unheard_of": 1}), "unheard_of"),
        (json!([]), ""),
    ];
    for (config, reason) in bad {
        let (_, refused) = envoy.deliveries();
        envoy.deliver(&config);
        wait::until("the delivery refused", || (envoy.deliveries().1 > refused).then_some(()));
        envoy.await_log(&["[error]", reason]);
        await_limit(&envoy, 1_000);
        assert_eq!(envoy.send(&Request::get("/").key("pro")).tier(), "pro");
    }
    envoy.deliver(&two_tiers(1_001, 10));
    await_limit(&envoy, 1_001);
}

#[test]
fn keys_and_groups_of_headers_follow_a_delivery() {
    let mut envoy = Setup::new().config(&two_tiers(1_000, 10)).by_ecds().start();
    await_limit(&envoy, 1_000);
    let mut next = two_tiers(1_001, 10);
    next["api_keys"] = json!({"other": {"tier": "pro", "id": "other"}});
    next["tiers"]["pro"] = tier(30, ONE_PER_HOUR);
    next["headers"] = json!({"processing_time": false});
    envoy.deliver(&next);
    await_limit(&envoy, 1_001);
    let other = envoy.send(&Request::get("/").key("other"));
    assert_eq!((other.tier().as_str(), other.limit()), ("pro", 30));
    assert!(!other.has("x-processing-time"));
    assert_eq!(envoy.send(&Request::get("/").key("pro")).tier(), "free");
}

#[test]
fn every_delivery_is_counted_by_its_result() {
    let mut envoy = Setup::new().config(&two_tiers(1_000, 10)).by_ecds().start();
    let counted = |envoy: &Envoy, result: &str, count: f64| {
        envoy.await_metric("rate_limiter_config_reloads_total", &[("result", result)], count);
    };
    counted(&envoy, "applied", 1.0);
    envoy.deliver(&two_tiers(1_001, 10));
    counted(&envoy, "applied", 2.0);
    envoy.deliver(&json!({"unheard_of": 1}));
    counted(&envoy, "rejected", 1.0);
    counted(&envoy, "applied", 2.0);
}

#[test]
fn a_delivery_without_a_source_ends_the_rule_of_its_documents() {
    let mut with_source = two_tiers(1_000, 10);
    with_source["config_source"] = json!({
        "cluster": "config_files", "tiers": "/tiers.json", "api_keys": "/api_keys.json",
        "ttl_seconds": 1,
    });
    let documents = two_tiers(1_001, 20);
    let mut envoy = Setup::new()
        .config(&with_source)
        .config_files(&documents["tiers"].to_string(), &documents["api_keys"].to_string())
        .by_ecds()
        .start();
    await_limit(&envoy, 1_001);
    envoy.deliver(&two_tiers(1_002, 10));
    await_limit(&envoy, 1_002);
}
