//! Log lines for operators: the start, configurations, health changes with the address of the client.

use e2e::client::{Connection, Request};
use e2e::load;
use e2e::setup::Setup;

use crate::support::{set_health_request, two_tiers};

#[test]
fn the_start_and_the_applied_configuration_are_logged() {
    let envoy = Setup::new().config(&two_tiers(5, 7)).start();
    envoy.await_log(&["[info][wasm]", "start"]);
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
