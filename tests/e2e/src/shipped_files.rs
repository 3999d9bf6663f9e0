//! Reading and checking the YAML that we ship, with the programs that `cargo xtask test` installs.

use std::fs;
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

/// Checks that a file is valid by one of the JSON schemas of check-jsonschema, and no longer after a change of its text:
/// the error then contains `named`.
#[track_caller]
pub fn assert_schema(path: &Path, schema: &str, (from, to): (&str, &str), named: &str) {
    let check = |path: &Path| {
        run(Command::new(from_env("CHECK_JSONSCHEMA")).args(["--builtin-schema", schema]).arg(path))
    };
    let (is_valid, output) = check(path);
    assert!(is_valid, "{}: {output}", path.display());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broken = dir.path().join(path.file_name().expect("a file"));
    let text = fs::read_to_string(path).expect("text");
    fs::write(&broken, text.replace(from, to)).expect("written");
    let (is_valid, output) = check(&broken);
    assert!(!is_valid && output.contains(named), "{}: {output}", path.display());
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
