//! The project's own commands. Each gets what it needs, says what it does, and on failure says
//! what is missing and how to get it.
//!
//! In reading order: `filter` and `exports` make the `.wasm`; `demo`, `watch`, `ci`, `soak`, `mutants`, `audit`,
//! `bench`, `conformance`, `dist` and `check_config` are the verbs; `envoy`, `redis`, `tools`,
//! `validators`, `http` and `process` are what they stand on.

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
mod redis;
mod soak;
mod tools;
mod validators;
mod watch;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Runs, checks, measures and packs the rate limiter.
///
/// A fresh machine needs Rust, Python 3 and, for what Debian packages, root. Envoy is taken from
/// ENVOY_BIN, `envoy` on PATH or `func-e`, else installed under target/tools. The filter is built
/// with rustup's wasm32-wasip1 target if that is installed, else with Debian's compiler;
/// XTASK_WASM_TOOLCHAIN=rustup or =debian decides. Redis is taken from REDIS_SERVER, or is
/// `redis-server` or `valkey-server` on PATH, else Debian's; so are Prometheus and its promtool
/// (PROMETHEUS, PROMTOOL).
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Build the filter and start an Envoy that runs it on port 8000, on request with a Redis, until Ctrl-C
    Demo(demo::Options),
    /// Watch a limiter that runs: tokens, requests allowed and refused a second, health, live on one screen
    Watch(watch::Options),
    /// Check everything that CI checks: format, clippy, unit tests, end-to-end tests
    Test(ci::Options),
    /// Search for counter-examples: the same searches as in `test`, for as long as one likes
    Soak(soak::Options),
    /// Break the limiter on purpose, one defect at a time, and see that the simulation finds each
    Mutants(mutants::Options),
    /// Check the dependency tree: licences, sources and, where they can be reached, advisories
    Audit(audit::Options),
    /// Measure the filter beside Envoy's own limiter, an empty filter and no filter; `bench redis`: with Redis;
    /// `bench overload`: what is left of a service that is asked for ten times what it can bear
    Bench(bench::Options),
    /// Ask Envoys of several versions whether all that the filter rests on holds; print a table
    Conformance(conformance::Options),
    /// Pack the filter for release: the .wasm, its checksum, an SBOM, OCI image layouts; prove that it is reproducible
    Dist(dist::Options),
    /// Check configuration files with the filter's own code; hash keys, make new ones
    CheckConfig(check_config::Options),
}

fn main() -> ExitCode {
    let verb = Verb::parse();
    let done = process::catch_interrupts().and_then(|()| match verb {
        Verb::Demo(options) => demo::run(&options),
        Verb::Watch(options) => watch::run(&options),
        Verb::Test(options) => ci::run(&options),
        Verb::Soak(options) => soak::run_parts(&options),
        Verb::Mutants(options) => mutants::run(&options),
        Verb::Audit(options) => audit::run_checks(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Conformance(options) => conformance::run(&options),
        Verb::Dist(options) => dist::run(&options),
        Verb::CheckConfig(options) => check_config::run(&options),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is about to happen.
pub(crate) fn step(what: impl std::fmt::Display) {
    eprintln!("==> {what}");
}
