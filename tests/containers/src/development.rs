//! `docker-compose.yml`, which many will try first.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use e2e::client::Request;
use e2e::wait;
use serde_json::Value;

use crate::Story;
use crate::clients::{self, Clients, ask, await_redis};
use crate::compose::{Compose, text};

const PROJECT: &str = "rate-limiter-test-development";

pub(crate) fn run(story: &mut Story) {
    old_compose_says_what_is_needed(story);
    let compose = Compose::new(&story.folder, "docker-compose.yml", PROJECT);
    says_nothing(&compose, &["config"]);
    story.seen("`docker compose config` warns of nothing");

    compose.run_with_filter("compiled", &["build"]);
    story.seen("the image is built, the filter in its own build stage");
    compose.run_with_filter("compiled", &["up", "--detach"]);
    first_request_is_right();
    story.seen("up, and the first request is right");
    let hash = compose.exec("redis", &["redis-cli", "HGETALL", "rate_limit:pro"]);
    assert_eq!(hash.lines().step_by(2).collect::<Vec<_>>(), ["tokens", "last_refill"], "{hash}");
    let scrape = "http://127.0.0.1:9901/stats/prometheus?filter=rate_limiter";
    let metrics = compose.exec("redis", &["wget", "-qO-", scrape]);
    assert!(metrics.contains("rate_limiter_requests_total{"), "{metrics}");
    only_the_service_is_published(&compose);
    story.seen("HGETALL and the metrics as documented, nothing published but port 8000");

    a_saved_tier_holds(&story.folder);
    story.seen("a saved tier holds");
    redis_goes_and_comes(&compose, story);
    restart_of_envoy_takes_redis_with_it(&compose);
    story.seen("`restart envoy` takes Redis with it");

    compose.down();
    compose.run(&["up", "--detach"]);
    first_request_is_right();
    compose.down();
    story.seen("down and up again, with the filter that lies ready");
}

/// Where the Compose of the first generation is, it says so in so many words.
fn old_compose_says_what_is_needed(story: &mut Story) {
    let version = Command::new("docker-compose").args(["version", "--short"]).output();
    let is_old = version.is_ok_and(|version| version.stdout.starts_with(b"1."));
    if !is_old {
        return story.seen("NOT SEEN, for there is no docker-compose 1 here: that it says what is needed");
    }
    for file in ["docker-compose.yml", "deploy/compose/production.yml"] {
        let output = Command::new("docker-compose")
            .args(["-f", file, "config"])
            .current_dir(&story.folder)
            .env_remove("COMPOSE_PROJECT_NAME")
            .output()
            .expect("docker-compose");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("needs Docker Compose 2"), "{said}");
    }
    story.seen("docker-compose 1 says that Compose 2 is needed");
}

/// No warning, no notice.
#[track_caller]
pub(crate) fn says_nothing(compose: &Compose, arguments: &[&str]) {
    let (content, said) = compose.try_run(&[arguments, &["--quiet"]].concat());
    assert!(content && said.is_empty(), "{said}");
}

/// Of a caller with a key, and by the documents: a worker holds its first requests until it has them.
#[track_caller]
fn first_request_is_right() {
    let first = clients::first_answer(&Request::get("/test").key("pro"));
    assert_eq!((first.status, first.tier().as_str(), first.limit()), (200, "pro", 25));
}

#[track_caller]
fn only_the_service_is_published(compose: &Compose) {
    assert_eq!(published(&compose.inspect("envoy")[0]), ["8000/tcp=:8000"]);
    assert!(published(&compose.inspect("redis")[0]).is_empty());
}

/// What a container's ports are published as: `8000/tcp=127.0.0.1:8000`.
#[track_caller]
pub(crate) fn published(container: &Value) -> Vec<String> {
    let bindings = container["HostConfig"]["PortBindings"].as_object().cloned().unwrap_or_default();
    let port = |(port, bindings): (&String, &Value)| {
        let bindings = bindings.as_array().expect("bindings").clone();
        let port = port.clone();
        bindings
            .into_iter()
            .map(move |to| format!("{port}={}:{}", text(&to["HostIp"]), text(&to["HostPort"])))
    };
    bindings.iter().flat_map(port).collect()
}

#[track_caller]
pub(crate) fn a_saved_tier_holds(folder: &std::path::Path) {
    let path = folder.join("config/tiers.json");
    let tiers = fs::read_to_string(&path).expect("config/tiers.json");
    let changed = tiers.replace("\"capacity\": 25", "\"capacity\": 40");
    assert_ne!(tiers, changed);
    fs::write(&path, changed).expect("written");
    wait::until_within(Duration::from_secs(40), "the saved tier", || {
        (ask(&Request::get("/test").key("pro")).limit() == 40).then_some(())
    });
    fs::write(&path, tiers).expect("written");
}

/// No request is lost when Redis is stopped and started.
#[track_caller]
fn redis_goes_and_comes(compose: &Compose, story: &mut Story) {
    let load = Clients::start(10, Duration::from_millis(20), &Request::get("/test").key("enterprise"));
    thread::sleep(Duration::from_millis(500));
    compose.run(&["stop", "redis"]);
    await_redis("disconnected");
    compose.run(&["start", "redis"]);
    await_redis("connected");
    let count = clients::assert_all_served(&load.stop());
    story.seen(format!("Redis stopped and started again, none of {count} requests lost"));
}

#[track_caller]
fn restart_of_envoy_takes_redis_with_it(compose: &Compose) {
    let started = || text(&compose.inspect("redis")[0]["State"]["StartedAt"]).to_owned();
    let before = started();
    compose.run(&["restart", "envoy"]);
    assert_ne!(started(), before);
    await_redis("connected");
}
