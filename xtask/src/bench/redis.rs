//! An Envoy in front of an upstream: the cost that each kind of limiter adds to a request.
//!
//! If there are two CPUs, the measured Envoy has its own, and all other processes share the others, including the load
//! and the upstream. So Envoy is the bottleneck, as long as the other CPUs are not saturated. All variants share one
//! upstream and one Redis.

mod servers;
mod variant;

use anyhow::{Context, Result, ensure};

use super::load::{Load, Report, cpu_us};
use super::{ADMIN, Machine, Timing, WARM_UP_SECONDS, chosen, dash, description, median, name};
use crate::filter::{self, Toolchain};
use crate::{http, step, tools};
use servers::Servers;
use variant::Variant;

/// How often a measurement is repeated if the number of commands to Redis was wrong, or requests were decided without
/// Redis, for example because the machine was stalled for longer than the limiter's timeout.
const ATTEMPTS: u32 = 5;

/// The share of requests that `on_failure` may decide.
const FALLBACK_SHARE: f64 = 0.01;

/// The minimum share of the commands for each node of a cluster.
const NODE_SHARE: f64 = 0.1;

/// The limiter's counter of requests that `on_failure` decided.
const FALLBACKS: &str = "wasmcustom.rate_limiter_fallback_decisions_total.policy.local:";

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    timing: Timing,
    /// The numbers of wrk's connections; each is measured and has a table
    #[arg(long, value_delimiter = ',', default_value = "1,16,128", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Vec<u32>,
    /// Only this variant; may be given more than once; differences need `none`
    #[arg(long)]
    only: Vec<Variant>,
}

/// One run of wrk against one Envoy.
#[derive(Debug)]
struct Measurement {
    /// The limiter's Envoy: CPU time of a request, all threads, user and system.
    envoy_us: f64,
    /// All processes of the variant's Redis, if it has one.
    redis_us: Option<f64>,
    /// The process between Envoy and Redis, if there is one.
    other_us: Option<f64>,
    /// Commands to each Redis for a request.
    commands: Vec<f64>,
    /// The share of requests that `on_failure` decided.
    fallbacks: f64,
    report: Report,
}

impl Measurement {
    fn cpu_us(&self) -> f64 {
        self.envoy_us + self.redis_us.unwrap_or(0.0) + self.other_us.unwrap_or(0.0)
    }

    /// Percentage of the time in which Envoy was busy. If it is not near 100, another process is the bottleneck.
    fn busy(&self) -> f64 {
        1e-4 * self.envoy_us * self.report.requests_per_second
    }

    /// Checks that the commands to Redis are as the variant expects.
    fn ensure_commands(&self, variant: Variant, connections: u32) -> Result<()> {
        // wrk does not count requests that are in flight at the end.
        let slack = f64::from(connections) / self.report.requests;
        let expected = variant.commands();
        let all: f64 = self.commands.iter().sum();
        ensure!(
            (expected.start() - slack..=expected.end() + slack).contains(&all),
            "Redis got {all:.3} commands a request, not {expected:?}"
        );
        ensure!(
            variant != Variant::RedisCluster || self.commands.iter().all(|one| *one >= NODE_SHARE * all),
            "the nodes got {:.3?} commands a request: some less than their share",
            self.commands
        );
        ensure!(
            self.fallbacks <= FALLBACK_SHARE,
            "{:.1} % of the requests were decided without Redis",
            100.0 * self.fallbacks
        );
        Ok(())
    }
}

type Series = super::Series<Variant, Measurement>;

pub(super) fn run(options: &Options) -> Result<()> {
    let machine = Machine::find()?;
    filter::build(Toolchain::find()?)?;
    let variants = chosen(&options.only);
    // Only the measured Envoy runs on the first CPU. Other processes that start from here on run where this one does.
    machine.leave_first_cpu()?;
    harness::redis::use_program(tools::redis_server()?);
    let mut bench = Bench { servers: Servers::start(&machine, &variants)?, machine, options };

    // The variants of one number of connections are adjacent, because they are compared.
    let series = |&connections: &u32| variants.iter().map(move |&variant| Series::new(variant, connections));
    let mut results: Vec<Series> = options.connections.iter().flat_map(series).collect();
    let ended = (1..=options.timing.rounds).try_for_each(|round| bench.round(round, &mut results));
    // A run takes long. If it is aborted, the complete rounds are still printed.
    let complete = results.iter().map(|series| series.measured.len()).min().unwrap_or(0);
    if complete > 0 {
        results.iter_mut().for_each(|series| series.measured.truncate(complete));
        println!(
            "\n{complete} rounds of {} s, one Envoy worker{}; medians; differences and ratios within a round",
            options.timing.seconds,
            if bench.machine.is_pinned() { " on its own CPU" } else { "" }
        );
        options.connections.iter().for_each(|connections| print_table(&results, *connections));
    }
    ended
}

struct Bench<'a> {
    servers: Servers,
    machine: Machine,
    options: &'a Options,
}

impl Bench<'_> {
    fn round(&mut self, round: u32, results: &mut [Series]) -> Result<()> {
        let rounds = self.options.timing.rounds;
        for Series { variant, connections, measured } in results {
            let measurement = self.measure(*variant, *connections);
            let measurement =
                measurement.with_context(|| format!("{}, {}", name(*variant), counted(*connections)))?;
            step(format!(
                "round {round} of {rounds}: {connections:3} connections, {:20} {:6.1} µs CPU a request, p50 {:6.3} ms, {:6.0} requests/s",
                name(*variant),
                measurement.cpu_us(),
                measurement.report.p50_ms,
                measurement.report.requests_per_second
            ));
            measured.push(measurement);
        }
        Ok(())
    }

    fn measure(&mut self, variant: Variant, connections: u32) -> Result<Measurement> {
        let mut attempt = 1;
        loop {
            let measured = self.measure_once(variant, connections)?;
            match measured.ensure_commands(variant, connections) {
                Ok(()) => return Ok(measured),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) => step(format!("{}: {error}; retrying", name(variant))),
            }
            attempt += 1;
        }
    }

    fn measure_once(&mut self, variant: Variant, connections: u32) -> Result<Measurement> {
        let Self { servers, machine, options } = self;
        let bootstrap = variant.bootstrap(servers)?;
        let mut envoy = machine.measured_envoy(&format!("upstream-{}", name(variant)), &bootstrap)?;
        let expected = variant.expected();
        expected.verify()?;

        let load = Load { callers: variant.callers(), connections };
        load.run(machine.wrk(), WARM_UP_SECONDS)?;
        let (redis, other) = (servers.redis_processes(variant), servers.other_processes(variant));
        let spent = || Ok::<_, anyhow::Error>([cpu_us(&[envoy.id()])?, cpu_us(&redis)?, cpu_us(&other)?]);
        let counts = || Ok::<_, anyhow::Error>((servers.commands(variant), fallbacks(variant)?));
        let ((commands, fallbacks_before), before) = (counts()?, spent()?);
        let report = load.run(machine.wrk(), options.timing.seconds)?;
        let (after, (commands_after, fallbacks_after)) = (spent()?, counts()?);
        envoy.check()?;
        servers.check()?;
        expected.check(&report)?;

        let a_request = |count: f64| count / report.requests;
        let each = |index: usize| a_request(after[index] - before[index]);
        Ok(Measurement {
            envoy_us: each(0),
            redis_us: (!redis.is_empty()).then(|| each(1)),
            other_us: (!other.is_empty()).then(|| each(2)),
            commands: commands_after
                .iter()
                .zip(commands)
                .map(|(after, before)| a_request(after - before))
                .collect(),
            fallbacks: a_request(fallbacks_after - fallbacks_before),
            report,
        })
    }
}

/// How many requests `on_failure` has decided so far.
fn fallbacks(variant: Variant) -> Result<f64> {
    if !variant.uses_redis_store() {
        return Ok(0.0);
    }
    let stats = http::get(ADMIN, "/stats?filter=fallback_decisions", &[])?.into_body();
    let count = stats.lines().find_map(|line| line.trim().strip_prefix(FALLBACKS)?.trim().parse().ok());
    count.with_context(|| format!("no `{FALLBACKS} <number>` among Envoy's stats"))
}

fn print_table(results: &[Series], connections: u32) {
    println!("\n{}, µs of CPU a request:\n", counted(connections));
    println!(
        "| variant | Envoy | Redis | webdis | added | × no limiter | p50 ms | p99 ms | p50 added µs | requests/s | × no limiter | Envoy busy % |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for series in results.iter().filter(|series| series.connections == connections) {
        let none = series.beside(Variant::None, results);
        let part = |of: fn(&Measurement) -> Option<f64>| {
            let values: Option<Vec<f64>> = series.measured.iter().map(of).collect();
            dash(values.map(median), 1)
        };
        println!(
            "| {} | {:.1} | {} | {} | {} | {} | {:.3} | {:.3} | {} | {:.0} | {} | {:.0} |",
            description(series.variant),
            series.median(|m| m.envoy_us),
            part(|m| m.redis_us),
            part(|m| m.other_us),
            series.compared_with(none, 1, |m, b| m.cpu_us() - b.cpu_us()),
            series.compared_with(none, 2, |m, b| m.cpu_us() / b.cpu_us()),
            series.median(|m| m.report.p50_ms),
            series.median(|m| m.report.p99_ms),
            series.compared_with(none, 0, |m, b| 1e3 * (m.report.p50_ms - b.report.p50_ms)),
            series.median(|m| m.report.requests_per_second),
            series.compared_with(none, 2, |m, b| m.report.requests_per_second / b.report.requests_per_second),
            series.median(Measurement::busy),
        );
    }
}

fn counted(connections: u32) -> String {
    format!("{connections} connection{}", if connections == 1 { "" } else { "s" })
}
