//! Envoy starts: without the filter, with the filter unconfigured, with both forms of configuration. It refuses an invalid
//! configuration.

use e2e::client::Request;
use e2e::redis::Redis;
use e2e::setup::Setup;
use scenarios::support::in_redis;

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
    for setup in [Setup::new(), Setup::new().config_text(""), Setup::new().config_text("{}")] {
        let envoy = setup.start();
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
}

/// Envoy passes a `Struct` as protobuf, although its documentation says JSON. If that changes, document it for users.
#[test]
fn a_struct_is_rejected_because_envoy_passes_it_as_protobuf() {
    let log = Setup::new().config_struct(&two_tiers(3, 7)).start_refused();
    assert!(log.contains("configuration rejected"), "{log}");
}

#[test]
fn with_the_bridge_in_its_vm_the_limiter_sends_nothing_and_the_policy_decides() {
    let redis = Redis::start();
    let config = in_redis(two_tiers(3, 7), 500, "local");
    let envoy = Setup::new().redis_in_one_vm(redis.address()).config(&config).start();
    let statuses: Vec<_> = (0..4).map(|_| envoy.send(&Request::get("/")).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    envoy.await_log(&["[warning][wasm]", "Redis lost", "wanted a vm_id of its own for each"]);
    assert!(redis.keys().is_empty(), "{:?}", redis.keys());
}
