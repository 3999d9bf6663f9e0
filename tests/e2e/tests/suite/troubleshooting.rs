//! Every command of `docs/troubleshooting.md` works with the shipped configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::envoy::Envoy;
use e2e::redis::Redis;

use crate::manifests::{changed, socket_address};
use crate::production::shipped;
use crate::shipped::{boot, on_any_ports, repository_root};

const TOKEN: &str = "c4nary-troubled";

/// The lines of a document's code blocks in this language.
pub(crate) fn code_lines<'a>(document: &'a str, language: &str) -> impl Iterator<Item = &'a str> {
    let beginning = format!("```{language}");
    let mut is_inside = false;
    document.lines().filter(move |line| {
        let was_inside = is_inside;
        is_inside = if is_inside { *line != "```" } else { *line == beginning };
        was_inside && is_inside
    })
}

/// The commands in the document's `sh` blocks, one a line.
fn commands() -> Vec<String> {
    let text = shipped("docs/troubleshooting.md");
    let commands: Vec<_> = code_lines(&text, "sh").map(str::to_owned).collect();
    assert!(commands.len() > 40, "found {} commands", commands.len());
    commands
}

/// A documented command with the addresses of this machine.
pub(crate) fn with_addresses(command: &str, envoy: &Envoy, redis: Option<&Redis>) -> String {
    let command = command
        .replace("localhost:8000", &envoy.address().to_string())
        .replace("127.0.0.1:9901", &envoy.admin_address().to_string());
    match redis {
        Some(redis) => command.replace("redis-cli", &format!("redis-cli -p {}", redis.address().port())),
        None => command,
    }
}

/// The demo with or without Redis, with these tiers, in a folder in which the paths of the documentation exist.
pub(crate) fn demo(redis: Option<&Redis>, env: &[(&str, &str)], tiers: &str) -> (Envoy, PathBuf) {
    let bootstrap = match redis {
        None => on_any_ports("envoy.yaml"),
        Some(redis) => changed(
            &on_any_ports("deploy/redis/envoy.yaml"),
            &[
                ("{address: 127.0.0.1, port_value: 6379}", &socket_address(redis.address())),
                // On a busy machine Redis must not time out.
                ("\"timeout_ms\": 20", "\"timeout_ms\": 2000"),
            ],
        ),
    };
    let (envoy, folder) = boot(&bootstrap, env, |folder| {
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).expect(name);
        link(&repository_root().join("scripts"), "scripts");
        fs::create_dir(folder.join("target/demo")).expect("a folder");
        link(&folder.join("envoy.log"), "target/demo/envoy.log");
        fs::write(folder.join("config/tiers.json"), tiers).expect("the tiers");
    });
    // Not by a request, because that takes a token.
    envoy.await_log(&["documents applied"]);
    (envoy, folder)
}

#[test]
fn every_command_runs_against_the_shipped_configuration() {
    let redis = Redis::start();
    let tiers = shipped("config/tiers.json");
    let (envoy, folder) = demo(Some(&redis), &[("ADMIN_TOKEN", TOKEN)], &tiers);
    for command in commands() {
        let here = with_addresses(&command, &envoy, Some(&redis))
            .replace("simple_test.py", &format!("simple_test.py --url http://{}", envoy.address()));
        let output = Command::new("bash")
            .args(["-c", &format!("{here}\necho \"${{PIPESTATUS[*]}}\" >&2")])
            .current_dir(&folder)
            .env("ADMIN_TOKEN", TOKEN)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        let (printed, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let statuses: Vec<_> = errors.lines().next_back().unwrap_or_default().split(' ').collect();
        let programs: Vec<_> = command.split(" | ").collect();
        assert_eq!(statuses.len(), programs.len(), "{command}\n{errors}");
        for (program, status) in programs.iter().zip(statuses) {
            // Without a problem, the log has no such line.
            let may_find_nothing = program.starts_with("grep ") && program.contains("envoy.log");
            assert!(status == "0" || (status == "1" && may_find_nothing), "{command}\n{printed}{errors}");
        }
        if command.contains("/stats") {
            assert!(!printed.is_empty(), "{command} finds no stat");
        }
        if command.contains("tokens left") {
            assert!(printed.contains("(tier free, "), "{command} finds no decision: {printed}");
        }
    }
}

/// The documentation searches the log only for texts that the filter logs.
#[test]
fn every_searched_log_text_is_logged() {
    let sources = sources(&repository_root().join("src"));
    let mut seen = 0;
    for command in commands().iter().filter(|command| command.contains("envoy.log")) {
        let text = command.split('\'').nth(1).expect("a text in quotes");
        // This text is from Envoy.
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
