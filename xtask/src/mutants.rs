//! `cargo xtask mutants`: injects defects into the limiter and checks that the searches find them.
//!
//! A search that finds nothing is only useful if it would find defects. `tests/mutants.toml` lists realistic defects,
//! each as a replacement of a text that occurs once in a file. Each is built in a copy of the sources, never in the
//! sources themselves, and must be found within a minute. A mutant whose text does not exist any more fails: a change
//! of that code must adapt the mutant.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::process::{Running, log_tail, run_within};
use crate::{step, tools, workspace};

const SEARCH_SECONDS: u64 = 60;

/// The arguments of the overload simulation in `cargo xtask test`, and in the search for mutants.
pub(crate) const OVERLOAD: [&str; 5] = ["--short", "--seeds", "3", "--seed", "1005"];

const BUILD_LIMIT: Duration = Duration::from_secs(10 * 60);

#[derive(Default, clap::Args)]
pub(crate) struct Options {
    /// Only these mutants; without a name, all of them
    names: Vec<String>,
    /// Only those in every run of `cargo xtask test`.
    #[arg(skip)]
    few: bool,
    /// List them, with the effect of each on users
    #[arg(long)]
    list: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// A defect, as a change of the sources.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    why: String,
    file: PathBuf,
    /// Occurs once in the file.
    find: String,
    replace: String,
    /// Whether it is among the few in every run of the tests: building each takes some time.
    #[serde(default)]
    always: bool,
    /// The search that must find it.
    #[serde(default)]
    search: Search,
    /// Further arguments of the search.
    #[serde(default)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Search {
    #[default]
    Simulation,
    Overload,
}

impl Search {
    fn package(self) -> &'static str {
        if self == Self::Overload { "overload" } else { "simulation" }
    }
}

/// Injects those in every run of `cargo xtask test`, or all.
pub(crate) fn run_tested(all: bool) -> Result<()> {
    run(&Options { few: !all, ..Options::default() })
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let list = workspace::root().join("tests/mutants.toml");
    let List { mutant: mut mutants } = toml::from_str(&fs::read_to_string(list)?)?;
    for name in &options.names {
        let is_known = mutants.iter().any(|mutant| mutant.name == *name);
        ensure!(is_known, "there is no mutant `{name}`; `cargo xtask mutants --list` lists them");
    }
    mutants.retain(|mutant| options.names.is_empty() || options.names.contains(&mutant.name));
    mutants.retain(|mutant| !options.few || mutant.always);
    if options.list {
        mutants.iter().for_each(|mutant| println!("{:<40} {}", mutant.name, mutant.why));
        return Ok(());
    }

    let copy = Copy::make()?;
    for search in [Search::Simulation, Search::Overload] {
        if mutants.iter().any(|mutant| mutant.search == search) {
            let name = search.package();
            step(format!("building the {name} without a defect, and checking that it finds nothing"));
            copy.build(search)?;
            let unchanged = copy.search(search, "nothing", &[], 5)?;
            ensure!(unchanged == Found::Nothing, "{}", log_tail(&copy.log("nothing")));
        }
    }

    let mut survivors = Vec::new();
    for (index, mutant) in mutants.iter().enumerate() {
        let result = match copy.try_mutant(mutant).with_context(|| mutant.name.clone())? {
            Found::Violation(after) => format!("found after {:.1} s", after.as_secs_f64()),
            Found::Nothing => {
                survivors.push(mutant.name.as_str());
                format!("NOT FOUND in {SEARCH_SECONDS} s: {}", mutant.why)
            }
        };
        step(format!("[{}/{}] {}: {result}", index + 1, mutants.len(), mutant.name));
    }
    ensure!(survivors.is_empty(), "not found: {}", survivors.join(", "));
    step(format!("all {} mutants were found", mutants.len()));
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Violation(Duration),
    Nothing,
}

struct Copy {
    root: PathBuf,
    redis_server: PathBuf,
}

impl Copy {
    fn make() -> Result<Self> {
        let root = workspace::target().join("mutants/source");
        workspace::copy_sources(&root)?;
        Ok(Self { root, redis_server: tools::redis_server()? })
    }

    /// Injects the defect into the copy, searches, and restores the copy.
    fn try_mutant(&self, mutant: &Mutant) -> Result<Found> {
        let file = self.root.join(&mutant.file);
        let original =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", mutant.file.display()))?;
        let occurrences = original.matches(&mutant.find).count();
        ensure!(
            occurrences == 1,
            "its text occurs {occurrences} times in {}, and has to occur once; adapt tests/mutants.toml",
            mutant.file.display()
        );
        fs::write(&file, original.replacen(&mutant.find, &mutant.replace, 1))?;
        let found = self
            .build(mutant.search)
            .and_then(|()| self.search(mutant.search, &mutant.name, &mutant.arguments, SEARCH_SECONDS));
        fs::write(&file, original)?;
        found
    }

    fn build(&self, search: Search) -> Result<()> {
        let mut command = workspace::cargo();
        command.args("build --quiet --profile search --package".split(' ')).arg(search.package());
        // A mutant may leave something unused.
        command.env("CARGO_TARGET_DIR", Self::target()).env("RUSTFLAGS", "--cap-lints=allow");
        run_within(command.current_dir(&self.root), BUILD_LIMIT).context("it does not build")
    }

    /// Runs a search until it has found something or its time is up.
    fn search(&self, search: Search, name: &str, arguments: &[String], seconds: u64) -> Result<Found> {
        let log = self.log(name);
        let mut command = Command::new(Self::target().join("search").join(search.package()));
        match search {
            Search::Simulation => command.args(["--seed", "1", "--seconds", &seconds.to_string()]),
            Search::Overload => command.args(OVERLOAD),
        };
        command.args(arguments);
        let start = Instant::now();
        let mut running = Running::start_logged(command.env("REDIS_SERVER", &self.redis_server), &log)?;
        // A mutant that hangs counts as found; the simulation itself ends in time.
        let ended = running.wait_within(Duration::from_secs(seconds + SEARCH_SECONDS / 2))?;
        match ended.map(|status| status.code()) {
            Some(Some(0)) => Ok(Found::Nothing),
            // 1 is a violation, 101 a panic.
            None | Some(Some(1 | 101)) => Ok(Found::Violation(start.elapsed())),
            Some(code) => bail!("the search ended with {code:?}\n{}", log_tail(&log)),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        workspace::target().join("mutants/logs").join(name).with_extension("log")
    }

    /// Outside of the copy, so that unchanged crates are built once.
    fn target() -> PathBuf {
        workspace::target().join("mutants/build")
    }
}
