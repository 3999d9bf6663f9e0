//! A different spelling of an endpoint's path is not the endpoint, unless Envoy normalises it to that path.

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::http2;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use scenarios::paths::{TRICKS, is_endpoint, post};
use serde_json::{Value, json};

use crate::support::{TOKEN, health, two_tiers};

/// How edge proxies are configured to normalise paths.
fn normalising() -> Value {
    json!({
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
    })
}

fn start(hcm: &Value) -> (Upstream, Envoy) {
    let upstream = Upstream::start(|_| Answer::ok("upstream"));
    let envoy = Setup::new().config(&two_tiers(1_000, 7)).hcm(hcm).upstream(upstream.address()).start();
    (upstream, envoy)
}

#[test]
fn if_envoy_normalises_no_spelling_bypasses_the_token() {
    let (upstream, envoy) = start(&normalising());
    for (last, trick) in TRICKS.into_iter().enumerate() {
        // Each from its own address, so that the login throttle does not refuse it.
        let last = u8::try_from(last + 1).expect("few tricks");
        Connection::open_from(last, envoy.address()).send(&post(trick));
        assert_eq!(health(&envoy), "NORMAL", "{trick}");
    }
    let passed_on = upstream.targets();
    assert!(!passed_on.iter().any(|target| is_endpoint(target)), "{passed_on:?}");
    assert!(!passed_on.is_empty(), "other paths are sent to the upstream");
}

#[test]
fn the_endpoint_is_matched_by_the_normalised_path() {
    let (upstream, envoy) = start(&normalising());
    for (spelling, status) in
        [("//system/health", "DEGRADED"), ("/x/../system/health", "NORMAL"), ("/system%2Fhealth", "DEGRADED")]
    {
        let request =
            Request::post(spelling, json!({"status": status}).to_string()).header("X-Admin-Token", TOKEN);
        assert_eq!(envoy.send(&request).status, 200, "{spelling}");
        assert_eq!(health(&envoy), status, "{spelling}");
    }
    assert_eq!(upstream.targets(), [""; 0]);
}

#[test]
fn an_absolute_target_is_matched_by_its_path() {
    let (upstream, envoy) = start(&json!({}));
    for target in ["http://e2e/system/health", "http://elsewhere:1/system/health?x"] {
        assert_eq!(envoy.send(&post(target)).status, 403, "{target}");
        assert_eq!(envoy.send(&Request::get(target)).json()["health"], "NORMAL", "{target}");
    }
    assert_eq!(upstream.targets(), [""; 0]);
}

#[test]
fn spellings_are_matched_the_same_over_http2() {
    let (upstream, envoy) = start(&json!({}));
    let tricks: Vec<_> = TRICKS.iter().map(|trick| post(trick).header("x-admin-token", TOKEN)).collect();
    for reply in http2::send_all(envoy.address(), &tricks) {
        assert_eq!(reply.text(), "upstream");
    }
    assert_eq!(health(&envoy), "NORMAL");
    assert!(!upstream.targets().iter().any(|target| is_endpoint(target)));
}
