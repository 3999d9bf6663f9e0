//! `docker-compose.yml`.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use e2e::client::Request;
use e2e::wait;
use serde_json::Value;

use crate::Progress;
use crate::clients::{self, await_redis, send};
use crate::compose::{Compose, text};

const PROJECT: &str = "rate-limiter-test-development";

pub(crate) fn run(progress: &mut Progress) {
    old_compose_reports_the_required_version(progress);
    let compose = Compose::new(&progress.folder, "docker-compose.yml", PROJECT);
    prints_nothing(&compose, &["config"]);
    progress.passed("`docker compose config` prints no warning");

    compose.run_with_filter("compiled", &["build"]);
    progress.passed("the image is built, the filter in its own build stage");
    compose.run_with_filter("compiled", &["up", "--detach"]);
    first_request_is_served();
    progress.passed("up, and the first request has the limits of its tier");
    let hash = compose.exec("redis", &["redis-cli", "HGETALL", "rate_limit:pro"]);
    assert_eq!(hash.lines().step_by(2).collect::<Vec<_>>(), ["tokens", "last_refill"], "{hash}");
    let scrape = "http://127.0.0.1:9901/stats/prometheus?filter=rate_limiter";
    let metrics = compose.exec("redis", &["wget", "-qO-", scrape]);
    assert!(metrics.contains("rate_limiter_requests_total{"), "{metrics}");
    assert_eq!(published(&compose.inspect("envoy")[0]), ["8000/tcp=:8000"]);
    assert!(published(&compose.inspect("redis")[0]).is_empty());
    progress.passed("HGETALL and the metrics as documented, nothing published but port 8000");

    a_saved_tier_applies(progress);
    progress.passed("a saved tier applies");
    redis_restart_loses_no_request(&compose, progress);
    restart_of_envoy_restarts_redis(&compose);
    progress.passed("`restart envoy` restarts Redis");

    compose.down();
    compose.run(&["up", "--detach"]);
    first_request_is_served();
    compose.down();
    progress.passed("down and up again, with the filter that was built before");
}

/// Docker Compose 1, where it is installed, reports that version 2 is required.
fn old_compose_reports_the_required_version(progress: &mut Progress) {
    let version = Command::new("docker-compose").args(["version", "--short"]).output();
    let is_old = version.is_ok_and(|version| version.stdout.starts_with(b"1."));
    if !is_old {
        return progress.passed(
            "SKIPPED, because docker-compose 1 is not installed: its error names the required version",
        );
    }
    for file in ["docker-compose.yml", "deploy/compose/production.yml"] {
        let output = Command::new("docker-compose")
            .args(["-f", file, "config"])
            .current_dir(&progress.folder)
            .env_remove("COMPOSE_PROJECT_NAME")
            .output()
            .expect("docker-compose");
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && printed.contains("needs Docker Compose 2"), "{printed}");
    }
    progress.passed("docker-compose 1 reports that Compose 2 is required");
}

#[track_caller]
pub(crate) fn prints_nothing(compose: &Compose, arguments: &[&str]) {
    let (succeeded, printed) = compose.try_run(&[arguments, &["--quiet"]].concat());
    assert!(succeeded && printed.is_empty(), "{printed}");
}

/// The request waits until the worker has the documents.
#[track_caller]
pub(crate) fn first_request_is_served() {
    let first = clients::first_response(&Request::get("/test").key("pro"));
    assert_eq!((first.status, first.tier().as_str(), first.limit()), (200, "pro", 25));
}

/// The published ports of a container: `8000/tcp=127.0.0.1:8000`.
#[track_caller]
pub(crate) fn published(container: &Value) -> Vec<String> {
    let mut published = Vec::new();
    for (port, bindings) in container["HostConfig"]["PortBindings"].as_object().into_iter().flatten() {
        for to in bindings.as_array().expect("bindings") {
            published.push(format!("{port}={}:{}", text(&to["HostIp"]), text(&to["HostPort"])));
        }
    }
    published
}

#[track_caller]
pub(crate) fn a_saved_tier_applies(progress: &Progress) {
    let file = "config/tiers.json";
    let before = progress.edit(file, &[("\"capacity\": 25", "\"capacity\": 40")]);
    wait::until_within(Duration::from_secs(40), "the saved tier", || {
        (send(&Request::get("/test").key("pro")).limit() == 40).then_some(())
    });
    fs::write(progress.folder.join(file), before).expect("written");
}

#[track_caller]
fn redis_restart_loses_no_request(compose: &Compose, progress: &mut Progress) {
    let request = Request::get("/test").key("enterprise");
    let ((), exchanges) = clients::under_load(10, Duration::from_millis(20), &request, || {
        thread::sleep(Duration::from_millis(500));
        compose.run(&["stop", "redis"]);
        await_redis("disconnected");
        compose.run(&["start", "redis"]);
        await_redis("connected");
    });
    let count = clients::assert_all_served(&exchanges);
    progress.passed(format!("Redis stopped and started again, none of {count} requests lost"));
}

#[track_caller]
fn restart_of_envoy_restarts_redis(compose: &Compose) {
    let started = || text(&compose.inspect("redis")[0]["State"]["StartedAt"]).to_owned();
    let before = started();
    compose.run(&["restart", "envoy"]);
    assert_ne!(started(), before);
    await_redis("connected");
}
