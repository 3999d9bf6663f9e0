//! Checks that every host has a test for every scenario.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const BEGINNING: &str = "pub fn ";
const ARGUMENT: &str = "(host: &dyn Host) {";

/// Checks that the running test program has a test `scenarios::<subject>::<name>` for exactly the scenarios in this
/// crate's sources.
pub fn assert_all_run() {
    let program = std::env::current_exe().expect("a test program");
    let list = Command::new(program).args(["--list", "--format", "terse"]).output().expect("a list of tests");
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    let tests: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("scenarios::")?.strip_suffix(": test"))
        .filter(|name| name.contains("::"))
        .map(str::to_owned)
        .collect();
    let defined = defined();
    assert!(defined.len() > 40, "{} scenarios are too few", defined.len());
    assert_eq!(tests, defined, "tests of this host, and scenarios in tests/scenarios/src");
}

/// `subject::name` of every scenario in the sources.
fn defined() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in sources.read_dir().expect("this crate's sources") {
        let path = entry.expect("a file of the sources").path();
        let subject = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a file of the sources");
        let scenario = |line: &str| Some(line.strip_prefix(BEGINNING)?.strip_suffix(ARGUMENT)?.to_owned());
        names.extend(text.lines().filter_map(scenario).map(|name| format!("{subject}::{name}")));
    }
    names
}
