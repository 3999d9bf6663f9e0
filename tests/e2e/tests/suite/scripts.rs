//! The scripts that test a running limiter: they pass if it is correct, fail if it is not, and restore health.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use e2e::canary;
use e2e::client::Request;
use e2e::envoy::Envoy;
use serde_json::{Value, json};

use crate::manifests::changed;
use crate::shipped::{DEMO_TOKEN, boot, document, on_any_ports, repository_root};
use crate::support::{await_that, health, set_health_with_token};

const SCRIPTS: [&str; 3] = ["quick_test.py", "comprehensive_test.py", "simple_test.py"];

/// The demo with these tiers and health set to `DEGRADED`, and the file with the tiers.
fn demo(tiers: &Value) -> (Envoy, PathBuf) {
    canary::register(DEMO_TOKEN);
    let write =
        |folder: &Path| fs::write(folder.join("config/tiers.json"), tiers.to_string()).expect("tiers");
    let (envoy, folder) = boot(&on_any_ports("envoy.yaml"), &[], write);
    let limit = tiers["enterprise"]["burst"]["capacity"].as_u64().expect("a capacity");
    await_that("the documents are there", || {
        let reply = envoy.send(&Request::get("/").key("enterprise"));
        reply.tier() == "enterprise" && reply.limit() == limit
    });
    let reply = envoy.send(&set_health_with_token("DEGRADED", DEMO_TOKEN));
    assert_eq!(reply.status, 200, "{}", reply.text());
    (envoy, folder.join("config/tiers.json"))
}

/// The shipped tiers with `times` their refill rates.
pub(crate) fn tiers_with_rates(times: f64) -> Value {
    let mut tiers = document("tiers.json");
    for tier in tiers.as_object_mut().expect("tiers").values_mut() {
        for limit in ["base", "degraded"] {
            let rate = tier[limit]["refill_rate"].as_f64().expect("a rate");
            tier[limit]["refill_rate"] = json!(rate * times);
        }
    }
    tiers
}

fn start(script: &str, envoy: &Envoy, arguments: &[&str]) -> Child {
    let mut command = Command::new("python3");
    command.arg(repository_root().join("scripts").join(script)).args(arguments);
    command.arg("--url").arg(format!("http://{}", envoy.address()));
    for name in ["ADMIN_TOKEN", "API_KEYS", "NO_COLOR"] {
        command.env_remove(name);
    }
    // A script must not leave compiled Python in the repository.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3")
}

fn run(script: &str, envoy: &Envoy, arguments: &[&str]) -> (Option<i32>, String) {
    finished(start(script, envoy, arguments))
}

fn finished(child: Child) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().expect("an end");
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).expect("text"))
}

#[track_caller]
fn assert_passes(script: &str, envoy: &Envoy, arguments: &[&str]) {
    let (status, output) = run(script, envoy, arguments);
    assert_eq!(status, Some(0), "{script}\n{output}");
    assert!(output.contains("✓ PASS") && !output.contains("✗ FAIL"), "{script}\n{output}");
    assert!(!output.contains('\x1b'), "colours without a terminal: {output:?}");
    assert_eq!(health(envoy), "DEGRADED", "as it was before {script}");
}

#[track_caller]
fn assert_fails(script: &str, envoy: &Envoy, arguments: &[&str], why: &str) {
    let (status, output) = run(script, envoy, arguments);
    assert_eq!(status, Some(1), "{script}\n{output}");
    assert!(
        output.contains("✗ FAIL") && output.contains(why),
        "{why:?} in the output of {script}:\n{output}"
    );
}

#[test]
fn quick_test_passes_on_the_shipped_demo() {
    let (envoy, _) = demo(&document("tiers.json"));
    assert_passes("quick_test.py", &envoy, &[]);
}

#[test]
fn all_scripts_pass_on_a_limiter_in_use() {
    let (envoy, tiers) = demo(&tiers_with_rates(5.0));
    // Each script but the first starts with the buckets that the previous one has emptied.
    for script in SCRIPTS {
        assert_passes(script, &envoy, &["--tiers", tiers.to_str().expect("text")]);
    }
}

#[test]
fn all_scripts_fail_without_a_limiter() {
    let off = [(
        "          - name: rate_limiter\n",
        "          - name: rate_limiter\n            disabled: true\n",
    )];
    let (envoy, _) = boot(&changed(&on_any_ports("envoy.yaml"), &off), &[], |_| ());
    assert_eq!(envoy.send(&Request::get("/test")).status, 200, "the demo's upstream answers");
    for script in SCRIPTS {
        assert_fails(script, &envoy, &[], "Is the filter in this Envoy?");
    }
}

#[test]
fn scripts_fail_if_the_limits_differ() {
    let wanted = tiers_with_rates(5.0);
    // The wrong field and value, the scripts that detect it, and their message.
    let cases: [(&str, Value, &[&str], &str); 4] = [
        ("/free/burst/capacity", json!(11), &["quick_test.py", "comprehensive_test.py"], "10 by X-RateLimit"),
        ("/free/degraded/capacity", json!(1), &SCRIPTS, "left 0 by X-RateLimit-Remaining, wanted 1"),
        (
            "/free/base/refill_rate",
            json!(15),
            &["comprehensive_test.py"],
            "since the bucket was full, wanted at most",
        ),
        ("/free/base/refill_rate", json!(2.5), &["comprehensive_test.py"], "admitted, wanted at least"),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("wanted.json");
    fs::write(&file, wanted.to_string()).expect("the wanted tiers");
    for (field, value, scripts, why) in cases {
        let mut tiers = wanted.clone();
        *tiers.pointer_mut(field).expect(field) = value;
        let (envoy, _) = demo(&tiers);
        for script in scripts {
            assert_fails(script, &envoy, &["--tiers", file.to_str().expect("text"), "--keys", "free="], why);
            assert_eq!(health(&envoy), "DEGRADED", "as it was before {script} failed");
        }
    }
}

#[test]
fn an_interrupted_script_restores_health() {
    let (envoy, _) = demo(&document("tiers.json"));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let script = start("quick_test.py", &envoy, &[]);
        await_that("the script has set health", || health(&envoy) == "NORMAL");
        let id = i32::try_from(script.id()).expect("a process id");
        // SAFETY: plain system call on a child that has not been waited for yet.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
        let (status, output) = finished(script);
        assert_eq!(status, Some(130), "{output}");
        assert_eq!(health(&envoy), "DEGRADED", "as it was\n{output}");
    }
}

#[test]
fn a_wrong_token_and_wrong_options_are_reported() {
    let (envoy, _) = demo(&document("tiers.json"));
    let wrong = ["--admin-token", "c4nary-wrong", "--keys", "free="];
    assert_fails("quick_test.py", &envoy, &wrong, "--admin-token or ADMIN_TOKEN names the token");
    for (arguments, why) in [
        (
            ["--keys", "gold=key"],
            "found the tier 'gold', wanted a limited one of --tiers: free, pro, enterprise",
        ),
        (["--tiers", "/nowhere.json"], "/nowhere.json is no file of tiers"),
    ] {
        let (status, output) = run("simple_test.py", &envoy, &arguments);
        assert_eq!(status, Some(2), "{output}");
        assert!(output.contains(why), "{why:?} in {output}");
    }
    for script in SCRIPTS {
        let (status, output) = run(script, &envoy, &["--help"]);
        assert!(status == Some(0) && output.contains("Exit status"), "{script}\n{output}");
    }
}
