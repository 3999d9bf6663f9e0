//! `cargo xtask test`: all checks of CI.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::filter::{self, Toolchain};
use crate::process::{output_of, run_within};
use crate::{containers, dist, mutants, search, step, tools, validators, workspace};

/// The timeout of all end-to-end tests. They need much less; a test that hangs must not block CI.
const E2E_LIMIT: Duration = Duration::from_secs(20 * 60);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this part
    part: Option<Part>,
    /// With `e2e`, arguments for the end-to-end tests, such as a test's name; with `containers`, names of chapters
    #[arg(last = true)]
    e2e: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// Format and clippy, clippy for this machine and for wasm
    Lint,
    /// Unit and property tests, all interleavings of three workers, the Lua script on a real Redis
    Unit,
    /// The simulations and the fuzzing of the limiter's own functions, for some seconds; `search` runs them longer
    Search,
    /// Build the filter and run it in a hostile host: scenarios, failures, costs, callbacks in any order, and the same
    /// random scripts as a real Envoy
    Filter,
    /// Build the filter and test it in a real Envoy, with a real Redis
    E2e,
    /// Run the shipped containers in a real engine, if there is one; arguments are chapters of `tests/containers`
    Containers,
    /// Pack a release, build it again in another directory, and check that both are the same
    Dist,
    /// Inject defects into the limiter, and check that the simulation finds them: all with this name, a few without
    Mutants,
}

/// Runs the parts in order and stops at the first failure.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        options.e2e.is_empty() || matches!(options.part, Some(Part::E2e | Part::Containers)),
        "arguments after `--` are for `e2e` or `containers`: name that part before `--`"
    );
    let start = Instant::now();
    let wanted = |part| options.part.is_none_or(|only| only == part);
    if wanted(Part::Lint) {
        lint()?;
    }
    if wanted(Part::Unit) {
        let mut tests = workspace::cargo();
        tests.args("test --workspace --exclude e2e --exclude wasm-host".split(' '));
        check("unit tests", tests.env("REDIS_SERVER", tools::redis_server()?))?;
    }
    if wanted(Part::Search) {
        search()?;
    }
    if wanted(Part::Filter) {
        compiled_filter()?;
    }
    if wanted(Part::E2e) {
        end_to_end(&options.e2e)?;
    }
    if options.part.is_none() && containers::engine().is_err() {
        step("containers: NOT RUN, no Docker engine answers here");
    } else if wanted(Part::Containers) {
        step("containers");
        containers::run(&options.e2e)?;
    }
    if wanted(Part::Dist) {
        step("release");
        dist::run(&dist::Options { verify: true })?;
        dist::check_sbom()?;
    }
    if wanted(Part::Mutants) {
        step("mutants");
        mutants::run_tested(options.part.is_some())?;
    }
    step(format!("all passed in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// The searches of `cargo xtask search`, each with a fixed amount and a fixed seed.
fn search() -> Result<()> {
    let redis_server = tools::redis_server()?;
    let searches: [(&str, &str, &[&str]); 4] = [
        ("simulation", "simulation", &["--worlds", "1500", "--seed", "1"]),
        ("simulation with a real Redis", "simulation", &["--redis", "real", "--worlds", "40", "--seed", "1"]),
        ("overload", "overload", &mutants::OVERLOAD),
        ("fuzzing", "fuzz", &["--inputs", "5000", "--seed", "1"]),
    ];
    for (what, package, amount) in searches {
        let mut search = search::program(package)?;
        check(what, search.args(amount).env("REDIS_SERVER", &redis_server))?;
    }
    Ok(())
}

/// The filter in the hostile host, built with the profile of the searches, so that the optimised host is built once.
fn compiled_filter() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let (wasm, probe) = (filter::build(toolchain)?, filter::build_probe(toolchain)?);
    let envoy = tools::envoy()?;
    let mut tests = workspace::cargo();
    tests.args("test --profile search --package wasm-host".split(' '));
    tests.env("FILTER_WASM", &wasm).env("PROBE_WASM", &probe).env("ENVOY_BIN", envoy);
    check("the filter in a hostile host", tests.env("REDIS_SERVER", tools::redis_server()?))?;

    // The binary that was built for the tests. Building it without their features would take minutes.
    let mut search = Command::new(workspace::target().join("search/wasm-host"));
    search.current_dir(workspace::root());
    search.args(["fuzz", "--inputs", "2000", "--seed", "1"]).env("FILTER_WASM", wasm);
    check("callbacks in any order", &mut search)
}

fn lint() -> Result<()> {
    ensure_component("fmt", "rustfmt")?;
    check("format", workspace::cargo().args(["fmt", "--all", "--check"]))?;

    ensure_component("clippy", "clippy")?;
    let arguments = "clippy --workspace --all-targets -- --deny warnings";
    check("clippy", workspace::cargo().args(arguments.split(' ')))?;

    let packages = "--package dynamic-rate-limiter --package empty-filter --package probe-filter --lib";
    let mut clippy = Toolchain::find()?.clippy();
    check("clippy for wasm", clippy.args(packages.split(' ')).args(["--", "--deny", "warnings"]))
}

fn ensure_component(subcommand: &str, component: &str) -> Result<()> {
    output_of(workspace::cargo().args([subcommand, "--version"]))
        .with_context(|| format!("missing: {component}; run\n  rustup component add {component}\n"))?;
    Ok(())
}

fn end_to_end(arguments: &[OsString]) -> Result<()> {
    let mut tests = workspace::cargo();
    tests.args(["test", "--package", "e2e"]).env("ENVOY_BIN", tools::envoy()?).envs(end_to_end_variables()?);
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        // Tests wait more than they compute.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        tests.env("RUST_TEST_THREADS", (cores + 1).to_string());
    }
    check_within(E2E_LIMIT, "end-to-end tests", tests.arg("--").args(arguments))
}

pub(crate) type Variables = Vec<(&'static str, PathBuf)>;

/// The programs and filters that the end-to-end tests need besides Envoy.
pub(crate) fn end_to_end_variables() -> Result<Variables> {
    let redis_server = tools::redis_server()?;
    let [prometheus, promtool] = validators::prometheus()?;
    let [check_jsonschema, kubernetes_validate] = validators::of_schemas()?;
    tools::documented_programs()?;
    let toolchain = Toolchain::find()?;
    let limiter = filter::build(toolchain)?;
    Ok(vec![
        ("REDIS_SERVER", redis_server),
        ("PROMETHEUS", prometheus),
        ("PROMTOOL", promtool),
        ("CHECK_JSONSCHEMA", check_jsonschema),
        ("KUBERNETES_VALIDATE", kubernetes_validate),
        ("TRAPPING_WASM", filter::make_trapping(&limiter)?),
        ("FILTER_WASM", limiter),
        ("PROBE_WASM", filter::build_probe(toolchain)?),
    ])
}

fn check(what: &str, command: &mut Command) -> Result<()> {
    check_within(Duration::MAX, what, command)
}

fn check_within(limit: Duration, what: &str, command: &mut Command) -> Result<()> {
    step(what);
    let start = Instant::now();
    run_within(command, limit).with_context(|| format!("{what} failed"))?;
    step(format!("{what}: passed in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}
