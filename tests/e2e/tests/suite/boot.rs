//! Envoy starts: without the filter, with the filter unconfigured, with both forms of configuration. It refuses an invalid
//! configuration.

use std::net::SocketAddr;

use e2e::client::Request;
use e2e::setup::Setup;
use serde_json::json;

use crate::support::{assert_headers_complete, set_health_with_token, two_tiers};

#[test]
fn envoy_without_the_filter_serves() {
    let envoy = Setup::without_filter().workers(4).start();
    let reply = envoy.send(&Request::get("/"));
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    assert!(!reply.has("x-ratelimit-limit"));
}

#[test]
fn without_configuration_the_built_in_tiers_apply_and_the_endpoint_refuses() {
    let envoy = Setup::new().start();
    let reply = envoy.send(&Request::get("/"));
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    assert_headers_complete(&reply, "free", 10, "NORMAL");
    assert_eq!(reply.remaining(), 9);

    let keyed = envoy.send(&Request::get("/").key("pro"));
    assert_eq!(keyed.tier(), "free", "no key is known");
    assert_eq!(keyed.remaining(), 8, "an unknown key counts on the address");

    for token in ["", "anything"] {
        let request = set_health_with_token("DEGRADED", token);
        assert_eq!(envoy.send(&request).status, 403, "token {token:?}");
    }
}

/// Envoy passes a `Struct` as protobuf, although its documentation says JSON. If that changes, document it for users.
#[test]
fn a_struct_is_rejected_because_envoy_passes_it_as_protobuf() {
    let log = Setup::new().config_struct(&two_tiers(3, 7)).start_refused();
    assert!(log.contains("configuration rejected"), "{log}");
}

#[test]
fn the_configuration_may_be_empty() {
    for text in ["", "{}"] {
        let envoy = Setup::new().config_text(text).start();
        assert_headers_complete(&envoy.send(&Request::get("/")), "free", 10, "NORMAL");
    }
}

/// Every rule has its test in `tests/config.rs`.
#[test]
fn an_invalid_configuration_is_refused_with_an_error_that_names_the_field() {
    let mut config = two_tiers(5, 7);
    config["tiers"]["free"]["base"]["refill_rate"] = json!(-1);
    let log = Setup::new().config(&config).start_refused();
    let words = ["[error][wasm]", "tiers.free.base.refill_rate", "-1"];
    assert!(log.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in\n{log}");
}

#[test]
fn the_limiter_and_the_bridge_in_one_vm_are_refused() {
    let log = Setup::new().redis_in_one_vm(SocketAddr::from(([127, 0, 0, 1], 1))).start_refused();
    assert!(log.contains("wanted a vm_id of its own for each"), "{log}");
}
