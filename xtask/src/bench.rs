//! `cargo xtask bench`: the cost of the limiter, compared with the alternatives.
//!
//! There are tables of measurements, and one table of counts, which are the same on every machine. [`alone`] has no
//! upstream, so that the limiter's share of a request's cost is as large as possible. [`redis`] has an upstream, and
//! measures complete requests. [`overload`] measures the throughput of an overloaded service.
//!
//! The measure is the CPU time that a process spends on a request, because rates and latencies include the time of
//! other programs. Other programs still affect caches and clock speed, so run the bench on an idle machine.
//!
//! Rounds interleave the variants, and ratios are taken within a round, so that a slower machine slows all variants.
//! Each measurement has a new Envoy: the memory layout of a process changes its speed by a few percent for all of its
//! life, and the median covers that, too.

mod alone;
pub(crate) mod config;
mod documents;
mod load;
mod overload;
mod redis;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::filter::{self, Toolchain};
use crate::process::{Running, run as run_program};
use crate::{envoy, search, step, tools, workspace};

/// Long enough for V8 to have optimised what the load runs through.
const WARM_UP_SECONDS: u32 = 2;

/// The share of responses that must be as the variant expects. A bucket that rejects nearly all requests admits the
/// first one, and one more in an hour.
const EXPECTED_SHARE: f64 = 0.999;

/// The headers that a response has if and only if a limiter has decided the request.
const LIMIT_HEADERS: [&str; 3] = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    alone: alone::Options,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Measure with an upstream: Redis and Redis Cluster beside shared data, webdis and no limiter
    Redis(redis::Options),
    /// Measure overload: the same minute without protection, with Envoy's own, and with ours; a table and a plot
    #[command(long_flag = "overload")]
    Overload(overload::Options),
    /// Measure fetched key documents: how long a request waits while one arrives, is fetched again, and changes
    Documents,
    /// Count the instructions and host calls of each kind of request, the same on every machine
    Costs,
}

#[derive(clap::Args)]
struct Timing {
    /// How often each variant is measured; medians are printed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a measurement takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(Path::new("/proc/self/stat").exists(), "the bench reads CPU times from /proc, so it needs Linux");
    match &options.part {
        None => alone::run(&options.alone).and_then(|()| costs()),
        Some(Part::Redis(options)) => redis::run(options),
        Some(Part::Overload(options)) => overload::run(options),
        Some(Part::Documents) => documents::run(),
        Some(Part::Costs) => costs(),
    }
}

/// Prints the cost of each kind of request, counted in the hostile host.
fn costs() -> Result<()> {
    let wasm = filter::build(Toolchain::find()?)?;
    step("counting instructions and host calls");
    run_program(search::program("wasm-host")?.arg("costs").env("FILTER_WASM", wasm))
}

struct Machine {
    envoy: PathBuf,
    wrk: PathBuf,
    cpus: usize,
}

impl Machine {
    fn find() -> Result<Self> {
        Ok(Self {
            envoy: tools::envoy()?,
            wrk: tools::program("WRK", &["wrk"], "wrk")?.0,
            cpus: available_parallelism()?.get(),
        })
    }

    /// Whether the measured Envoy has a CPU of its own.
    fn is_pinned(&self) -> bool {
        self.cpus >= 2
    }

    /// Moves this process and its future children to CPUs that the measured Envoy does not use.
    fn leave_first_cpu(&self) -> Result<()> {
        if self.is_pinned() {
            let mut others = CpuSet::new();
            (1..self.cpus).for_each(|cpu| others.set(cpu));
            sched_setaffinity(None, &others)?;
        }
        Ok(())
    }

    fn on_first_cpu(&self, program: &Path) -> Command {
        self.on_cpus("0", program)
    }

    /// The program on CPUs that the measured Envoy does not use.
    fn on_other_cpus(&self, program: &Path) -> Command {
        self.on_cpus(&format!("1-{}", self.cpus - 1), program)
    }

    fn on_cpus(&self, cpus: &str, program: &Path) -> Command {
        if !self.is_pinned() {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", cpus]).arg(program);
        command
    }

    /// The Envoy that is measured: one worker, ready.
    fn measured_envoy(&self, name: &str, bootstrap: &Value, admin: SocketAddr) -> Result<Running> {
        start_envoy(self.on_first_cpu(&self.envoy), name, bootstrap, (admin, "/ready"))
    }

    fn wrk(&self) -> Command {
        self.on_other_cpus(&self.wrk)
    }
}

/// Starts an Envoy with one worker, and waits until this path at this address is answered.
fn start_envoy(
    mut command: Command,
    name: &str,
    bootstrap: &Value,
    (address, path): (SocketAddr, &str),
) -> Result<Running> {
    let file = directory()?.join(name).with_extension("json");
    fs::write(&file, serde_json::to_vec_pretty(bootstrap)?)?;
    command.arg("--config-path").arg(&file);
    command.args(["--concurrency", "1", "--log-level", "warning"]);
    envoy::start(&mut command, &file.with_extension("log"), address, path)
}

fn directory() -> Result<PathBuf> {
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Checks that nearly all responses under load were rejections, or none, as the variant expects.
fn ensure_responses(report: &load::Report, rejects: bool) -> Result<()> {
    let expected = if rejects { report.rejected_share() } else { 1.0 - report.rejected_share() };
    let others = 100.0 * (1.0 - expected);
    ensure!(
        expected >= EXPECTED_SHARE,
        "{others:.2} % of the responses are not those that the variant expects"
    );
    Ok(())
}

/// Checks that the service answers one request as the variant expects.
fn ensure_response(service: SocketAddr, api_key: &str, rejects: bool, has_limit_headers: bool) -> Result<()> {
    let response = crate::http::get(service, "/", &[("x-api-key", api_key)])?;
    let status = if rejects { 429_u16 } else { 200 };
    ensure!(response.status() == status, "answers {} instead of {status}", response.status());
    let found = LIMIT_HEADERS.map(|header| response.headers().contains_key(header));
    ensure!(found == [has_limit_headers; 3], "has the headers {LIMIT_HEADERS:?}: {found:?}");
    Ok(())
}

fn chosen<V: ValueEnum + PartialEq + Copy>(only: &[V]) -> Vec<V> {
    V::value_variants().iter().filter(|variant| only.is_empty() || only.contains(variant)).copied().collect()
}

fn name<V: ValueEnum>(variant: V) -> String {
    variant.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn description<V: ValueEnum>(variant: V) -> String {
    let value = variant.to_possible_value();
    value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    f64::midpoint(values[low], values[high])
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
    }
}
