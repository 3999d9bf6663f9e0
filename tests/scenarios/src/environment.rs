//! The VM's environment overrides the JSON.

use serde_json::json;

use crate::support::{ONE_PER_HOUR, TOKEN, set_health_request, tier, two_tiers};
use crate::{Host, Request, Served, Setup};

pub fn admin_token_is_read_from_the_environment(host: &dyn Host) {
    let token = "c4nary-from-the-environment";
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)).variable("ADMIN_TOKEN", token));
    let refused = gateway.send(&set_health_request("DEGRADED"));
    assert_eq!(refused.status, 403, "the token of the JSON is not used");
    let request = Request::post("/system/health", r#"{"status":"DEGRADED"}"#).header("X-Admin-Token", token);
    assert_eq!(gateway.send(&request).status, 200);
    assert_eq!(gateway.health(), "DEGRADED");
}

pub fn admin_token_works_without_any_json(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().variable("ADMIN_TOKEN", TOKEN));
    assert_eq!(gateway.send(&set_health_request("DEGRADED")).status, 200);
    assert_eq!(gateway.health(), "DEGRADED");
}

pub fn an_empty_admin_token_is_never_valid(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().variable("ADMIN_TOKEN", ""));
    let request = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    assert_eq!(gateway.send(&request).status, 403);
    assert_eq!(gateway.send(&request.header("X-Admin-Token", "")).status, 403);
    assert_eq!(gateway.health(), "NORMAL");
}

pub fn default_tier_is_read_from_the_environment(host: &dyn Host) {
    let mut config = two_tiers(5, 7);
    config["default_tier"] = json!("free");
    let mut gateway = host.start(&Setup::new().config(&config).variable("DEFAULT_TIER", "pro"));
    let reply = gateway.send(&Request::get("/"));
    assert_eq!((reply.tier().as_str(), reply.limit()), ("pro", 7));
}

pub fn config_ttl_is_read_from_the_environment(host: &dyn Host) {
    let with_capacity = |capacity| json!({"free": tier(capacity, ONE_PER_HOUR)}).to_string();
    let mut config = two_tiers(5, 7);
    config["config_source"] = json!({
        "cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 3600,
    });
    config["api_keys"] = json!({});
    let mut gateway = host.start(
        &Setup::new().config(&config).document("/tiers.json", &with_capacity(11)).variable("CONFIG_TTL", "1"),
    );
    gateway.await_limit(11);
    gateway.serve("/tiers.json", Served::Document(with_capacity(12).into()));
    gateway.await_limit(12);
}

/// Every rule has its test in `tests/config.rs`.
pub fn an_invalid_field_is_refused_by_name(host: &dyn Host) {
    let mut config = two_tiers(5, 7);
    config["tiers"]["free"]["base"]["refill_rate"] = json!(-1);
    let log = host.start_refused(&Setup::new().config(&config));
    let names_field = |line: &str| line.contains("tiers.free.base.refill_rate") && line.contains("-1");
    assert!(log.lines().any(names_field), "{log}");
}

pub fn an_invalid_value_is_refused_by_name(host: &dyn Host) {
    let without_source = two_tiers(5, 7);
    let mut with_source = without_source.clone();
    with_source["config_source"] = json!({"cluster": "config_files", "tiers": "/tiers.json"});
    for (name, value, config) in [
        ("DEFAULT_TIER", "platinum", &without_source),
        ("CONFIG_TTL", "soon", &with_source),
        ("CONFIG_TTL", "0", &with_source),
        ("CONFIG_TTL", "-5", &with_source),
    ] {
        let log = host
            .start_refused(&Setup::new().config(config).document("/tiers.json", "{}").variable(name, value));
        assert!(log.contains(name), "{name}={value:?} is named in\n{log}");
    }
}
