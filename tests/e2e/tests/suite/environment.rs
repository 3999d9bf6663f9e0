//! The VM's environment wins over the JSON.

use e2e::client::Request;
use e2e::setup::Setup;
use serde_json::json;

use crate::support::{ONE_PER_HOUR, TOKEN, health, switch_request, tier, two_tiers};

#[test]
fn admin_token_comes_from_the_environment() {
    let envoy =
        Setup::new().config(&two_tiers(5, 7)).env("ADMIN_TOKEN", "c4nary-from-the-environment").start();
    assert_eq!(envoy.send(&switch_request("DEGRADED")).status, 403, "the JSON's has lost");
    let request = Request::post("/system/health", r#"{"status":"DEGRADED"}"#)
        .header("X-Admin-Token", "c4nary-from-the-environment");
    assert_eq!(envoy.send(&request).status, 200);
    assert_eq!(health(&envoy), "DEGRADED");
}

#[test]
fn admin_token_works_without_any_json() {
    let envoy = Setup::new().env("ADMIN_TOKEN", TOKEN).start();
    assert_eq!(envoy.send(&switch_request("DEGRADED")).status, 200);
    assert_eq!(health(&envoy), "DEGRADED");
}

#[test]
fn an_empty_admin_token_opens_nothing() {
    let envoy = Setup::new().env("ADMIN_TOKEN", "").start();
    let request = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    assert_eq!(envoy.send(&request).status, 403);
    assert_eq!(envoy.send(&request.header("X-Admin-Token", "")).status, 403);
    assert_eq!(health(&envoy), "NORMAL");
}

#[test]
fn default_tier_comes_from_the_environment() {
    let mut config = two_tiers(5, 7);
    config["default_tier"] = json!("free");
    let envoy = Setup::new().config(&config).env("DEFAULT_TIER", "pro").start();
    let reply = envoy.send(&Request::get("/"));
    assert_eq!((reply.tier().as_str(), reply.limit()), ("pro", 7));
}

#[test]
fn config_ttl_comes_from_the_environment() {
    let with_capacity = |capacity| json!({"free": tier(capacity, ONE_PER_HOUR)}).to_string();
    let mut config = two_tiers(5, 7);
    config["config_source"] = json!({
        "cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 3600,
    });
    config["api_keys"] = json!({});
    let envoy =
        Setup::new().config(&config).config_files(&with_capacity(11), "{}").env("CONFIG_TTL", "1").start();
    let limit_becomes = |limit| {
        e2e::wait::until(&format!("a limit of {limit}"), || {
            (envoy.send(&Request::get("/")).limit() == limit).then_some(())
        });
    };
    limit_becomes(11);
    envoy.save("tiers.json", &with_capacity(12));
    limit_becomes(12);
}

#[test]
fn a_wrong_value_is_refused_by_name() {
    let without_source = two_tiers(5, 7);
    let mut with_source = without_source.clone();
    with_source["config_source"] = json!({"cluster": "config_files", "tiers": "/tiers.json"});
    for (name, value, config) in [
        ("DEFAULT_TIER", "platinum", &without_source),
        ("CONFIG_TTL", "soon", &with_source),
        ("CONFIG_TTL", "0", &with_source),
        ("CONFIG_TTL", "-5", &with_source),
    ] {
        let log = Setup::new().config(config).config_files("{}", "{}").env(name, value).start_refused();
        assert!(log.contains(name), "{name}={value:?} is named in\n{log}");
    }
}
