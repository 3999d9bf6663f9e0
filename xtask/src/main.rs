//! The project's own commands. Each installs what it needs and prints its steps; an error says what is missing and how
//! to install it.
//!
//! In reading order: `filter` and `exports` build the `.wasm`; `demo`, `watch`, `ci`, `search`, `mutants`, `audit`,
//! `bench`, `conformance`, `dist` and `check_config` are the commands; they use `envoy`, `tools`, `validators`,
//! `http` and `process`.

mod audit;
mod bench;
mod check_config;
mod ci;
mod conformance;
mod containers;
mod demo;
mod dist;
#[cfg(test)]
mod docs;
mod envoy;
mod exports;
mod filter;
mod http;
mod mutants;
mod overload;
mod process;
mod search;
mod tools;
mod validators;
mod watch;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Runs, tests, measures and packs the rate limiter.
///
/// A new machine needs Rust, Python 3 and, for Debian packages, root. Envoy is taken from
/// ENVOY_BIN, `envoy` on PATH or `func-e`, else installed under target/tools. The filter is built
/// with rustup's wasm32-wasip1 target if that is installed, else with Debian's compiler;
/// XTASK_WASM_TOOLCHAIN=rustup or =debian selects one. Redis is taken from REDIS_SERVER,
/// `redis-server` or `valkey-server` on PATH, else from Debian; in the same way Prometheus and
/// promtool (PROMETHEUS, PROMTOOL).
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Subcommand {
    /// Build the filter and run it in an Envoy on port 8000, optionally with Redis, until Ctrl-C
    Demo(demo::Options),
    /// Watch a running limiter: tokens, requests allowed and rejected a second, health, live on one screen
    Watch(watch::Options),
    /// Run all checks of CI: lint, unit tests, searches, the filter in a hostile host, end-to-end tests, containers,
    /// releases, mutants
    Test(ci::Options),
    /// Search for counterexamples: the same searches as in `test`, for any time
    Search(search::Options),
    /// Inject defects into the limiter, one at a time, and check that the simulation finds each
    Mutants(mutants::Options),
    /// Check the dependency tree: licences, sources and, if they can be reached, advisories
    Audit,
    /// Compare the filter with Envoy's own limiter, an empty filter and no filter; `bench redis`: with Redis;
    /// `bench --overload`: the throughput of a service under ten times its capacity
    Bench(bench::Options),
    /// Check with several versions of Envoy the facts that the filter relies on; print a table
    Conformance(conformance::Options),
    /// Pack the filter for release: the .wasm, its checksum, an SBOM, OCI image layouts; check that it is reproducible
    Dist(dist::Options),
    /// Check configuration files with the filter's own code; hash keys, generate new ones
    CheckConfig(check_config::Options),
}

fn main() -> ExitCode {
    let subcommand = Subcommand::parse();
    let done = process::catch_interrupts().and_then(|()| match subcommand {
        Subcommand::Demo(options) => demo::run(&options),
        Subcommand::Watch(options) => watch::run(&options),
        Subcommand::Test(options) => ci::run(&options),
        Subcommand::Search(options) => search::run_parts(&options),
        Subcommand::Mutants(options) => mutants::run(&options),
        Subcommand::Audit => audit::run_checks(),
        Subcommand::Bench(options) => bench::run(&options),
        Subcommand::Conformance(options) => conformance::run(&options),
        Subcommand::Dist(options) => dist::run(&options),
        Subcommand::CheckConfig(options) => check_config::run(&options),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn step(what: impl std::fmt::Display) {
    eprintln!("==> {what}");
}
