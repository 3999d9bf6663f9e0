//! Who is not limited, and who is not let in at all.

use e2e::client::{Request, Response};
use e2e::setup::Setup;
use serde_json::json;

use crate::support::{assert_processing_time, statuses, two_tiers};

const RATE_HEADERS: [&str; 4] =
    ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"];

#[track_caller]
fn assert_unlimited(reply: &Response) {
    assert_eq!(reply.status, 200);
    for name in RATE_HEADERS {
        assert!(!reply.has(name), "{name} in {reply:#?}");
    }
}

#[test]
fn an_unlimited_tier_is_never_refused() {
    let mut config = two_tiers(1, 1);
    config["tiers"]["internal"] = json!({"unlimited": true});
    config["api_keys"]["internal"] = json!({"tier": "internal", "id": "internal"});
    let envoy = Setup::new().config(&config).start();
    let mut connection = envoy.connect();
    for _ in 0..100 {
        let reply = connection.send(&Request::get("/").key("internal"));
        assert_unlimited(&reply);
        assert_eq!(reply.tier(), "internal");
        assert_eq!(reply.one("x-system-health"), "NORMAL");
        assert_processing_time(&reply);
    }
    envoy.await_metric("rate_limiter_requests_total", &[("tier", "internal"), ("status", "exempt")], 100.0);
}

#[test]
fn a_tier_without_capacity_is_blocked() {
    let mut config = two_tiers(1, 1);
    config["tiers"]["banned"] = json!({"base": {"capacity": 0, "refill_rate": 0}, "ttl": 60});
    config["api_keys"]["banned"] = json!({"tier": "banned", "id": "banned"});
    let envoy = Setup::new().config(&config).start();
    for _ in 0..3 {
        let reply = envoy.send(&Request::get("/").key("banned"));
        assert_eq!((reply.status, reply.limit(), reply.remaining()), (429, 0, 0));
        assert_eq!(reply.tier(), "banned");
        assert_eq!(reply.number("retry-after"), 60);
        assert_eq!(reply.text(), "Too Many Requests");
    }
    envoy.await_metric("rate_limiter_requests_total", &[("tier", "banned"), ("status", "blocked")], 3.0);
}

#[test]
fn exempt_paths_are_neither_counted_nor_marked() {
    let mut config = two_tiers(1, 1);
    config["exempt_paths"] = json!(["/metrics", "/static/*"]);
    let envoy = Setup::new().config(&config).start();
    let exempt = ["/metrics", "/metrics?x=1", "/static/", "/static/a/b?c"];
    for path in exempt {
        for _ in 0..3 {
            let reply = envoy.send(&Request::get(path));
            assert_unlimited(&reply);
            assert!(!reply.has("x-ratelimit-tier"), "{path}");
        }
    }
    assert_eq!(statuses(&envoy, &Request::get("/"), 2), [200, 429], "nothing was charged");
    for path in ["/metrics/", "/metrics2", "/Metrics", "/static", "/x?/static/"] {
        assert_eq!(envoy.send(&Request::get(path)).status, 429, "{path} is limited");
    }
    assert_unlimited(&envoy.send(&Request::get("/metrics")));
    envoy.await_metric("rate_limiter_requests_total", &[("tier", "free"), ("status", "exempt")], 13.0);
}

fn preflight() -> Request {
    Request::new("OPTIONS", "/")
        .header("Origin", "https://example.org")
        .header("Access-Control-Request-Method", "PUT")
}

#[test]
fn preflights_are_free_where_the_configuration_says_so() {
    let mut config = two_tiers(1, 1);
    let charged = Setup::new().config(&config).start();
    assert_eq!(statuses(&charged, &preflight(), 2), [200, 429]);

    config["exempt_preflight"] = json!(true);
    let envoy = Setup::new().config(&config).start();
    for _ in 0..5 {
        assert_unlimited(&envoy.send(&preflight()));
    }
    assert_eq!(envoy.send(&Request::get("/")).status, 200);
    for almost in [
        Request::new("OPTIONS", "/"),
        Request::new("OPTIONS", "/").header("Origin", "https://example.org"),
        Request::new("OPTIONS", "/").header("Access-Control-Request-Method", "PUT"),
        Request::get("/")
            .header("Origin", "https://example.org")
            .header("Access-Control-Request-Method", "PUT"),
    ] {
        assert_eq!(envoy.send(&almost).status, 429, "{almost:?} is no preflight");
    }
}
