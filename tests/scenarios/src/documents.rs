//! `config_source`: a served document is reloaded, and an invalid one changes nothing.

use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, assert_processing_time, tier, two_tiers};
use crate::{Gateway, Host, Request, Served, Setup, Source};

/// A configuration that fetches both documents once a second.
pub fn config() -> Value {
    let mut config = two_tiers(5, 7);
    config["config_source"] = json!({
        "cluster": "config_files",
        "tiers": "/tiers.json",
        "api_keys": "/api_keys.json",
        "ttl_seconds": 1,
    });
    config
}

/// A tier document with these capacities.
pub fn tiers(free: u64, pro: u64) -> String {
    json!({"free": tier(free, ONE_PER_HOUR), "pro": tier(pro, ONE_PER_HOUR)}).to_string()
}

/// A key document with this key.
pub fn api_keys(key: &str) -> String {
    json!({ key: {"tier": "pro", "id": "pro"} }).to_string()
}

/// A gateway with these documents.
pub(crate) fn setup(tiers: &str, keys: &str) -> Setup {
    Setup::new().config(&config()).document("/tiers.json", tiers).document("/api_keys.json", keys)
}

fn save(gateway: &mut dyn Gateway, path: &str, document: &str) {
    gateway.serve(path, Served::Document(document.into()));
}

#[track_caller]
fn await_tier(gateway: &mut dyn Gateway, key: &str, tier: &str) {
    gateway.until(&format!("{key:?} in {tier}"), |gateway| {
        gateway.send(&Request::get("/").key(key)).tier() == tier
    });
}

pub fn buckets_keep_their_tokens_across_a_reload(host: &dyn Host) {
    let mut gateway = host.start(&setup(&tiers(1_000, 10), &api_keys("pro")));
    gateway.await_limit(1_000);
    let remaining_of = |gateway: &mut dyn Gateway| gateway.send(&Request::get("/").key("pro")).remaining();
    assert_eq!([(); 3].map(|()| remaining_of(&mut *gateway)), [9, 8, 7]);
    for (free, pro, remaining, why) in [
        (1_001, 20, 6, "a larger bucket fills at its rate"),
        (1_002, 4, 3, "tokens above the capacity are lost"),
        (1_003, 20, 2, "and stay lost"),
    ] {
        save(&mut *gateway, "/tiers.json", &tiers(free, pro));
        gateway.await_limit(free);
        assert_eq!(remaining_of(&mut *gateway), remaining, "{why}");
    }
}

pub fn a_new_tier_and_its_first_key_may_be_saved_together(host: &dyn Host) {
    let mut gateway = host.start(&setup(&tiers(1_000, 10), &api_keys("pro")));
    gateway.await_limit(1_000);
    let gold = json!({"free": tier(1_000, ONE_PER_HOUR), "gold": tier(70, ONE_PER_HOUR)});
    // The keys first: they refer to an unknown tier for a moment; `pro` is removed afterwards.
    save(&mut *gateway, "/api_keys.json", &json!({"g": {"tier": "gold", "id": "g"}}).to_string());
    save(&mut *gateway, "/tiers.json", &gold.to_string());
    await_tier(&mut *gateway, "g", "gold");
    await_tier(&mut *gateway, "pro", "free");
}

/// Serves this from now on, and returns after the filter has fetched it at least twice.
#[track_caller]
fn serve_twice(gateway: &mut dyn Gateway, served: Served) {
    gateway.serve("/tiers.json", served);
    let fetched = gateway.fetch_count("/tiers.json");
    gateway.until("two more fetches", |gateway| gateway.fetch_count("/tiers.json") >= fetched + 2);
}

fn rejected(gateway: &mut dyn Gateway) -> f64 {
    gateway.metric("rate_limiter_config_reloads_total", &[("result", "rejected")]).unwrap_or(0.0)
}

pub fn an_invalid_document_is_counted_and_logged_once_and_the_last_valid_one_applies(host: &dyn Host) {
    let mut gateway = host.start(&setup(&tiers(1_000, 50), &api_keys("pro")));
    gateway.await_limit(1_000);

    let text = |text: &str| Served::Document(text.into());
    let negative = json!({"free": tier(1_000, -0.25), "pro": tier(5, 1.0)}).to_string();
    let no_default = json!({"pro": tier(5, 1.0)}).to_string();
    let no_pro = json!({"free": tier(5, 1.0)}).to_string();
    let bad = [
        ("a negative rate", text(&negative), "-0.25"),
        ("no default tier", text(&no_default), "free"),
        ("a key's tier removed", text(&no_pro), "pro"),
        ("half a document", text(r#"{"free": {"ba"#), ""),
        ("nothing", text(""), ""),
        ("no object", text("[1, 2]"), ""),
        ("bytes that are no UTF-8", Served::Document(b"{\"free\xff\": 1}".to_vec()), ""),
        ("not found", Served::Status(404), "404"),
        ("an error", Served::Status(500), "500"),
        ("unavailable", Served::Status(503), "503"),
        ("half a response", Served::BreaksOff, "broke off"),
    ];
    for (count, (what, served, reason)) in bad.into_iter().enumerate() {
        serve_twice(&mut *gateway, served);
        gateway.until(&format!("{what} counted"), |gateway| rejected(gateway) > count as f64);
        let warnings = gateway.warnings();
        let is_logged = |line: &String| line.contains("tiers") && line.contains(reason);
        assert!(warnings.iter().any(is_logged), "{what} is logged: {warnings:#?}");
        gateway.await_limit(1_000);
    }
    // There were two fetches of each document.
    assert_eq!(rejected(&mut *gateway), 11.0, "once per distinct content");
    serve_twice(&mut *gateway, text(&tiers(1_001, 50)));
    gateway.await_limit(1_001);
}

/// Whether `GET /health` reports missing documents.
#[track_caller]
fn missing(gateway: &mut dyn Gateway) -> bool {
    let reply = gateway.send(&Request::get("/health"));
    let report = reply.json();
    let is_missing = report["documents"] == "missing";
    assert_eq!((reply.status, report["status"] == "degraded"), (200, is_missing), "{report}");
    is_missing
}

pub fn the_documents_apply_to_the_first_request(host: &dyn Host) {
    let mut gateway = host.start(&setup(&tiers(1_000, 50), &api_keys("new-key")).workers(4));
    for (key, tier, limit) in [("new-key", "pro", 50), ("pro", "free", 1_000)] {
        for reply in gateway.send_to_every_worker(&Request::get("/").key(key)) {
            assert_eq!((reply.status, reply.tier().as_str(), reply.limit()), (200, tier, limit), "{key}");
        }
    }
    assert!(!missing(&mut *gateway));
}

pub fn an_upload_that_waits_for_documents_arrives_complete(host: &dyn Host) {
    let mut gateway = host.start(&setup(&tiers(1_000, 50), &api_keys("new-key")));
    let body = "x".repeat(100_000);
    let reply = gateway.send(&Request::post("/", body).key("new-key"));
    assert_eq!((reply.status, reply.tier().as_str()), (200, "pro"));
}

pub fn without_documents_requests_wait_a_second_and_then_the_plugin_configuration_applies(host: &dyn Host) {
    let mut setup = setup("", &api_keys("pro"));
    setup.documents[0].1 = Served::Never;
    // The second is counted by each worker.
    let mut gateway = host.start(&setup.workers(1));
    assert!(missing(&mut *gateway), "the health check does not wait");
    let reply = gateway.send(&Request::get("/"));
    assert_eq!((reply.status, reply.limit()), (200, 5));
    let waited = assert_processing_time(&reply);
    assert!((1.0..2.5).contains(&waited), "{waited}");
    let reply = gateway.send(&Request::get("/"));
    assert_eq!((reply.status, reply.limit()), (200, 5));
    assert!(assert_processing_time(&reply) < 1.0, "one second in total, not for each request");
    assert!(missing(&mut *gateway));
    let warnings = gateway.warnings();
    let logged = warnings.iter().filter(|line| line.contains("documents are missing")).count();
    assert_eq!(logged, 1, "{warnings:#?}");
    serve_twice(&mut *gateway, Served::Document(tiers(1_000, 50).into()));
    gateway.await_limit(1_000);
    assert!(!missing(&mut *gateway));
}

pub fn requests_do_not_wait_for_invalid_documents(host: &dyn Host) {
    let mut gateway = host.start(&setup("{", "{"));
    let reply = gateway.send(&Request::get("/"));
    assert_eq!((reply.status, reply.limit()), (200, 5), "the plugin configuration applies");
    assert!(assert_processing_time(&reply) < 1.0);
    assert!(!missing(&mut *gateway));
}

pub fn an_aborted_response_is_a_missing_document(host: &dyn Host) {
    let mut setup = setup("", &api_keys("pro"));
    setup.documents[0].1 = Served::BreaksOff;
    let mut gateway = host.start(&setup);
    gateway.await_warning("broke off");
    assert_eq!(gateway.send(&Request::get("/")).limit(), 5);
    serve_twice(&mut *gateway, Served::Document(tiers(1_000, 50).into()));
    gateway.await_limit(1_000);
}

pub fn without_a_source_the_plugin_configuration_applies(host: &dyn Host) {
    for source in [Source::Refuses, Source::Missing] {
        let mut gateway = host.start(&Setup { source, ..Setup::new().config(&config()) });
        gateway.await_warning("tiers");
        let reply = gateway.send(&Request::get("/"));
        assert_eq!((reply.status, reply.limit()), (200, 5), "{source:?}");
        assert_eq!(gateway.send(&Request::get("/").key("pro")).limit(), 7, "{source:?}");
    }
}
