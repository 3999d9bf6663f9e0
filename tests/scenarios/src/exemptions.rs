//! Callers and requests without a limit, and callers that are always refused.

use serde_json::json;

use crate::support::{assert_processing_time, two_tiers};
use crate::{Host, Request, Response, Setup};

const RATE_HEADERS: [&str; 4] =
    ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"];

#[track_caller]
fn assert_unlimited(reply: &Response) {
    assert_eq!(reply.status, 200);
    for name in RATE_HEADERS {
        assert!(!reply.has(name), "{name} in {reply:#?}");
    }
}

pub fn an_unlimited_tier_is_never_refused(host: &dyn Host) {
    let mut config = two_tiers(1, 1);
    config["tiers"]["internal"] = json!({"unlimited": true});
    config["api_keys"]["internal"] = json!({"tier": "internal", "id": "internal"});
    let mut gateway = host.start(&Setup::new().config(&config));
    for _ in 0..100 {
        let reply = gateway.send(&Request::get("/").key("internal"));
        assert_unlimited(&reply);
        assert_eq!(reply.tier(), "internal");
        assert_eq!(reply.one("x-system-health"), "NORMAL");
        assert_processing_time(&reply);
    }
    gateway.await_requests("internal", "exempt", 100);
}

pub fn a_tier_without_capacity_is_blocked(host: &dyn Host) {
    let mut config = two_tiers(1, 1);
    config["tiers"]["banned"] = json!({"base": {"capacity": 0, "refill_rate": 0}, "ttl": 60});
    config["api_keys"]["banned"] = json!({"tier": "banned", "id": "banned"});
    let mut gateway = host.start(&Setup::new().config(&config));
    for _ in 0..3 {
        let reply = gateway.send(&Request::get("/").key("banned"));
        assert_eq!((reply.status, reply.limit(), reply.remaining()), (429, 0, 0));
        assert_eq!(reply.tier(), "banned");
        assert!(!reply.has("retry-after"), "waiting does not help");
        assert_eq!(reply.text(), "Too Many Requests");
    }
    gateway.await_requests("banned", "blocked", 3);
}

pub fn exempt_paths_cost_no_tokens_and_get_no_headers(host: &dyn Host) {
    let mut config = two_tiers(1, 1);
    config["exempt_paths"] = json!(["/metrics", "/static/*"]);
    let mut gateway = host.start(&Setup::new().config(&config));
    let exempt = ["/metrics", "/metrics?x=1", "/static/", "/static/a/b?c"];
    for path in exempt {
        for _ in 0..3 {
            let reply = gateway.send(&Request::get(path));
            assert_unlimited(&reply);
            assert!(!reply.has("x-ratelimit-tier"), "{path}");
        }
    }
    assert_eq!(gateway.statuses(&Request::get("/"), 2), [200, 429], "no token was taken");
    for path in ["/metrics/", "/metrics2", "/Metrics", "/static", "/x?/static/"] {
        assert_eq!(gateway.send(&Request::get(path)).status, 429, "{path} is limited");
    }
    assert_unlimited(&gateway.send(&Request::get("/metrics")));
    gateway.await_requests("free", "exempt", 13);
}

pub fn preflights_are_exempt_if_configured(host: &dyn Host) {
    let with_origin = |request: Request| request.header("Origin", "https://example.org");
    let with_method = |request: Request| request.header("Access-Control-Request-Method", "PUT");
    let options = Request::new("OPTIONS", "/");
    let preflight = with_method(with_origin(options.clone()));
    let mut config = two_tiers(1, 1);
    let mut charged = host.start(&Setup::new().config(&config));
    assert_eq!(charged.statuses(&preflight, 2), [200, 429]);

    config["exempt_preflight"] = json!(true);
    let mut gateway = host.start(&Setup::new().config(&config));
    for _ in 0..5 {
        assert_unlimited(&gateway.send(&preflight));
    }
    assert_eq!(gateway.send(&Request::get("/")).status, 200);
    for almost in [
        options.clone(),
        with_origin(options.clone()),
        with_method(options),
        with_method(with_origin(Request::get("/"))),
    ] {
        assert_eq!(gateway.send(&almost).status, 429, "{almost:?} is no preflight");
    }
}
