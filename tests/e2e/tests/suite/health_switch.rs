//! A switch is seen by every worker at once and costs no bucket its tokens.

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, TOKEN, switch, switch_request, two_tiers};

fn config() -> Value {
    let mut config = two_tiers(10, 10);
    config["tiers"]["free"] = json!({
        "base": {"capacity": 6_000, "refill_rate": ONE_PER_HOUR},
        "burst": {"capacity": 9_000},
        "degraded": {"capacity": 4_000},
        "ttl": 3600,
    });
    config["tiers"]["pro"] = json!({
        "base": {"capacity": 5, "refill_rate": ONE_PER_HOUR},
        "burst": {"capacity": 10},
        "degraded": {"capacity": 4, "refill_rate": 2.0},
        "ttl": 3600,
    });
    config
}

#[test]
fn the_very_next_request_on_every_worker_sees_a_switch() {
    assert_switches_are_seen(&Setup::new().config(&config()).workers(4).start());
}

#[test]
fn where_envoy_keeps_no_stats_of_the_filter_a_switch_is_seen_all_the_same() {
    let envoy = Setup::new().config(&config()).workers(4).without_filter_stats().start();
    assert_switches_are_seen(&envoy);
    assert_eq!(envoy.admin("/stats?filter=rate_limiter_"), "");
}

/// Switches to and fro and asks on many connections, so that every worker is asked, right after.
#[track_caller]
fn assert_switches_are_seen(envoy: &Envoy) {
    let mut connections: Vec<_> = (0..40).map(|_| envoy.connect()).collect();
    for connection in &mut connections {
        connection.send(&Request::get("/"));
    }
    let by_worker = envoy.connections_by_worker();
    assert!(by_worker.len() == 4 && by_worker.iter().all(|n| *n > 0), "{by_worker:?}");

    for round in 0..20 {
        let (status, limit) = if round % 2 == 0 { ("DEGRADED", 4_000) } else { ("NORMAL", 9_000) };
        let from = round % connections.len();
        assert_eq!(connections[from].send(&switch_request(status)).status, 200);
        for connection in &mut connections {
            let reply = connection.send(&Request::get("/"));
            assert_eq!(reply.one("x-system-health"), status, "round {round}");
            assert_eq!(reply.limit(), limit, "round {round}");
        }
    }
}

fn remaining(envoy: &Envoy) -> u64 {
    let reply = envoy.send(&Request::get("/").key("pro"));
    assert_eq!(reply.status, 200);
    reply.remaining()
}

#[test]
fn buckets_keep_their_tokens_across_a_switch_up_to_the_new_capacity() {
    let mut config = config();
    config["tiers"]["pro"]["degraded"]["refill_rate"] = json!(ONE_PER_HOUR);
    let envoy = Setup::new().config(&config).start();
    assert_eq!(remaining(&envoy), 9);
    switch(&envoy, "DEGRADED");
    assert_eq!(remaining(&envoy), 3, "tokens above four are gone");
    switch(&envoy, "NORMAL");
    assert_eq!(remaining(&envoy), 2, "and do not come back");
    switch(&envoy, "DEGRADED");
    assert_eq!(remaining(&envoy), 1);
    assert_eq!(remaining(&envoy), 0);
    switch(&envoy, "NORMAL");
    assert_eq!(envoy.send(&Request::get("/").key("pro")).status, 429);
}

#[test]
fn the_degraded_rate_holds_while_degraded() {
    let envoy = Setup::new().config(&config()).start();
    let mut connection = envoy.connect();
    let request = Request::get("/").key("pro");
    while connection.send(&request).status == 200 {}
    switch(&envoy, "DEGRADED");
    let refused = connection.send(&request);
    assert_eq!((refused.status, refused.number("retry-after")), (429, 1), "two a second");
    e2e::wait::until("a token", || (connection.send(&request).status == 200).then_some(()));
}

#[test]
fn namespaces_keep_two_limiters_apart() {
    let named = |namespace: &str| {
        let mut config = two_tiers(10, 10);
        config["namespace"] = json!(namespace);
        config
    };
    let envoy = Setup::new()
        .config(&named("first"))
        .listener("same", &named("first"))
        .listener("other", &named("second"))
        .start();
    let ask = |listener: &str| Connection::open(envoy.listener(listener)).send(&Request::get("/").key("pro"));
    assert_eq!(ask("main").remaining(), 9);
    assert_eq!(ask("same").remaining(), 8, "one namespace, one bucket");
    assert_eq!(ask("other").remaining(), 9, "another namespace, another bucket");

    let degrade = Request::post("/system/health", r#"{"status":"DEGRADED"}"#).header("X-Admin-Token", TOKEN);
    assert_eq!(envoy.send(&degrade).status, 200);
    assert_eq!(ask("same").one("x-system-health"), "DEGRADED");
    assert_eq!(ask("other").one("x-system-health"), "NORMAL");
}
