//! A different spelling of an endpoint's path is not the endpoint, unless Envoy normalises it to that path.

use crate::support::{TOKEN, two_tiers};
use crate::{Host, Request, Setup};

/// Spellings that an inexact match would accept as `/system/health`.
pub const TRICKS: [&str; 18] = [
    "//system/health",
    "/system//health",
    "/system/health/",
    "/system/health//",
    "/system%2fhealth",
    "/system%2Fhealth",
    "/%73ystem/health",
    "/SYSTEM/health",
    "/System/Health",
    "/system/health;x",
    "/system;x/health",
    "/system/health%20",
    "/system/health%00",
    "/system/health%3fx",
    "/./system/health",
    "/system/./health",
    "/x/../system/health",
    "/system/health/.",
];

fn setup() -> Setup {
    Setup::new().config(&two_tiers(1_000, 7)).addresses()
}

pub fn post(path: &str) -> Request {
    Request::post(path, r#"{"status":"DEGRADED"}"#)
}

/// Whether this request target, without normalisation, is the endpoint.
pub fn is_endpoint(target: &str) -> bool {
    target.split('?').next() == Some("/system/health")
}

pub fn without_normalisation_another_spelling_is_another_path(host: &dyn Host) {
    let mut gateway = host.start(&setup());
    for trick in TRICKS {
        let with_token = post(trick).header("X-Admin-Token", TOKEN);
        for request in [post(trick), with_token, Request::get(trick)] {
            let reply = gateway.send(&request);
            assert_eq!((reply.status, reply.text().as_str()), (200, "ok"), "{trick}");
            assert!(reply.has("x-ratelimit-remaining"), "{trick} costs a token");
        }
        assert_eq!(gateway.health(), "NORMAL", "{trick}");
        assert_eq!(gateway.upstream_targets().pop().as_deref(), Some(trick), "forwarded unchanged");
    }
    assert!(!gateway.upstream_targets().iter().any(|target| is_endpoint(target)));
}

pub fn the_query_does_not_matter(host: &dyn Host) {
    let mut gateway = host.start(&setup());
    let spellings = ["/system/health?x", "/system/health?", "/system/health?a=b/../c&d=%00"];
    for (last, path) in spellings.into_iter().enumerate() {
        // Each from its own address, so that the login throttle does not refuse it.
        let refused = gateway.send(&post(path).from(&format!("203.0.113.{last}")));
        assert_eq!(refused.status, 403, "{path}");
        assert_eq!(gateway.send(&Request::get(path)).json()["health"], "NORMAL", "{path}");
    }
    assert_eq!(gateway.send(&Request::get("/health?x")).json()["status"], "healthy");
    let with_token = post("/system/health?x").header("X-Admin-Token", TOKEN);
    assert_eq!(gateway.send(&with_token).status, 200);
    assert_eq!(gateway.health(), "DEGRADED");
    assert_eq!(gateway.upstream_targets(), [""; 0]);
}
