//! Reading and checking the YAML that we ship, with the programs that `cargo xtask test` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::envoy::from_env;

/// Reads all documents of a YAML file, resolves anchors and merge keys, and writes a JSON list.
const TO_JSON: &str = "import json, ruamel.yaml, sys\n\
    print(json.dumps(list(ruamel.yaml.YAML(typ='safe', pure=True).load_all(open(sys.argv[1])))))";

/// The only document of a YAML file.
#[track_caller]
pub fn yaml(path: &Path) -> Value {
    let mut documents = yaml_documents(path);
    assert_eq!(documents.len(), 1, "documents in {}", path.display());
    documents.remove(0)
}

#[track_caller]
pub fn yaml_documents(path: &Path) -> Vec<Value> {
    let (success, output) = run(Command::new(python()).args(["-c", TO_JSON]).arg(path));
    assert!(success, "{}: {output}", path.display());
    serde_json::from_str(&output).expect("Python writes JSON")
}

/// Validates a file against the JSON schema of the Compose specification: whether it is valid, and the output.
#[track_caller]
pub fn check_compose(path: &Path) -> (bool, String) {
    check(path, "vendor.compose-spec")
}

/// Validates a file against Renovate's JSON schema: whether it is valid, and the output.
#[track_caller]
pub fn check_renovate(path: &Path) -> (bool, String) {
    check(path, "vendor.renovate")
}

/// Validates a file against the JSON schema of GitHub's workflows: whether it is valid, and the output.
#[track_caller]
pub fn check_workflow(path: &Path) -> (bool, String) {
    check(path, "vendor.github-workflows")
}

#[track_caller]
fn check(path: &Path, schema: &str) -> (bool, String) {
    run(Command::new(from_env("CHECK_JSONSCHEMA")).args(["--builtin-schema", schema]).arg(path))
}

/// Runs promtool in `folder`: whether it succeeded, and its output.
#[track_caller]
pub fn promtool(folder: &Path, arguments: &[&str]) -> (bool, String) {
    run(Command::new(from_env("PROMTOOL")).args(arguments).current_dir(folder))
}

/// The Python of the validator, which has a YAML parser.
#[track_caller]
fn python() -> PathBuf {
    from_env("CHECK_JSONSCHEMA").with_file_name("python")
}

/// Runs a program: whether it succeeded, and its output.
#[track_caller]
pub fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("an installed program");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), text.concat())
}
