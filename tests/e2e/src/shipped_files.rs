//! Reading and checking the YAML that we ship, with the programs that `cargo xtask test` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::envoy::from_env;

/// Reads standard YAML, anchors and merge keys resolved, and writes JSON.
const TO_JSON: &str = "import json, ruamel.yaml, sys\n\
    print(json.dumps(ruamel.yaml.YAML(typ='safe', pure=True).load(open(sys.argv[1]))))";

/// The content of a YAML file.
#[track_caller]
pub fn yaml(path: &Path) -> Value {
    let (success, said) = run(Command::new(python()).args(["-c", TO_JSON]).arg(path));
    assert!(success, "{}: {said}", path.display());
    serde_json::from_str(&said).expect("Python writes JSON")
}

/// Validates a file against the Compose specification's JSON schema: whether it fits, and what was said.
#[track_caller]
pub fn check_compose(path: &Path) -> (bool, String) {
    check(path, "vendor.compose-spec")
}

/// Validates a file against Renovate's JSON schema: whether it fits, and what was said.
#[track_caller]
pub fn check_renovate(path: &Path) -> (bool, String) {
    check(path, "vendor.renovate")
}

/// Validates a file against the JSON schema of GitHub's workflows: whether it fits, and what was said.
#[track_caller]
pub fn check_workflow(path: &Path) -> (bool, String) {
    check(path, "vendor.github-workflows")
}

#[track_caller]
fn check(path: &Path, schema: &str) -> (bool, String) {
    run(Command::new(from_env("CHECK_JSONSCHEMA")).args(["--builtin-schema", schema]).arg(path))
}

/// Runs promtool in `folder`: whether it is content, and what it said.
#[track_caller]
pub fn promtool(folder: &Path, arguments: &[&str]) -> (bool, String) {
    run(Command::new(from_env("PROMTOOL")).args(arguments).current_dir(folder))
}

/// The validator's own Python, which has a YAML reader.
#[track_caller]
pub fn python() -> PathBuf {
    from_env("CHECK_JSONSCHEMA").with_file_name("python")
}

/// Runs a program: whether it is content, and what it said.
#[track_caller]
pub fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("a program that is there");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), text.concat())
}
