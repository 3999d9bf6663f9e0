//! The GitHub workflows: valid by GitHub's schema, with few rights, and with the project's own commands.

use std::fs;
use std::path::PathBuf;

use e2e::shipped_files::{assert_schema, yaml};
use serde_json::Value;

use crate::production::shipped;
use crate::shipped::repository_root;
use crate::support::find;

fn workflows() -> Vec<(String, PathBuf, Value)> {
    let files = fs::read_dir(repository_root().join(".github/workflows")).expect("workflows");
    let read = |file: std::io::Result<fs::DirEntry>| {
        let path = file.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let content = yaml(&path);
        (name, path, content)
    };
    let mut all: Vec<_> = files.map(read).collect();
    all.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    assert_eq!(all.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["ci.yml", "release.yml"]);
    all
}

fn jobs(workflow: &Value) -> impl Iterator<Item = (&String, &Value)> {
    workflow["jobs"].as_object().expect("jobs").iter()
}

#[test]
fn the_workflows_are_valid_by_githubs_schema() {
    for (_, path, _) in workflows() {
        let change = ("timeout-minutes: 60", "timeout-minuets: 60");
        assert_schema(&path, "vendor.github-workflows", change, "timeout-minuets");
    }
}

#[test]
fn every_job_has_few_rights_and_a_timeout() {
    for (name, _, workflow) in workflows() {
        let top = &workflow["permissions"];
        for (job, content) in jobs(&workflow) {
            let rights = content.get("permissions").unwrap_or(top);
            let writes: Vec<_> = rights
                .as_object()
                .unwrap_or_else(|| panic!("{name}: {job} has GitHub's default rights"))
                .iter()
                .filter(|(_, right)| *right != "read")
                .map(|(scope, _)| scope.as_str())
                .collect();
            let may_write: &[&str] = if job == "publish" { &["contents", "packages"] } else { &[] };
            assert_eq!(writes, may_write, "{name}: {job}");
            assert!(content["timeout-minutes"].is_u64(), "{name}: {job} may run for six hours");
            let checks_out = content["steps"].to_string().contains("actions/checkout");
            assert!(writes.is_empty() || !checks_out, "{name}: {job} may write, and checks out code");
        }
    }
}

#[test]
fn every_action_is_pinned_to_a_commit() {
    let mut seen = 0;
    for (name, _, workflow) in workflows() {
        for action in find("$.jobs..uses", &workflow) {
            let action = action.as_str().expect("text");
            let commit = action.split_once('@').map_or("", |(_, commit)| commit);
            let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(is_commit, "{name}: {action}");
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen} actions");
}

#[test]
fn a_release_is_tested_built_twice_and_with_the_compiler_of_the_image() {
    let all = workflows();
    let (_, _, release) = all.last().expect("the release");
    let build = &release["jobs"]["build"];
    let commands = find("$.steps[*].run", build).into_iter().filter_map(Value::as_str);
    let commands: Vec<_> = commands.filter(|command| command.starts_with("cargo xtask")).collect();
    assert_eq!(commands, ["cargo xtask test", "cargo xtask dist --verify"]);
    assert_eq!(release["jobs"]["publish"]["needs"], "build");

    let container = build["container"].as_str().expect("an image");
    let compiler = container.split(['-']).next().expect("a version");
    assert!(
        shipped("Dockerfile").contains(&format!("FROM {compiler}-")),
        "the Dockerfile builds with {compiler}"
    );
}

/// Renovate finds `docker-compose.yml`, the Dockerfile, crates and actions itself; the rest is configured.
#[test]
fn the_update_bot_is_configured_for_other_versions() {
    let path = repository_root().join(".github/renovate.json");
    assert_schema(
        &path,
        "vendor.renovate",
        ("\"packageRules\": [", "\"packageRules\": [7, "),
        "packageRules",
    );
    let text = fs::read_to_string(&path).expect("text");
    for (file, line) in [
        ("xtask/src/tools.rs", "ENVOY_VERSION: &str = \""),
        ("docker-compose.yml", "# Or Valkey: image valkey/valkey:"),
        ("deploy/compose/production.yml", "# Or Valkey: image valkey/valkey:"),
    ] {
        assert!(shipped(file).contains(line), "{file}: {line}");
        assert!(text.contains(&file.replace('.', "\\\\.")), "{file}");
    }
    // Tests install the Envoy version of the image.
    let version = shipped("xtask/src/tools.rs");
    let (_, version) = version.split_once("ENVOY_VERSION: &str = \"").expect("a version");
    let version = version.split('"').next().expect("a version");
    for file in ["Dockerfile", "deploy/compose/production.yml"] {
        assert!(shipped(file).contains(&format!("envoyproxy/envoy:v{version}\n")), "{file}");
    }
}
