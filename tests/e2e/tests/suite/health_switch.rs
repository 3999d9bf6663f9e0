//! A switch is seen by every worker at once and costs no bucket its tokens.

use e2e::client::{Connection, Request};
use e2e::setup::Setup;
use serde_json::json;

use crate::support::{TOKEN, two_tiers};

#[test]
fn namespaces_keep_two_limiters_apart() {
    let named = |namespace: &str| {
        let mut config = two_tiers(10, 10);
        config["namespace"] = json!(namespace);
        config
    };
    let envoy = Setup::new()
        .config(&named("first"))
        .listener("same", &named("first"))
        .listener("other", &named("second"))
        .start();
    let ask = |listener: &str| Connection::open(envoy.listener(listener)).send(&Request::get("/").key("pro"));
    assert_eq!(ask("main").remaining(), 9);
    assert_eq!(ask("same").remaining(), 8, "one namespace, one bucket");
    assert_eq!(ask("other").remaining(), 9, "another namespace, another bucket");

    let degrade = Request::post("/system/health", r#"{"status":"DEGRADED"}"#).header("X-Admin-Token", TOKEN);
    assert_eq!(envoy.send(&degrade).status, 200);
    assert_eq!(ask("same").one("x-system-health"), "DEGRADED");
    assert_eq!(ask("other").one("x-system-health"), "NORMAL");
}
