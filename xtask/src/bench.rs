//! `cargo xtask bench`: what the limiter costs, beside what else one could run.
//!
//! There are tables of measurements, and one of counts, which is the same on every machine. [`alone`] has no
//! upstream, so that the limiter's own cost is the largest share of a request that it can be. [`redis`] has one, and
//! is about the whole way of a request. [`overload`] is about something else: what is left of a service that is asked
//! for more than it can bear.
//!
//! The measure is the CPU time that a process spends on a request: rates and latencies also count
//! the time that other programs took. It is not immune to them, since they share caches and clock
//! speed, so give the bench a quiet machine.
//!
//! Rounds interleave the variants, and ratios are taken within a round, so that a machine that
//! slows down slows all of them. Each measurement has a fresh Envoy: where a process happens to lie
//! in memory is worth a few per cent for all of its life, and this way the median is over that too.

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

use crate::envoy::Envoy;
use crate::filter::{self, Toolchain};
use crate::process::run as run_program;
use crate::{soak, step, tools, workspace};

/// Long enough for V8 to have optimised what the load runs through.
const WARM_UP_SECONDS: u32 = 2;

/// The share of answers that must be the variant's own kind. A bucket that refuses nearly all
/// lets the first request through, and one more in an hour.
const EXPECTED_SHARE: f64 = 0.999;

/// The headers that an answer has if and only if a limiter saw the request.
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
    /// Measure overload: the same minute with no protection, with Envoy's own, and with ours; a table and a plot
    #[command(long_flag = "overload")]
    Overload(overload::Options),
    /// Measure fetched key documents: how long a request waits while one arrives, is fetched again, and changes
    Documents(documents::Options),
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
        Some(Part::Documents(options)) => documents::run(options),
        Some(Part::Costs) => costs(),
    }
}

/// Prints what each kind of request costs in a host that counts instead of timing.
fn costs() -> Result<()> {
    let wasm = filter::build(Toolchain::find()?)?;
    step("counting instructions and host calls");
    run_program(soak::search("wasm-host")?.arg("costs").env("FILTER_WASM", wasm))
}

/// What a measurement needs of the machine.
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

    /// Moves this process, and all that it starts from now on, where it does not take the measured Envoy's time.
    fn leave_first_cpu(&self) -> Result<()> {
        if self.is_pinned() {
            let mut others = CpuSet::new();
            (1..self.cpus).for_each(|cpu| others.set(cpu));
            sched_setaffinity(None, &others)?;
        }
        Ok(())
    }

    /// The program on the measured Envoy's CPU.
    fn on_first_cpu(&self, program: &Path) -> Command {
        self.on_cpus("0", program)
    }

    /// The program where it does not take the measured Envoy's time.
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
    fn measured_envoy(&self, name: &str, bootstrap: &Value, admin: SocketAddr) -> Result<Envoy> {
        let mut envoy = start_envoy(self.on_first_cpu(&self.envoy), name, bootstrap)?;
        envoy.wait_for(admin, "/ready")?;
        Ok(envoy)
    }

    fn wrk(&self) -> Command {
        self.on_other_cpus(&self.wrk)
    }
}

fn start_envoy(mut command: Command, name: &str, bootstrap: &Value) -> Result<Envoy> {
    let file = directory()?.join(name).with_extension("json");
    fs::write(&file, serde_json::to_vec_pretty(bootstrap)?)?;
    command.arg("--config-path").arg(&file);
    command.args(["--concurrency", "1", "--log-level", "warning"]);
    Envoy::start(&mut command, &file.with_extension("log"))
}

/// Where configurations, logs and data go.
fn directory() -> Result<PathBuf> {
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Complains unless nearly all answers under load were refusals, or none were, as the variant says.
fn ensure_answers(report: &load::Report, refuses: bool) -> Result<()> {
    let expected = if refuses { report.refused_share() } else { 1.0 - report.refused_share() };
    ensure!(
        expected >= EXPECTED_SHARE,
        "{:.2} % of the answers under load were not what it is measured for",
        100.0 * (1.0 - expected)
    );
    Ok(())
}

/// Complains unless the service answers once as a variant is to answer.
fn ensure_answer(service: SocketAddr, api_key: &str, refuses: bool, has_limit_headers: bool) -> Result<()> {
    let response = crate::http::get(service, "/", &[("x-api-key", api_key)])?;
    let status = if refuses { 429 } else { 200 };
    ensure!(response.status == status, "answers {} instead of {status}", response.status);
    for header in LIMIT_HEADERS {
        ensure!(
            response.has_header(header) == has_limit_headers,
            "{header} is {} the answer",
            if has_limit_headers { "missing from" } else { "in" }
        );
    }
    Ok(())
}

/// What is measured: all of it, or what was asked for.
fn chosen<V: ValueEnum + PartialEq + Copy>(only: &[V]) -> Vec<V> {
    V::value_variants().iter().filter(|variant| only.is_empty() || only.contains(variant)).copied().collect()
}

/// A variant's name, and what it is.
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
