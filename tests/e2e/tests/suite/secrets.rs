//! No key and no token reaches a stat, a metric or a log line.

use e2e::client::Request;
use e2e::setup::Setup;
use e2e::sha256_hex;
use serde_json::json;

use crate::support::{ONE_PER_HOUR, tier};

#[test]
fn no_key_and_no_token_shows_in_stats_metrics_or_debug_logs() {
    let plain = "canary-plain-key";
    let hashed = "canary-hashed-key";
    let unknown = "canary-unknown-key";
    let token = "canary-admin-token";
    let guess = "canary-wrong-token";
    let hash = sha256_hex(hashed);
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
        let request =
            Request::post("/system/health", r#"{"status":"DEGRADED"}"#).header("X-Admin-Token", offered);
        assert_eq!(envoy.send(&request).status, status);
    }
    for body in [format!("{{\"status\":\"{guess}\"}}"), guess.to_owned()] {
        let request = Request::post("/system/health", body).header("X-Admin-Token", token);
        assert_eq!(envoy.send(&request).status, 400);
    }
    // What was counted has arrived, so whatever was to be written has been.
    envoy.await_metric("rate_limiter_requests_total", &[("tier", "pro"), ("status", "limited")], 4.0);

    let places = [
        ("stats", envoy.admin("/stats")),
        ("metrics", envoy.admin("/stats/prometheus")),
        ("log", envoy.log()),
    ];
    let secrets = [
        plain.to_owned(),
        hashed.to_owned(),
        unknown.to_owned(),
        token.to_owned(),
        guess.to_owned(),
        hash,
        sha256_hex(plain),
        sha256_hex(token),
    ];
    for (place, text) in places {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{secret} in the {place}");
        }
    }
}

#[test]
fn a_refused_configuration_does_not_print_its_keys() {
    // Key and tier the wrong way round is an easy mistake, so neither is shown.
    let keys = json!({"canary-key-of-no-tier": "canary-instead-of-a-tier"});
    let log = Setup::new().config(&json!({ "api_keys": keys })).start_refused();
    assert!(log.contains("api_keys[1]"), "the error names the place");
    assert!(!log.contains("canary"), "but neither key nor value");
}
