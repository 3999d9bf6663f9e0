//! Every command of `docs/troubleshooting.md` runs where it says it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::envoy::Envoy;
use e2e::redis::Redis;

use crate::shipped::{ANY_PORTS, boot, repository_root};

const TOKEN: &str = "c4nary-troubled";

/// The commands in the document's blocks of shell, one a line.
fn commands() -> Vec<String> {
    let text = fs::read_to_string(repository_root().join("docs/troubleshooting.md")).expect("the document");
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => commands.push(line.to_owned()),
            _ => {}
        }
    }
    assert!(commands.len() > 40, "found {} commands", commands.len());
    commands
}

/// The demo with Redis, or the one without, in a folder in which the documents' paths lead to its files. `tiers` may
/// change what is there.
pub(crate) fn demo(
    redis: Option<&Redis>,
    env: &[(&str, &str)],
    tiers: impl Fn(String) -> String,
) -> (Envoy, PathBuf) {
    let port = redis.map(|redis| format!("port_value: {}}}", redis.address().port()));
    // A machine that is busy with other tests must not make another store of it.
    let patient = [("\"timeout_ms\": 20", "\"timeout_ms\": 2000")];
    let (file, changes) = match &port {
        Some(port) => {
            let address = [("port_value: 6379}", port.as_str())];
            ("deploy/redis/envoy.yaml", [&ANY_PORTS[..], &address, &patient].concat())
        }
        None => ("envoy.yaml", ANY_PORTS.to_vec()),
    };
    let (envoy, folder) = boot(file, &changes, env, |folder| {
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).expect(name);
        link(&repository_root().join("scripts"), "scripts");
        fs::create_dir(folder.join("target/demo")).expect("a folder");
        link(&folder.join("envoy.log"), "target/demo/envoy.log");
        let file = folder.join("config/tiers.json");
        let shipped = fs::read_to_string(&file).expect("the tiers");
        fs::write(file, tiers(shipped)).expect("the tiers");
    });
    // Not by a request, which would take a token.
    envoy.await_log(&["documents applied"]);
    (envoy, folder)
}

#[test]
fn every_command_runs_against_the_shipped_configuration() {
    let redis = Redis::start();
    let (envoy, folder) = demo(Some(&redis), &[("ADMIN_TOKEN", TOKEN)], |tiers| tiers);
    for command in commands() {
        let here = command
            .replace("localhost:8000", &envoy.address().to_string())
            .replace("127.0.0.1:9901", &envoy.admin_address().to_string())
            .replace("redis-cli", &format!("redis-cli -p {}", redis.address().port()))
            .replace("simple_test.py", &format!("simple_test.py --url http://{}", envoy.address()));
        let output = Command::new("bash")
            .args(["-c", &format!("{here}\necho \"${{PIPESTATUS[*]}}\" >&2")])
            .current_dir(&folder)
            .env("ADMIN_TOKEN", TOKEN)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        let (told, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let statuses: Vec<_> = errors.lines().next_back().unwrap_or_default().split(' ').collect();
        let programs: Vec<_> = command.split(" | ").collect();
        assert_eq!(statuses.len(), programs.len(), "{command}\n{errors}");
        for (program, status) in programs.iter().zip(statuses) {
            // Where nothing is wrong, a log has no lines about it.
            let may_find_nothing = program.starts_with("grep ") && program.contains("envoy.log");
            assert!(status == "0" || (status == "1" && may_find_nothing), "{command}\n{told}{errors}");
        }
        if command.contains("/stats") {
            assert!(!told.is_empty(), "{command} finds no stat");
        }
    }
}

/// What is searched for in the log is what the filter writes there.
#[test]
fn what_is_looked_for_in_the_log_is_what_is_logged() {
    let sources = sources(&repository_root().join("src"));
    let mut seen = 0;
    for command in commands().iter().filter(|command| command.contains("envoy.log")) {
        let text = command.split('\'').nth(1).expect("a text in quotes");
        // That one is Envoy's own.
        assert!(text == r"\[wasm\]" || sources.contains(text), "{command}: no source has {text:?}");
        seen += 1;
    }
    assert!(seen >= 5, "found {seen}");
}

fn sources(folder: &Path) -> String {
    let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    files
        .filter(|path| path.is_dir() || path.extension().is_some_and(|kind| kind == "rs"))
        .map(|path| if path.is_dir() { sources(&path) } else { fs::read_to_string(path).expect("a source") })
        .collect()
}
