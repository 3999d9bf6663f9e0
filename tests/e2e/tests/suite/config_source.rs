//! `config_source`: saving a file reloads it.

use e2e::client::Request;
use e2e::envoy::{Envoy, follows_writing_in_place};
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use scenarios::documents::{api_keys, config, tiers};
use serde_json::json;

use crate::support::await_that;

/// Waits until every worker answers a request without a key with this limit.
#[track_caller]
fn await_limit(envoy: &Envoy, limit: u64) {
    let mut connections: Vec<_> = (0..12).map(|_| envoy.connect()).collect();
    await_that(&format!("a limit of {limit} on every worker"), || {
        connections.iter_mut().all(|connection| connection.send(&Request::get("/")).limit() == limit)
    });
}

#[track_caller]
fn await_tier(envoy: &Envoy, key: &str, tier: &str) {
    await_that(&format!("{key:?} in {tier}"), || envoy.send(&Request::get("/").key(key)).tier() == tier);
}

#[test]
fn saving_a_document_reloads_it_by_rename_and_in_place() {
    let envoy =
        Setup::new().config(&config()).config_files(&tiers(1_000, 50), &api_keys("first")).workers(4).start();
    await_limit(&envoy, 1_000);
    envoy.save("tiers.json", &tiers(1_001, 50));
    await_limit(&envoy, 1_001);
    // Before 1.39 Envoy detects only moved files, and rejects a configuration with `watch_modify`.
    let write = |name, text: &str| match follows_writing_in_place() {
        true => envoy.edit_in_place(name, text),
        false => envoy.save(name, text),
    };
    write("tiers.json", &tiers(1_002, 50));
    await_limit(&envoy, 1_002);
    write("api_keys.json", &api_keys("second"));
    await_tier(&envoy, "second", "pro");
    await_tier(&envoy, "first", "free");
    envoy.save("api_keys.json", &api_keys("third"));
    await_tier(&envoy, "third", "pro");
    await_tier(&envoy, "second", "free");
}

#[test]
fn a_cluster_whose_name_is_no_host_is_sent_one() {
    let server = Upstream::start(|_| Answer::ok(tiers(1_000, 50)));
    let mut config = config();
    config["config_source"] = json!({"cluster": "outbound|80||docs.default", "tiers": "/tiers.json"});
    let envoy = Setup::new().config(&config).cluster("outbound|80||docs.default", server.address()).start();
    await_limit(&envoy, 1_000);
    let requests = server.received();
    let host = requests[0].headers.iter().find(|(name, _)| name == "host").map(|(_, host)| host.as_slice());
    assert_eq!(host, Some(&b"outbound-80--docs.default"[..]));
}
