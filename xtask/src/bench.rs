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

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use harness::wait;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::envoy::{self, ensure_free, loopback};
use crate::filter::{self, Toolchain};
use crate::process::{Running, run as run_program};
use crate::{http, search, step, tools, workspace};
use config::REJECTED_KEY;

/// Different from the demo's ports, and below the kernel's ports for outgoing connections. Redis has reserved ports.
const SERVICE: SocketAddr = loopback(18000);
const ADMIN: SocketAddr = loopback(18001);
const UPSTREAM: SocketAddr = loopback(18002);

/// Long enough for V8 to have optimised what the load runs through.
const WARM_UP_SECONDS: u32 = 2;

/// The share of responses that must be as the variant expects. A bucket that rejects nearly all requests admits the
/// first one, and one more in an hour.
const EXPECTED_SHARE: f64 = 0.999;

/// How long the first answers of a variant may differ from the later ones.
const VERIFY_LIMIT: Duration = Duration::from_secs(1);

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
    fn measured_envoy(&self, name: &str, bootstrap: &Value) -> Result<Running> {
        ensure_free([SERVICE, ADMIN])?;
        start_envoy(self.on_cpus("0", &self.envoy), 1, name, bootstrap, (ADMIN, "/ready"))
    }

    fn wrk(&self) -> Command {
        self.on_other_cpus(&self.wrk)
    }
}

/// Starts an Envoy, and waits until this path at this address is answered.
fn start_envoy(
    mut command: Command,
    workers: u32,
    name: &str,
    bootstrap: &Value,
    (address, path): (SocketAddr, &str),
) -> Result<Running> {
    let file = directory().join(name).with_extension("json");
    workspace::write(&file, format!("{bootstrap:#}"))?;
    command.arg("--config-path").arg(&file);
    command.args(["--concurrency", &workers.to_string(), "--log-level", "warning"]);
    envoy::start(&mut command, &file.with_extension("log"), address, path)
}

fn directory() -> PathBuf {
    workspace::target().join("bench")
}

/// How a variant answers.
#[derive(Clone, Copy)]
struct Expected {
    /// Whether it answers nearly all requests with 429.
    rejects: bool,
    has_limit_headers: bool,
}

impl Expected {
    fn api_key(self) -> &'static str {
        if self.rejects { REJECTED_KEY } else { "key-50" }
    }

    /// Checks the answer to one request: a variant that is configured wrongly would look fast. The first requests take
    /// the token of a bucket that rejects, are decided without Redis because it is not connected yet, or let webdis
    /// connect.
    fn verify(self) -> Result<()> {
        wait::poll(VERIFY_LIMIT, || self.verify_once().ok());
        self.verify_once()
    }

    fn verify_once(self) -> Result<()> {
        let response = http::get(SERVICE, "/", &[("x-api-key", self.api_key())])?;
        let status = if self.rejects { 429_u16 } else { 200 };
        ensure!(response.status() == status, "answers {} instead of {status}", response.status());
        let found = LIMIT_HEADERS.map(|header| response.headers().contains_key(header));
        ensure!(found == [self.has_limit_headers; 3], "has the headers {LIMIT_HEADERS:?}: {found:?}");
        Ok(())
    }

    /// Checks that nearly all responses under load were rejections, or none.
    fn check(self, report: &load::Report) -> Result<()> {
        let rejected = report.rejected / report.requests;
        let expected = if self.rejects { rejected } else { 1.0 - rejected };
        let others = 100.0 * (1.0 - expected);
        ensure!(
            expected >= EXPECTED_SHARE,
            "{others:.2} % of the responses are not those that the variant expects"
        );
        Ok(())
    }
}

/// The measurements of a variant with a number of connections, one a round.
struct Series<V, M> {
    variant: V,
    connections: u32,
    measured: Vec<M>,
}

impl<V: PartialEq, M> Series<V, M> {
    fn new(variant: V, connections: u32) -> Self {
        Self { variant, connections, measured: Vec::new() }
    }

    /// The series of a variant with the same number of connections.
    fn beside<'a>(&self, variant: V, all: &'a [Self]) -> Option<&'a Self> {
        all.iter().find(|other| other.variant == variant && other.connections == self.connections)
    }

    fn median(&self, of: impl Fn(&M) -> f64) -> f64 {
        median(self.measured.iter().map(of).collect())
    }

    /// The median of a comparison with another series in each round.
    fn compared_with(&self, base: Option<&Self>, digits: usize, of: fn(&M, &M) -> f64) -> String {
        let compared =
            |base: &Self| self.measured.iter().zip(&base.measured).map(|(m, b)| of(m, b)).collect();
        dash(base.map(|base| median(compared(base))), digits)
    }
}

fn chosen<V: ValueEnum + PartialEq + Copy>(only: &[V]) -> Vec<V> {
    V::value_variants().iter().filter(|variant| only.is_empty() || only.contains(variant)).copied().collect()
}

pub(crate) fn name<V: ValueEnum>(variant: V) -> String {
    variant.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn description<V: ValueEnum>(variant: V) -> String {
    let value = variant.to_possible_value();
    value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    f64::midpoint(values[low], values[high])
}

/// A number, or a dash if there is none.
fn dash(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
