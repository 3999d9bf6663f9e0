//! `deploy/compose/production.yml`: it is hardened, and no request is lost when Redis or a limiter stops.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use e2e::client::Request;
use e2e::load::Exchange;
use serde_json::{Value, json};

use crate::Progress;
use crate::clients::{self, assert_all_served, await_redis, send};
use crate::compose::{Compose, docker, text};
use crate::development::{a_saved_tier_applies, first_request_is_served, prints_nothing, published};
use crate::{connections, drain, monitoring};

const PROJECT: &str = "rate-limiter-test-production";
const SERVICES: [&str; 4] = ["lb", "limiter", "redis", "upstream"];

/// The number of clients.
pub(crate) const CLIENTS: usize = 30;

pub(crate) fn compose(progress: &Progress) -> Compose {
    Compose::new(&progress.folder, "deploy/compose/production.yml", PROJECT)
}

pub(crate) fn run(progress: &mut Progress) {
    let compose = compose(progress);
    let secrets = progress.folder.join("deploy/compose/secrets");
    let (succeeded, printed) = compose.try_run(&["up", "--detach", "--build"]);
    assert!(!succeeded && printed.contains("deploy/compose/secrets/"), "{printed}");
    compose.run_script("deploy/compose/make-secrets");
    for secret in ["admin_token", "redis_password", "grafana_password"] {
        assert_eq!(fs::read(secrets.join(secret)).expect(secret).len(), 64);
    }
    assert_eq!(fs::metadata(&secrets).expect("secrets").permissions().mode() & 0o777, 0o700);
    prints_nothing(&compose.with_profile("monitoring"), &["config"]);
    progress.passed(
        "without secrets the error names the missing file, `make-secrets` makes them, `config` prints no warning",
    );

    slow_upstream_and_large_tier(progress);
    compose.run(&["up", "--detach"]);
    for (service, count) in [("limiter", 3), ("redis", 1), ("lb", 1)] {
        compose.await_healthy(service, count);
    }
    first_request_is_served();
    progress.passed("up and healthy, and the first request has the limits of its tier");
    compose.with_profile("monitoring").run(&["up", "--detach", "--no-deps", "prometheus"]);

    containers_match_the_file(&compose);
    progress.passed("users, read-only file systems, capabilities and limits match the file");
    documented_commands_work(&compose, &secrets);
    a_saved_tier_applies(progress);
    progress.passed("the documented commands work, and a saved tier applies");
    redis_outages_lose_no_request(&compose, progress);
    drain::run(&compose, progress);
    connections::run(&compose, progress);
    monitoring::check(&compose, progress);
    no_secret_is_shown(&compose, &secrets);
    progress.passed("no secret in the logs, nor in `docker inspect`; no warning at a start");
    compose.down();
}

/// The upstream responds after 300 ms, and the tier `enterprise` allows the load of this test.
fn slow_upstream_and_large_tier(progress: &Progress) {
    let fault = "          http_filters:
          - name: envoy.filters.http.fault
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
              delay: {fixed_delay: 0.3s, percentage: {numerator: 100}}\n";
    progress.edit("deploy/compose/upstream.yaml", &[("          http_filters:\n", fault)]);
    progress.edit("config/tiers.json", &[("\"capacity\": 50", "\"capacity\": 1000000")]);
}

/// [`clients::under_load`] without a pause, as callers of the tier `enterprise`.
pub(crate) fn under_load<T>(count: usize, work: impl FnOnce() -> T) -> (T, Vec<Exchange>) {
    clients::under_load(count, Duration::ZERO, &Request::get("/test").key("enterprise"), work)
}

/// The settings of the file apply, in `docker inspect` and inside the containers.
fn containers_match_the_file(compose: &Compose) {
    let written: Value = serde_json::from_str(&compose.run(&["config", "--format", "json"])).expect("JSON");
    for service in SERVICES {
        let wanted = &written["services"][service];
        for container in compose.inspect(service) {
            let (host, name) = (&container["HostConfig"], text(&container["Name"]).trim_start_matches('/'));
            assert_eq!(container["Config"]["User"], wanted["user"], "{name}");
            assert_eq!(host["ReadonlyRootfs"], json!(true), "{name}");
            assert_eq!(host["CapDrop"], json!(["ALL"]), "{name}");
            assert_eq!(host["RestartPolicy"]["Name"], "unless-stopped", "{name}");
            let limits = &wanted["deploy"]["resources"]["limits"];
            let memory = host["Memory"].as_u64().map(|bytes| bytes.to_string());
            assert_eq!(memory.as_deref(), limits["memory"].as_str(), "{name}");
            let cpus = host["NanoCpus"].as_f64().map(|nanos| nanos / 1e9);
            assert_eq!(cpus, limits["cpus"].as_f64(), "{name}");
            assert_eq!(published(&container).is_empty(), service != "lb", "{name}");

            let inside = docker(&["exec", name, "sh", "-c", INSIDE]);
            let mut lines = inside.lines();
            assert_eq!(lines.next(), Some("read-only"), "{name}: {inside}");
            assert!(lines.clone().any(|line| line == "CapEff:0000000000000000"), "{name}: {inside}");
            assert!(lines.clone().any(|line| line == "NoNewPrivs:1"), "{name}: {inside}");
            let users: Vec<_> = lines.filter_map(|line| line.strip_prefix("Uid:")).collect();
            assert!(!users.is_empty() && users.iter().all(|user| *user != "0"), "{name}: {inside}");
        }
    }
    assert_eq!(published(&compose.inspect("lb")[0]), ["8000/tcp=:8000"]);
}

/// Whether the root file system is writable, and the user and capabilities of each process.
const INSIDE: &str = "if touch /x 2>/dev/null; then echo writable; else echo read-only; fi
for one in /proc/[0-9]*/status; do
  while read -r name value rest; do
    case $name in Uid:|CapEff:|NoNewPrivs:) echo \"$name$value\";; esac
  done < $one
done";

/// The commands in `docs/operating.md`.
fn documented_commands_work(compose: &Compose, secrets: &std::path::Path) {
    let cli = "REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli HGETALL rate_limit:pro";
    let hash = compose.exec("redis", &["sh", "-c", cli]);
    assert_eq!(hash.lines().step_by(2).collect::<Vec<_>>(), ["tokens", "last_refill"], "{hash}");
    let without_password = compose.exec("redis", &["redis-cli", "PING"]);
    assert!(without_password.contains("NOAUTH"), "{without_password}");

    let token = fs::read_to_string(secrets.join("admin_token")).expect("a token");
    for status in ["DEGRADED", "NORMAL"] {
        let change = Request::post("/system/health", json!({"status": status}).to_string());
        assert_eq!(send(&change.header("X-Admin-Token", &token)).status, 200);
    }
}

/// Redis is stopped, frozen for 4 s, and disconnected for 3 s.
fn redis_outages_lose_no_request(compose: &Compose, progress: &mut Progress) {
    let redis = compose.names("redis").remove(0);
    let network = format!("{PROJECT}_default");
    let outages: [(&str, &dyn Fn()); 3] = [
        ("stopped and started", &|| {
            compose.run(&["stop", "redis"]);
            await_redis("disconnected");
            compose.run(&["start", "redis"]);
        }),
        ("frozen for 4 s", &|| {
            docker(&["pause", &redis]);
            thread::sleep(Duration::from_secs(4));
            docker(&["unpause", &redis]);
        }),
        ("disconnected for 3 s", &|| {
            docker(&["network", "disconnect", &network, &redis]);
            thread::sleep(Duration::from_secs(3));
            docker(&["network", "connect", "--alias", "redis", &network, &redis]);
        }),
    ];
    for (what, outage) in outages {
        let ((), exchanges) = under_load(CLIENTS, || {
            thread::sleep(Duration::from_millis(500));
            outage();
            await_redis("connected");
        });
        let count = assert_all_served(&exchanges);
        progress.passed(format!("Redis {what}, none of {count} requests lost"));
    }
}

/// Searches the logs and `docker inspect`, which every user of the engine can read.
fn no_secret_is_shown(compose: &Compose, secrets: &std::path::Path) {
    let logs = compose.run(&["logs", "--no-color"]);
    let ids = compose.run(&["ps", "--all", "--quiet"]);
    let inspected = docker(&[&["inspect"], ids.lines().collect::<Vec<_>>().as_slice()].concat());
    for secret in fs::read_dir(secrets).expect("secrets") {
        let path = secret.expect("a file").path();
        let secret = fs::read_to_string(&path).expect("a secret");
        assert!(!logs.contains(&secret), "{} is in the logs", path.display());
        assert!(!inspected.contains(&secret), "{} is in `docker inspect`", path.display());
    }
    // Envoy logs its end by a signal as a warning.
    let warnings = |line: &&str| line.contains("[warning]") && !line.contains("caught ENVOY_SIGTERM");
    let at_start: Vec<_> = logs
        .lines()
        .filter(warnings)
        .filter(|line| line.contains("[main]") || line.contains("eprecated"))
        .collect();
    assert!(at_start.is_empty(), "{at_start:?}");
}
