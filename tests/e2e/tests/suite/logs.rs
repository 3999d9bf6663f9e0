//! Log lines for operators: the start, configurations, health changes with the address of the client.

use e2e::client::{Connection, Request};
use e2e::load;
use e2e::setup::Setup;
use serde_json::json;

use crate::support::{ONE_PER_HOUR, set_health_request, tier, two_tiers};

#[test]
fn the_start_is_logged() {
    let envoy = Setup::new().config(&two_tiers(5, 7)).start();
    envoy.await_log(&["[info][wasm]", "start"]);
}

#[test]
fn an_applied_configuration_is_logged_with_its_counts() {
    let envoy = Setup::new().config(&two_tiers(5, 7)).start();
    envoy.await_log(&["[info][wasm]", "applied", "2 tiers", "1 keys"]);
}

#[test]
fn a_health_change_is_logged_with_the_address_of_its_client() {
    let envoy = Setup::new().config(&two_tiers(5, 7)).start();
    Connection::open_from(23, envoy.address()).send(&set_health_request("DEGRADED"));
    let line = envoy.await_log(&["[wasm]", "NORMAL", "DEGRADED", "127.0.0.23"]);
    assert!(line.contains("[info]") || line.contains("[warning]"), "{line}");
}

#[test]
fn a_rejected_document_is_logged_with_the_reason() {
    let mut config = two_tiers(5, 7);
    config["config_source"] = json!({
        "cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 1,
    });
    let bad = json!({"free": tier(5, ONE_PER_HOUR), "pro": {"burst": {"capacity": 5}}});
    let envoy = Setup::new().config(&config).config_files(&bad.to_string(), "{}").start();
    envoy.await_log(&["[warning][wasm]", "tiers", "pro", "base"]);
}

#[test]
fn requests_are_logged_at_debug_at_most() {
    let envoy = Setup::new().config(&two_tiers(50, 7)).start();
    let above_debug = || {
        let lines = envoy.log_lines(&["[wasm]"]);
        lines.into_iter().filter(|line| !line.contains("[debug]")).collect::<Vec<_>>()
    };
    envoy.await_log(&["[info][wasm]", "applied"]);
    let before = above_debug();
    let counts = load::burst(envoy.address(), 4, 50, &Request::get("/"));
    assert!(load::count(&counts, 429) > 0);
    // Once the counters are reported, all log lines are written.
    envoy.await_metric(
        "rate_limiter_requests_total",
        &[("tier", "free"), ("status", "limited")],
        load::count(&counts, 429) as f64,
    );
    assert_eq!(above_debug(), before);
}
