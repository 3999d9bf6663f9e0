//! `deploy/compose/production.yml`: hardened as written, and nothing lost when Redis or a limiter goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use e2e::client::Request;
use serde_json::{Value, json};

use crate::Story;
use crate::clients::{self, Clients, ask, assert_all_served, await_redis};
use crate::compose::{Compose, docker, text};
use crate::development::{a_saved_tier_holds, published, says_nothing};
use crate::{connections, drain, monitoring};

const PROJECT: &str = "rate-limiter-test-production";
const SERVICES: [&str; 4] = ["lb", "limiter", "redis", "upstream"];

/// Clients that are there all the time.
pub(crate) const CLIENTS: usize = 30;

pub(crate) fn compose(story: &Story) -> Compose {
    Compose::new(&story.folder, "deploy/compose/production.yml", PROJECT)
}

pub(crate) fn run(story: &mut Story) {
    let compose = compose(story);
    let secrets = story.folder.join("deploy/compose/secrets");
    let (content, said) = compose.try_run(&["up", "--detach", "--build"]);
    assert!(!content && said.contains("deploy/compose/secrets/"), "{said}");
    compose.run_script("deploy/compose/make-secrets");
    for secret in ["admin_token", "redis_password", "grafana_password"] {
        assert_eq!(fs::read(secrets.join(secret)).expect(secret).len(), 64);
    }
    assert_eq!(fs::metadata(&secrets).expect("secrets").permissions().mode() & 0o777, 0o700);
    says_nothing(&compose.with_profile("monitoring"), &["config"]);
    story.seen(
        "without secrets it says which file is missing, `make-secrets` makes them, `config` warns of nothing",
    );

    service_of_300_ms_and_room_for_all(story);
    compose.run(&["up", "--detach"]);
    for (service, count) in [("limiter", 3), ("redis", 1), ("lb", 1)] {
        compose.await_healthy(service, count);
    }
    let first = clients::first_answer(&Request::get("/test").key("pro"));
    assert_eq!((first.status, first.tier().as_str(), first.limit()), (200, "pro", 25));
    story.seen("up and healthy, and the first request is right");
    monitoring::start(&compose);

    everything_is_as_written(&compose);
    story.seen("users, read-only file systems, rights, limits and health checks as written");
    operators_commands_work(&compose, &secrets);
    a_saved_tier_holds(&story.folder);
    story.seen("an operator's commands work, and a saved tier holds");
    redis_goes_and_comes(&compose, story);
    drain::run(&compose, story);
    connections::run(&compose, story);
    monitoring::see(&compose, story);
    nothing_secret_is_shown(&compose, &secrets);
    story.seen("no secret in the logs, nor in `docker inspect`; no warning at a start");
    compose.down();
}

/// The service behind the limiters takes 300 ms, and the caller `enterprise` has room for all that is sent
/// here.
fn service_of_300_ms_and_room_for_all(story: &Story) {
    let edit = |file: &str, from: &str, to: &str| {
        let path = story.folder.join(file);
        let text = fs::read_to_string(&path).expect(file);
        assert_eq!(text.matches(from).count(), 1, "{from} in {file}");
        fs::write(path, text.replace(from, to)).expect("written");
    };
    let fault = "          http_filters:
          - name: envoy.filters.http.fault
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
              delay: {fixed_delay: 0.3s, percentage: {numerator: 100}}\n";
    edit("deploy/compose/upstream.yaml", "          http_filters:\n", fault);
    edit("config/tiers.json", "\"capacity\": 50", "\"capacity\": 1000000");
}

/// The request that all clients send.
pub(crate) fn request() -> Request {
    Request::get("/test").key("enterprise")
}

/// What the file says is so: not only set, but seen inside.
fn everything_is_as_written(compose: &Compose) {
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

/// Whether the root can be written to, and rights and user of every process.
const INSIDE: &str = "if touch /x 2>/dev/null; then echo writable; else echo read-only; fi
for one in /proc/[0-9]*/status; do
  while read -r name value rest; do
    case $name in Uid:|CapEff:|NoNewPrivs:) echo \"$name$value\";; esac
  done < $one
done";

/// What `docs/operating.md` has an operator type.
fn operators_commands_work(compose: &Compose, secrets: &std::path::Path) {
    let cli = "REDISCLI_AUTH=$(cat /run/secrets/redis_password) redis-cli HGETALL rate_limit:pro";
    let hash = compose.exec("redis", &["sh", "-c", cli]);
    assert_eq!(hash.lines().step_by(2).collect::<Vec<_>>(), ["tokens", "last_refill"], "{hash}");
    let unasked = compose.exec("redis", &["redis-cli", "PING"]);
    assert!(unasked.contains("NOAUTH"), "{unasked}");

    let token = fs::read_to_string(secrets.join("admin_token")).expect("a token");
    for status in ["DEGRADED", "NORMAL"] {
        let change = Request::post("/system/health", json!({"status": status}).to_string());
        assert_eq!(ask(&change.header("X-Admin-Token", &token)).status, 200);
    }
}

/// Stopped, frozen for 4 s, cut from the network for 3 s: no request is lost.
fn redis_goes_and_comes(compose: &Compose, story: &mut Story) {
    let redis = compose.names("redis").remove(0);
    let network = format!("{PROJECT}_default");
    let away: [(&str, &dyn Fn()); 3] = [
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
        ("cut off for 3 s", &|| {
            docker(&["network", "disconnect", &network, &redis]);
            thread::sleep(Duration::from_secs(3));
            docker(&["network", "connect", "--alias", "redis", &network, &redis]);
        }),
    ];
    for (what, goes_and_comes) in away {
        let load = Clients::start(CLIENTS, Duration::ZERO, &request());
        thread::sleep(Duration::from_millis(500));
        goes_and_comes();
        await_redis("connected");
        let count = assert_all_served(&load.stop());
        story.seen(format!("Redis {what}, none of {count} requests lost"));
    }
}

/// Looked for in all that anybody on this machine may read.
fn nothing_secret_is_shown(compose: &Compose, secrets: &std::path::Path) {
    let logs = compose.logs();
    let ids = compose.run(&["ps", "--all", "--quiet"]);
    let inspected = docker(&[&["inspect"], ids.lines().collect::<Vec<_>>().as_slice()].concat());
    for secret in fs::read_dir(secrets).expect("secrets") {
        let path = secret.expect("a file").path();
        let secret = fs::read_to_string(&path).expect("a secret");
        assert!(!logs.contains(&secret), "{} is in the logs", path.display());
        assert!(!inspected.contains(&secret), "{} is in `docker inspect`", path.display());
    }
    // Envoy tells of the signal that ends it as of a warning.
    let warnings = |line: &&str| line.contains("[warning]") && !line.contains("caught ENVOY_SIGTERM");
    let at_start: Vec<_> = logs
        .lines()
        .filter(warnings)
        .filter(|line| line.contains("[main]") || line.contains("eprecated"))
        .collect();
    assert!(at_start.is_empty(), "{at_start:?}");
}
