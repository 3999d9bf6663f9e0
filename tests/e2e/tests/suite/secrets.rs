//! No key and no token reaches a stat, a metric or a log line.
//!
//! The harness searches all outputs for the secrets of every test (`e2e::canary`). These tests show that the search
//! finds secrets, that the filter received them, and that no output contains them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use e2e::canary;
use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::setup::Setup;
use e2e::sha256_hex;
use e2e::upstream::{Answer, Upstream};
use serde_json::json;

use crate::support::{ONE_PER_HOUR, set_health_with_token, tier};

#[test]
fn no_key_and_no_token_shows_in_stats_metrics_or_debug_logs() {
    let plain = "c4nary-plain-key";
    let hashed = "c4nary-hashed-key";
    let unknown = "c4nary-unknown-key";
    let token = "c4nary-admin-token";
    let guess = "c4nary-wrong-token";
    // This registers the hashes as secrets, too.
    let [hash, ..] = [hashed, plain, token].map(sha256_hex);
    let envoy = Setup::new()
        .config(&json!({
            "tiers": {"free": tier(3, ONE_PER_HOUR), "pro": tier(3, ONE_PER_HOUR)},
            "api_keys": { plain: "pro", format!("sha256:{hash}"): {"tier": "pro", "id": "acme"} },
        }))
        .env("ADMIN_TOKEN", token)
        .start();

    for key in [plain, hashed, unknown] {
        for _ in 0..5 {
            envoy.send(&Request::get("/").key(key));
        }
    }
    for (offered, status) in [(guess, 403), (token, 200)] {
        assert_eq!(envoy.send(&set_health_with_token("DEGRADED", offered)).status, status);
    }
    for body in [format!("{{\"status\":\"{guess}\"}}"), guess.to_owned()] {
        let request = Request::post("/system/health", body).header("X-Admin-Token", token);
        // Only for a valid token does the response repeat the invalid body.
        assert_eq!(envoy.connect().may_hold_secrets().send(&request).status, 400);
    }
    // Once the counters are reported, all log lines are written.
    envoy.await_metric("rate_limiter_requests_total", &[("tier", "pro"), ("status", "limited")], 4.0);
    // Dropping the Envoy searches its stats, metrics and log.
}

#[test]
fn a_refused_configuration_does_not_print_its_keys() {
    // Key and tier are easily swapped, so neither is shown.
    let keys = json!({"c4nary-key-of-no-tier": "c4nary-instead-of-a-tier"});
    let log = Setup::new().config(&json!({ "api_keys": keys })).start_refused();
    assert!(log.contains("api_keys[1]"), "the error names the place");
    assert!(!log.contains("c4nary"), "but neither key nor value");
}

/// Checks that the search finds a secret in all of these places, and that dropping the Envoy or Redis fails the test.
#[track_caller]
fn assert_found<T>(planted: T, search: impl Fn(&T) -> Vec<String>, places: &[&str]) {
    let found = search(&planted);
    for place in places {
        let start = format!("a secret in {place}:");
        assert!(found.iter().any(|line| line.starts_with(&start)), "{place} in {found:?}");
    }
    assert_eq!(found.len(), places.len(), "{found:?}");
    assert!(catch_unwind(AssertUnwindSafe(|| drop(planted))).is_err(), "dropping it fails the test");
}

#[test]
fn a_secret_in_a_response_fails_the_test_that_reads_it() {
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/header" => Answer::with(200, &[("x-planted", "c4nary-planted")]),
        "/name" => Answer::with(200, &[("x-c4nary-planted", "")]),
        _ => Answer::ok("first line\na c4nary-planted"),
    });
    let envoy = Setup::without_filter().upstream(upstream.address()).start();
    for path in ["/header", "/name", "/body"] {
        let read = catch_unwind(AssertUnwindSafe(|| envoy.send(&Request::get(path))));
        assert!(read.is_err(), "{path}");
    }
}

#[test]
fn a_secret_that_envoy_shows_is_found() {
    let access_log = json!({"access_log": [{
        "name": "envoy.access_loggers.stdout",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"},
    }]});
    let envoy = Setup::without_filter().hcm(&access_log).start();
    envoy.send(&Request::get("/c4nary-planted"));
    envoy.await_log(&["c4nary-planted"]);
    assert_found(envoy, Envoy::secrets, &["Envoy's log"]);

    let unused = ([127, 0, 0, 1], 9).into();
    let envoy = Setup::without_filter().cluster("c4nary_planted", unused).start();
    assert_found(envoy, Envoy::secrets, &["/stats", "/stats/prometheus"]);
    let envoy = Setup::without_filter().zone("c4nary-planted").start();
    assert_found(envoy, Envoy::secrets, &["/server_info"]);

    // Only 16 digits of a hash may be shown.
    let hash = sha256_hex("c4nary-that-is-hashed");
    let envoy = Setup::without_filter().zone(&hash[..16]).start();
    assert_eq!(envoy.secrets(), [""; 0]);
    let envoy = Setup::without_filter().zone(&hash[..17]).start();
    assert_found(envoy, Envoy::secrets, &["/server_info"]);
}

#[test]
fn a_secret_that_redis_keeps_is_found() {
    let cases: [(&[&str], &str); 5] = [
        (&["SET", "c4nary-planted", "1"], "Redis"),
        (&["SET", "name", "a c4nary-planted"], "Redis"),
        (&["HSET", "name", "field", "a c4nary-planted"], "Redis"),
        (&["AUTH", "c4nary-planted", "wrong"], "Redis"),
        (&["DEBUG", "LOG", "c4nary-planted"], "Redis' log"),
    ];
    for (command, place) in cases {
        let redis = Redis::start_with(&["enable-debug-command yes"]);
        if let Err(error) = redis.try_command(command) {
            assert!(error.code().is_some(), "no reply: {error}");
        }
        assert_found(redis, Redis::secrets, &[place]);
    }
    canary::register("no mark, but registered");
    let redis = Redis::start();
    redis.command(&["SET", "name", "no mark, but registered"]);
    assert_found(redis, Redis::secrets, &["Redis"]);
}
