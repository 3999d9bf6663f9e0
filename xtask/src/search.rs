//! `cargo xtask search`: the searches for counterexamples, for any time.
//!
//! `cargo xtask test` runs each of them for seconds, with a fixed seed. Here the seed is new each time, unless it is
//! given, and is printed: the same part with the same seed runs the same search. A violation is printed with the
//! command that reproduces it.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::filter::{self, Toolchain};
use crate::process::{interrupted, run};
use crate::{bench, step, tools, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The parts to run; by default all, one after the other
    parts: Vec<Part>,
    /// How long each part runs, such as 90s, 10m or 8h
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = duration)]
    time: Duration,
    /// The seed of the search; it is printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    /// Several Envoys under faults, with a model of Redis
    Simulation,
    /// The simulation with a real Redis and the real script
    SimulationRedis,
    /// Upstreams that can be overloaded, callers, and the overload control between them
    Overload,
    /// Arbitrary bytes, into the limiter's own functions
    Fuzz,
    /// Callbacks in any order, into the compiled filter
    Callbacks,
    /// The bucket against exact arithmetic
    Bucket,
    /// The script on a real Redis against the bucket in Rust
    Script,
}

pub(crate) fn run_parts(options: &Options) -> Result<()> {
    let seed = options.seed.map_or_else(|| std::time::UNIX_EPOCH.elapsed().map(|now| now.as_secs()), Ok)?;
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    for part in parts {
        let name = bench::name(*part);
        step(format!("{name} for {} s, seed {seed}", options.time.as_secs()));
        part.run(options.time, seed).with_context(|| format!("{name} with seed {seed}"))?;
    }
    step("no violation was found");
    Ok(())
}

impl Part {
    fn run(self, time: Duration, seed: u64) -> Result<()> {
        let timed = |package: &str, arguments: &[&str]| -> Result<Command> {
            let mut command = program(package)?;
            let (seconds, seed) = (time.as_secs().to_string(), seed.to_string());
            command.args(arguments).args(["--seconds", &seconds, "--seed", &seed]);
            Ok(command)
        };
        match self {
            Self::Simulation => run_built(&mut timed("simulation", &[])?, SHOWN_ABOVE),
            Self::SimulationRedis => {
                let mut command = timed("simulation", &["--redis", "real"])?;
                run_built(command.env("REDIS_SERVER", tools::redis_server()?), SHOWN_ABOVE)
            }
            Self::Overload => run_built(&mut timed("overload", &[])?, SHOWN_ABOVE),
            Self::Fuzz => run_built(&mut timed("fuzz", &[])?, SHOWN_ABOVE),
            Self::Callbacks => {
                let wasm = filter::build(Toolchain::find()?)?;
                run_built(timed("wasm-host", &["fuzz"])?.env("FILTER_WASM", wasm), SHOWN_ABOVE)
            }
            Self::Bucket => BUCKET.run(time, seed),
            Self::Script => SCRIPT.run(time, seed),
        }
    }
}

const SHOWN_ABOVE: &str = "the output above shows how to repeat it";

/// Runs a search that has been built, so that it fails only if it has found a violation or is interrupted.
fn run_built(command: &mut Command, how_to_repeat: &str) -> Result<()> {
    let done = run(command);
    if interrupted() { done } else { done.with_context(|| format!("found a violation; {how_to_repeat}")) }
}

/// A search that is a separate program, built with optimisations and all checks.
pub(crate) fn program(package: &str) -> Result<Command> {
    if package == "fuzz" {
        tools::program("CXX", &["c++"], "g++").context("libFuzzer is C++")?;
    }
    let cargo = |subcommand: &str| {
        let mut command = workspace::cargo();
        command.args([subcommand, "--quiet", "--profile", "search", "--package", package]);
        if package == "fuzz" {
            // With an explicit target, build scripts and macros are not instrumented.
            let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
            command.args(["--features", "search", "--target", &target]).env("RUSTFLAGS", INSTRUMENTED);
        }
        command
    };
    run(&mut cargo("build"))?;
    let mut command = cargo("run");
    command.arg("--");
    Ok(command)
}

/// cargo-fuzz's flags for libFuzzer, without a sanitizer, which needs a nightly compiler.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// A test binary that is run repeatedly, and the variables with its seed and its amount.
struct Rounds {
    test: &'static str,
    seed: &'static str,
    amount: (&'static str, u64),
}

/// proptest's own variables; each round is this many sequences of requests for each property.
const BUCKET: Rounds =
    Rounds { test: "bucket", seed: "PROPTEST_RNG_SEED", amount: ("PROPTEST_CASES", 100_000) };

const SCRIPT: Rounds =
    Rounds { test: "redis_script", seed: "BUCKET_SEED", amount: ("BUCKET_OPERATIONS", 500_000) };

impl Rounds {
    /// Runs it until the time is up, each round with a larger amount than in CI and the next seed.
    fn run(&self, time: Duration, seed: u64) -> Result<()> {
        let Self { test, seed: seed_name, amount: (amount_name, amount) } = *self;
        let redis_server = tools::redis_server()?;
        let cargo_test = || {
            let mut command = workspace::cargo();
            command.args("test --quiet --profile search --package dynamic-rate-limiter --test".split(' '));
            command.arg(test);
            command
        };
        run(cargo_test().arg("--no-run"))?;
        let start = Instant::now();
        for round in 1.. {
            let seed = seed.wrapping_add(round - 1).to_string();
            let mut command = cargo_test();
            command.env("REDIS_SERVER", &redis_server);
            command.env(seed_name, &seed).env(amount_name, amount.to_string());
            let how_to_repeat = format!(
                "to repeat it, run\n  \
                 {seed_name}={seed} {amount_name}={amount} cargo test --profile search --test {test}"
            );
            run_built(&mut command, &how_to_repeat)?;
            step(format!("{test}: {round} rounds of {amount}, {} s", start.elapsed().as_secs()));
            if start.elapsed() >= time {
                break;
            }
        }
        Ok(())
    }
}

fn duration(text: &str) -> Result<Duration> {
    let time = humantime::parse_duration(text)?;
    ensure!(time.as_secs() > 0, "wanted at least a second");
    Ok(time)
}
