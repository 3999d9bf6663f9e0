//! The shipped `envoy.yaml` with the shipped `config/`, as a user starts it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::canary;
use e2e::client::Request;
use e2e::envoy::{Envoy, adapted, envoy_bin, filter_wasm, follows_writing_in_place};
use e2e::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::manifests::changed;
use crate::production::shipped;
use crate::support::{
    ONE_PER_HOUR, assert_headers_complete, await_that, set_health_with_token, statuses, tier,
};

/// The token whose hash is in the demo's configuration, and the default of the scripts.
pub(crate) const DEMO_TOKEN: &str = "admin_secret_token_change_in_production";

pub(crate) fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A shipped bootstrap whose ports the system chooses.
#[track_caller]
pub(crate) fn on_any_ports(file: &str) -> String {
    let changes = [("port_value: 8000}", "port_value: 0}"), ("port_value: 9901}", "port_value: 0}")];
    changed(&shipped(file), &changes)
}

/// Starts a shipped bootstrap in a copy of the repository's layout: a running demo is not affected, and documents may be
/// edited. `env` is the filter's part of Envoy's environment.
pub(crate) fn boot(bootstrap: &str, env: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> (Envoy, PathBuf) {
    let root = repository_root();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path().to_owned();
    fs::write(folder.join("envoy.yaml"), adapted(bootstrap.to_owned())).expect("written");
    for name in ["config", "target"] {
        fs::create_dir(folder.join(name)).expect("a folder");
    }
    for name in ["config/tiers.json", "config/api_keys.json"] {
        fs::copy(root.join(name), folder.join(name)).expect("copied");
    }
    std::os::unix::fs::symlink(filter_wasm(), folder.join("target/dynamic_rate_limiter.wasm"))
        .expect("a link to the filter");
    prepare(&folder);
    let arguments = ["-c", "envoy.yaml", "--concurrency", "2", "--component-log-level", "wasm:info"];
    let envoy = launch(dir, &arguments, env);
    assert_no_warning(&envoy);
    (envoy, folder)
}

/// Starts Envoy in `dir` with these arguments, and with `env` as the filter's part of its environment.
#[track_caller]
pub(crate) fn launch(dir: TempDir, arguments: &[impl AsRef<OsStr>], env: &[(&str, &str)]) -> Envoy {
    let mut command = Command::new(envoy_bin());
    for name in ["ADMIN_TOKEN", "DEFAULT_TIER", "CONFIG_TTL", "REDIS_USERNAME", "REDIS_PASSWORD"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(env.iter().copied()).current_dir(dir.path());
    Envoy::start(dir, command)
}

/// Checks that Envoy logs no warning about its configuration: no deprecated field, no missing bound. Warnings of the
/// filter are ignored.
#[track_caller]
pub(crate) fn assert_no_warning(envoy: &Envoy) {
    let log = envoy.log();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("[warning]") && !line.contains("[wasm]")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

/// Saves a document in the folder of [`boot`]: in place, or by a rename if this Envoy detects only that.
pub(crate) fn save(path: &Path, text: &str) {
    if follows_writing_in_place() {
        return fs::write(path, text).expect("written");
    }
    let next = path.with_extension("next");
    fs::write(&next, text).expect("written");
    fs::rename(next, path).expect("renamed");
}

/// Starts the demo; the system chooses its ports, unless `as_it_is`.
fn start(as_it_is: bool, env: &[(&str, &str)]) -> (Envoy, PathBuf) {
    canary::register(DEMO_TOKEN);
    let bootstrap = if as_it_is { shipped("envoy.yaml") } else { on_any_ports("envoy.yaml") };
    let (envoy, folder) = boot(&bootstrap, env, |_| ());
    await_that("the documents applied", || {
        envoy.send(&Request::get("/").key("enterprise")).tier() == "enterprise"
    });
    (envoy, folder)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

/// A shipped document of `config/`.
pub(crate) fn document(name: &str) -> Value {
    serde_json::from_str(&shipped(&format!("config/{name}"))).expect(name)
}

#[test]
fn the_demo_does_what_the_readme_says() {
    // If the ports are in use, only the port numbers are changed.
    let (envoy, _) = start(is_free(8000) && is_free(9901), &[]);
    for (path, message) in [("/", "API is running!"), ("/test", "Request successful!")] {
        let sent_at = wait::unix_now();
        let reply = envoy.send(&Request::get(path).key("enterprise"));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["message"], message);
        let timestamp = reply.json()["timestamp"].as_f64().expect("a number");
        assert!((timestamp - sent_at).abs() < 5.0, "{timestamp} is about {sent_at}");
        assert_headers_complete(&reply, "enterprise", 50, "NORMAL");
    }
    assert_headers_complete(&envoy.send(&Request::get("/").key("pro")), "pro", 25, "NORMAL");
    let nowhere = envoy.send(&Request::get("/nowhere").key("pro"));
    assert_eq!(nowhere.status, 404);
    assert_headers_complete(&nowhere, "pro", 25, "NORMAL");

    let in_a_row = statuses(&envoy, &Request::get("/test").key("free"), 20);
    assert_eq!(in_a_row[..10], [200; 10]);
    assert!(in_a_row.contains(&429), "{in_a_row:?}");

    assert_eq!(envoy.send(&set_health_with_token("DEGRADED", "c4nary-wrong")).status, 403);
    assert_eq!(envoy.send(&set_health_with_token("DEGRADED", DEMO_TOKEN)).status, 200);
    for (key, limit) in [("free", 2), ("pro", 15), ("enterprise", 30)] {
        assert_headers_complete(&envoy.send(&Request::get("/").key(key)), key, limit, "DEGRADED");
    }
    let health = envoy.send(&Request::get("/health")).json();
    assert_eq!(health, json!({"status": "healthy", "redis": "not_configured", "health": "DEGRADED"}));
}

#[test]
fn saving_the_shipped_documents_reloads_them() {
    let (envoy, folder) = start(false, &[]);
    let write = |name: &str, text: &str| save(&folder.join("config").join(name), text);
    let mut tiers = document("tiers.json");
    tiers["free"] = tier(777, ONE_PER_HOUR);
    write("tiers.json", &tiers.to_string());
    await_that("the new limit", || envoy.send(&Request::get("/")).limit() == 777);

    let mut keys = document("api_keys.json");
    keys["newcomer"] = json!({"tier": "pro", "id": "newcomer"});
    let next = folder.join("config/next");
    fs::write(&next, keys.to_string()).expect("written");
    fs::rename(next, folder.join("config/api_keys.json")).expect("renamed");
    await_that("the new key", || envoy.send(&Request::get("/").key("newcomer")).tier() == "pro");

    write("tiers.json", "{");
    let rejected = ("rate_limiter_config_reloads_total", [("result", "rejected")]);
    envoy.await_metric(rejected.0, &rejected.1, 1.0);
    assert_eq!(envoy.send(&Request::get("/")).limit(), 777);
}

#[test]
fn envoys_own_environment_is_passed_to_the_filter() {
    let (envoy, _) = start(false, &[("ADMIN_TOKEN", "c4nary-mine"), ("DEFAULT_TIER", "pro")]);
    assert_eq!(envoy.send(&Request::get("/")).tier(), "pro");
    assert_eq!(envoy.send(&set_health_with_token("DEGRADED", DEMO_TOKEN)).status, 403);
    assert_eq!(envoy.send(&set_health_with_token("DEGRADED", "c4nary-mine")).status, 200);
}

#[test]
fn the_shipped_listener_trusts_no_header_and_normalises_paths() {
    let (envoy, _) = start(false, &[]);
    // Ten tokens, one a second: other values of the header do not give another ten.
    let admitted = (0..40)
        .map(|n| Request::get("/").forwarded_for(&format!("203.0.113.{n}")))
        .filter(|request| envoy.send(request).status == 200)
        .count();
    assert!(admitted < 20, "{admitted}");

    for path in ["//system/health", "/./system/health", "/x/../system/health"] {
        let reply = envoy.send(&Request::post(path, r#"{"status":"DEGRADED"}"#));
        assert_eq!(reply.status, 403, "{path} is the endpoint");
    }
    assert_eq!(envoy.send(&Request::get("/system%2Fhealth")).status, 400);
    assert_eq!(envoy.send(&Request::get("/system/health")).json()["health"], "NORMAL");
}

/// The documented metrics with their labels; `le` is Prometheus' own. Workers use the last one to detect changes.
const METRICS: [(&str, &[&str]); 14] = [
    ("rate_limiter_requests_total", &["status", "tier"]),
    ("rate_limiter_tokens_remaining", &["tier"]),
    ("rate_limiter_decision_duration_microseconds_bucket", &["le"]),
    ("rate_limiter_decision_duration_microseconds_count", &[]),
    ("rate_limiter_decision_duration_microseconds_sum", &[]),
    ("rate_limiter_system_degraded", &[]),
    ("rate_limiter_redis_connected", &[]),
    ("rate_limiter_store_failures_total", &["reason"]),
    ("rate_limiter_fallback_decisions_total", &["policy"]),
    ("rate_limiter_bucket_evictions_total", &[]),
    ("rate_limiter_cas_retries_total", &[]),
    ("rate_limiter_config_reloads_total", &["result"]),
    ("rate_limiter_admin_requests_total", &["result"]),
    ("rate_limiter_control_changes", &[]),
];

#[test]
fn the_shipped_tag_rules_create_labels_and_no_other_metric_exists() {
    let (envoy, _) = start(false, &[]);
    statuses(&envoy, &Request::get("/"), 12);
    statuses(&envoy, &Request::get("/").key("pro"), 30);
    statuses(&envoy, &Request::get("/").key("c4nary-unknown"), 3);
    assert_eq!(envoy.send(&set_health_with_token("DEGRADED", DEMO_TOKEN)).status, 200);
    assert_eq!(envoy.send(&set_health_with_token("DEGRADED", "c4nary-wrong")).status, 403);
    envoy.await_metric("rate_limiter_system_degraded", &[], 1.0);
    envoy.await_metric("rate_limiter_admin_requests_total", &[("result", "forbidden")], 1.0);
    // Every series exists from the start, with the value 0.
    for (tier, status) in [("free", "allowed"), ("free", "limited"), ("pro", "allowed")] {
        wait::until(&format!("{tier} {status} counted"), || {
            let counted = envoy.metric("rate_limiter_requests_total", &[("tier", tier), ("status", status)]);
            counted.filter(|count| *count > 0.0)
        });
    }
    // Histograms are merged when Envoy flushes its stats, every five seconds.
    wait::until("the histogram", || envoy.metric("rate_limiter_decision_duration_microseconds_count", &[]));

    let known = BTreeMap::from(METRICS);
    let scrape = envoy.scrape();
    let ours = scrape.starting_with("rate_limiter_");
    assert!(ours.len() > 10, "{ours:?}");
    for sample in ours {
        let labels: Vec<_> = sample.labels.keys().map(String::as_str).collect();
        assert_eq!(known.get(sample.name.as_str()), Some(&labels.as_slice()), "{sample:?}");
    }
}
