//! `config_source`: saving the file is the reload, and a bad file changes nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use e2e::client::Request;
use e2e::envoy::{Envoy, follows_writing_in_place};
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream, refusing};
use e2e::wait;
use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, tier, two_tiers};

/// Follows both documents once a second.
fn config() -> Value {
    let mut config = two_tiers(5, 7);
    config["config_source"] = json!({
        "cluster": "config_files",
        "tiers": "/tiers.json",
        "api_keys": "/api_keys.json",
        "ttl_seconds": 1,
    });
    config
}

fn tiers(free: u64, pro: u64) -> String {
    json!({"free": tier(free, ONE_PER_HOUR), "pro": tier(pro, ONE_PER_HOUR)}).to_string()
}

fn api_keys(key: &str) -> String {
    json!({ key: {"tier": "pro", "id": "pro"} }).to_string()
}

/// Waits until every worker answers a request without a key with this limit.
#[track_caller]
fn await_limit(envoy: &Envoy, limit: u64) {
    let mut connections: Vec<_> = (0..12).map(|_| envoy.connect()).collect();
    wait::until(&format!("a limit of {limit} on every worker"), || {
        connections
            .iter_mut()
            .all(|connection| connection.send(&Request::get("/")).limit() == limit)
            .then_some(())
    });
}

#[track_caller]
fn await_tier(envoy: &Envoy, key: &str, tier: &str) {
    wait::until(&format!("{key:?} in {tier}"), || {
        (envoy.send(&Request::get("/").key(key)).tier() == tier).then_some(())
    });
}

#[test]
fn the_documents_replace_what_the_plugin_configuration_says() {
    let envoy = Setup::new()
        .config(&config())
        .config_files(&tiers(1_000, 50), &api_keys("new-key"))
        .workers(4)
        .start();
    await_limit(&envoy, 1_000);
    await_tier(&envoy, "new-key", "pro");
    await_tier(&envoy, "pro", "free");
}

#[test]
fn saving_is_the_reload_by_rename_and_in_place() {
    let envoy =
        Setup::new().config(&config()).config_files(&tiers(1_000, 50), &api_keys("first")).workers(4).start();
    await_limit(&envoy, 1_000);
    envoy.save("tiers.json", &tiers(1_001, 50));
    await_limit(&envoy, 1_001);
    // Before 1.39 Envoy follows moves alone, and refuses a configuration that asks for more.
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
fn buckets_keep_their_tokens_across_a_reload() {
    let envoy = Setup::new().config(&config()).config_files(&tiers(1_000, 10), &api_keys("pro")).start();
    await_limit(&envoy, 1_000);
    let ask = || envoy.send(&Request::get("/").key("pro")).remaining();
    assert_eq!([ask(), ask(), ask()], [9, 8, 7]);
    envoy.save("tiers.json", &tiers(1_001, 20));
    await_limit(&envoy, 1_001);
    assert_eq!(ask(), 6, "a larger bucket fills at its rate");
    envoy.save("tiers.json", &tiers(1_002, 4));
    await_limit(&envoy, 1_002);
    assert_eq!(ask(), 3, "tokens above the capacity are gone");
    envoy.save("tiers.json", &tiers(1_003, 20));
    await_limit(&envoy, 1_003);
    assert_eq!(ask(), 2, "and do not come back");
}

#[test]
fn a_new_tier_and_its_first_key_may_be_saved_together() {
    let envoy = Setup::new().config(&config()).config_files(&tiers(1_000, 10), &api_keys("pro")).start();
    await_limit(&envoy, 1_000);
    let gold = json!({
        "free": tier(1_000, ONE_PER_HOUR),
        "gold": tier(70, ONE_PER_HOUR),
    });
    // The keys first: for a moment they name a tier that is not there, and `pro` is gone after.
    envoy.save("api_keys.json", &json!({"g": {"tier": "gold", "id": "g"}}).to_string());
    envoy.save("tiers.json", &gold.to_string());
    await_tier(&envoy, "g", "gold");
    await_tier(&envoy, "pro", "free");
}

/// A source that answers `/tiers.json` with whatever it was last told.
struct Source {
    server: Upstream,
    tiers: Arc<Mutex<Answer>>,
}

impl Source {
    fn start(first: Answer) -> Self {
        let tiers = Arc::new(Mutex::new(first));
        let current = Arc::clone(&tiers);
        let server = Upstream::start(move |request| {
            if request.target == "/tiers.json" {
                current.lock().unwrap_or_else(PoisonError::into_inner).clone()
            } else {
                Answer::ok(api_keys("pro"))
            }
        });
        Self { server, tiers }
    }

    /// Answers like this from now on, and returns when the filter has asked at least twice.
    fn serve(&self, answer: Answer) {
        *self.tiers.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        let asked = self.times_asked();
        wait::until("two more fetches", || (self.times_asked() >= asked + 2).then_some(()));
    }

    fn times_asked(&self) -> usize {
        let targets = self.server.targets();
        targets.iter().filter(|target| *target == "/tiers.json").count()
    }
}

const REJECTED: (&str, &[(&str, &str)]) = ("rate_limiter_config_reloads_total", &[("result", "rejected")]);

#[test]
fn a_bad_document_is_counted_and_logged_once_and_the_last_good_one_stays() {
    let source = Source::start(Answer::ok(tiers(1_000, 50)));
    let envoy = Setup::new().config(&config()).cluster("config_files", source.server.address()).start();
    await_limit(&envoy, 1_000);

    let negative = json!({"free": tier(1_000, -0.25), "pro": tier(5, 1.0)}).to_string();
    let no_default = json!({"pro": tier(5, 1.0)}).to_string();
    let no_pro = json!({"free": tier(5, 1.0)}).to_string();
    let bad = [
        ("a negative rate", Answer::ok(negative), "-0.25"),
        ("no default tier", Answer::ok(no_default), "free"),
        ("a key's tier gone", Answer::ok(no_pro), "pro"),
        ("half a document", Answer::ok(r#"{"free": {"ba"#), ""),
        ("nothing", Answer::ok(""), ""),
        ("no object", Answer::ok("[1, 2]"), ""),
        ("bytes that are no UTF-8", Answer::ok(&b"{\"free\xff\": 1}"[..]), ""),
        ("not found", Answer::with(404, &[]), "404"),
        ("an error", Answer::with(500, &[]), "500"),
        ("a reset", Answer::Reset, ""),
    ];
    for (count, (what, answer, reason)) in bad.into_iter().enumerate() {
        source.serve(answer);
        wait::until(&format!("{what} counted"), || {
            (envoy.metric(REJECTED.0, REJECTED.1)? >= count as f64 + 1.0).then_some(())
        });
        let warned: Vec<_> = envoy
            .log_lines(&["tiers", reason])
            .into_iter()
            .filter(|line| line.contains("[warning]") || line.contains("[error]"))
            .collect();
        assert!(!warned.is_empty(), "{what} is logged\n{}", envoy.log());
        await_limit(&envoy, 1_000);
    }
    // Two fetches each and three workers' VMs: had each fetch been reported, there would be more.
    let counted = envoy.metric(REJECTED.0, REJECTED.1);
    assert_eq!(counted, Some(10.0), "once per distinct content");
    source.serve(Answer::ok(tiers(1_001, 50)));
    await_limit(&envoy, 1_001);
}

#[test]
fn a_source_that_never_answers_holds_up_nobody() {
    let late = Answer::Late(Duration::from_secs(60), Box::new(Answer::ok("{}")));
    let source = Source::start(late);
    let envoy = Setup::new().config(&config()).cluster("config_files", source.server.address()).start();
    let reply = envoy.send(&Request::get("/"));
    assert_eq!((reply.status, reply.limit()), (200, 5));
    source.serve(Answer::ok(tiers(1_000, 50)));
    await_limit(&envoy, 1_000);
}

#[test]
fn a_response_that_breaks_off_is_a_document_that_did_not_come() {
    let source = Source::start(Answer::BreakOff);
    let envoy = Setup::new().config(&config()).cluster("config_files", source.server.address()).start();
    envoy.await_log(&["[warning]", "broke off"]);
    assert_eq!(envoy.send(&Request::get("/")).limit(), 5);
    source.serve(Answer::ok(tiers(1_000, 50)));
    await_limit(&envoy, 1_000);
}

#[test]
fn without_a_source_the_plugin_configuration_holds() {
    let refused = Setup::new().config(&config()).cluster("config_files", refusing()).start();
    let unknown = Setup::new().config(&config()).start();
    for envoy in [&refused, &unknown] {
        envoy.await_log(&["[warning]", "tiers"]);
        let reply = envoy.send(&Request::get("/"));
        assert_eq!((reply.status, reply.limit()), (200, 5));
        assert_eq!(envoy.send(&Request::get("/").key("pro")).limit(), 7);
    }
}
