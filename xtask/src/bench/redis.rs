//! An Envoy in front of an upstream: what each way to limit adds to a request.
//!
//! The measured Envoy has a CPU of its own where there are two, and everybody else, the load and
//! the upstream included, shares the others: so it is Envoy that is the bottleneck, as long as
//! the others have enough in theirs. All variants share one upstream and one Redis.

mod servers;
mod variant;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::load::{Load, Report, cpu_us};
use super::{
    Machine, Timing, WARM_UP_SECONDS, chosen, description, ensure_answer, ensure_answers, median, name,
};
use crate::envoy::ensure_free;
use crate::filter::{self, Toolchain};
use crate::process::pause;
use crate::{http, step, tools};
use servers::Servers;
use variant::Variant;

/// How often a measurement is tried in which Redis was not asked as it should, or not waited for. A
/// machine that stands still for longer than the limiter waits for Redis is a reason.
const ATTEMPTS: u32 = 5;

/// The share of requests that may be decided without Redis where Redis should decide.
const FALLBACK_SHARE: f64 = 0.01;

/// The share of the questions that each node of a cluster gets at least.
const NODE_SHARE: f64 = 0.1;

/// The limiter's counter of requests that `on_failure` decided.
const FALLBACKS: &str = "wasmcustom.rate_limiter_fallback_decisions_total.policy.local:";

/// The aims of the project's specification, for `many` connections and for one.
const AIM_ADDED_CPU_US: f64 = 25.0;
const AIM_RATE: f64 = 0.9;
const AIM_ADDED_P50_US: f64 = 300.0;
const MANY_CONNECTIONS: u32 = 64;

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    timing: Timing,
    /// How many connections wrk keeps busy; each number is measured and has a table
    #[arg(long, value_delimiter = ',', default_value = "1,16,128", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Vec<u32>,
    /// Only this variant, or these if given more than once; differences need `none`
    #[arg(long)]
    only: Vec<Variant>,
}

/// One run of wrk against one Envoy.
#[derive(Debug)]
struct Measurement {
    /// CPU time of each request, all threads, user and system: the limiter's Envoy,
    envoy_us: f64,
    /// all processes of the Redis that it asks, if any,
    redis_us: Option<f64>,
    /// and who stands between them, if anybody.
    other_us: Option<f64>,
    /// How often each Redis was asked for each request.
    questions: Vec<f64>,
    /// The share of requests that should have been decided by Redis and were not.
    fallbacks: f64,
    report: Report,
}

impl Measurement {
    fn cpu_us(&self) -> f64 {
        self.envoy_us + self.redis_us.unwrap_or(0.0) + self.other_us.unwrap_or(0.0)
    }

    /// Percentage of the time that Envoy was at work. Where it is not near 100, something else is
    /// the bottleneck.
    fn busy(&self) -> f64 {
        1e-4 * self.envoy_us * self.report.requests_per_second
    }

    /// Complains unless Redis was asked as the variant says.
    fn ensure_asked(&self, variant: Variant, connections: u32) -> Result<()> {
        // What wrk did not wait for at the end is no request to it.
        let slack = f64::from(connections) / self.report.requests;
        let expected = variant.questions();
        let all: f64 = self.questions.iter().sum();
        ensure!(
            (expected.start() - slack..=expected.end() + slack).contains(&all),
            "Redis was asked {all:.3} times a request, not {expected:?}"
        );
        ensure!(
            variant != Variant::RedisCluster || self.questions.iter().all(|one| *one >= NODE_SHARE * all),
            "the nodes were asked {:.3?} times a request: not each its share",
            self.questions
        );
        ensure!(
            self.fallbacks <= FALLBACK_SHARE,
            "{:.1} % of the requests did not wait for Redis, or not long enough",
            100.0 * self.fallbacks
        );
        Ok(())
    }
}

/// All measurements of a variant with a number of connections, one of each round.
struct Series {
    variant: Variant,
    connections: u32,
    measured: Vec<Measurement>,
}

impl Series {
    fn median(&self, of: impl Fn(&Measurement) -> f64) -> f64 {
        median(self.measured.iter().map(of))
    }

    /// The median of what two series have in each round.
    fn beside(&self, base: &Self, of: impl Fn(&Measurement, &Measurement) -> f64) -> f64 {
        median(self.measured.iter().zip(&base.measured).map(|(m, b)| of(m, b)))
    }

    fn added_cpu_us(&self, base: &Self) -> f64 {
        self.beside(base, |m, b| m.cpu_us() - b.cpu_us())
    }

    fn added_p50_us(&self, base: &Self) -> f64 {
        self.beside(base, |m, b| 1e3 * (m.report.p50_ms - b.report.p50_ms))
    }

    fn rate(&self, base: &Self) -> f64 {
        self.beside(base, |m, b| m.report.requests_per_second / b.report.requests_per_second)
    }
}

pub(super) fn run(options: &Options) -> Result<()> {
    let machine = Machine::find()?;
    filter::build(Toolchain::find()?)?;
    let variants = chosen(&options.only);
    // The measured Envoy alone is put on the first CPU again. What starts from here on is where we are.
    machine.leave_first_cpu()?;
    harness::redis::use_program(tools::redis_server()?);
    let mut bench = Bench { servers: Servers::start(&machine, &variants)?, machine, options };

    // The variants of one number of connections follow each other, for they are compared.
    let mut results: Vec<Series> = Vec::new();
    for &connections in &options.connections {
        let series = |&variant| Series { variant, connections, measured: Vec::new() };
        results.extend(variants.iter().map(series));
    }
    let ended = (1..=options.timing.rounds).try_for_each(|round| bench.round(round, &mut results));
    // A run takes long. If it breaks off, the rounds before are still worth having.
    let complete = results.iter().map(|series| series.measured.len()).min().unwrap_or(0);
    if complete > 0 {
        results.iter_mut().for_each(|series| series.measured.truncate(complete));
        bench.print(&results, complete);
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
            let measurement = self
                .measure(*variant, *connections)
                .with_context(|| format!("{}, {}", name(*variant), counted(*connections)))?;
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
            match measured.ensure_asked(variant, connections) {
                Ok(()) => return Ok(measured),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(error) => step(format!("{}: {error}; once more", name(variant))),
            }
            attempt += 1;
        }
    }

    fn measure_once(&mut self, variant: Variant, connections: u32) -> Result<Measurement> {
        let Self { servers, machine, options } = self;
        let (service, admin) = (servers.service(), servers.admin());
        ensure_free(service)?;
        ensure_free(admin)?;
        let bootstrap = variant.bootstrap(servers)?;
        let mut envoy = machine.measured_envoy(&format!("upstream-{}", name(variant)), &bootstrap, admin)?;
        verify(variant, service)?;

        let load = Load { address: service, callers: variant.callers(), connections };
        load.run(machine.wrk(), WARM_UP_SECONDS)?;
        let (redis, other) = (servers.redis_processes(variant), servers.other_processes(variant));
        let spent = || Ok::<_, anyhow::Error>([cpu_us(&[envoy.id()])?, cpu_us(&redis)?, cpu_us(&other)?]);
        let asked = || Ok::<_, anyhow::Error>((servers.questions(variant), fallbacks(variant, admin)?));
        let (asked_before, before) = (asked()?, spent()?);
        let report = load.run(machine.wrk(), options.timing.seconds)?;
        let (after, asked_after) = (spent()?, asked()?);
        envoy.check()?;
        servers.check()?;
        ensure_answers(&report, variant.refuses())?;

        let each = |index: usize| (after[index] - before[index]) / report.requests;
        Ok(Measurement {
            envoy_us: each(0),
            redis_us: (!redis.is_empty()).then(|| each(1)),
            other_us: (!other.is_empty()).then(|| each(2)),
            questions: asked_after
                .0
                .iter()
                .zip(asked_before.0)
                .map(|(after, before)| (after - before) / report.requests)
                .collect(),
            fallbacks: (asked_after.1 - asked_before.1) / report.requests,
            report,
        })
    }

    fn print(&self, results: &[Series], rounds: usize) {
        let Options { timing, connections, .. } = self.options;
        println!(
            "\n{rounds} rounds of {} s, one Envoy worker{}; medians; differences and ratios within a round",
            timing.seconds,
            if self.machine.is_pinned() { " on a CPU of its own" } else { "" }
        );
        for &connections in connections {
            print_table(results, connections);
        }
        print_aims(results);
    }
}

/// Sees to it that a variant does what its name says.
fn verify(variant: Variant, service: SocketAddr) -> Result<()> {
    let ask = || ensure_answer(service, variant.api_key(), variant.refuses(), variant.has_limit_headers());
    // The first requests take the token of a bucket that refuses, find no connection to Redis yet
    // and are decided without, or bring webdis its connections.
    for _ in 0..20 {
        if ask().is_ok() {
            break;
        }
        pause(Duration::from_millis(50))?;
    }
    ask()
}

/// How many requests `on_failure` has decided so far.
fn fallbacks(variant: Variant, admin: SocketAddr) -> Result<f64> {
    if !variant.has_pipe() {
        return Ok(0.0);
    }
    let stats = http::get(admin, "/stats?filter=fallback_decisions", &[])?.body;
    let count = stats.lines().find_map(|line| line.trim().strip_prefix(FALLBACKS)?.trim().parse().ok());
    count.with_context(|| format!("no `{FALLBACKS} <number>` among Envoy's stats"))
}

fn find(results: &[Series], variant: Variant, connections: u32) -> Option<&Series> {
    results.iter().find(|series| series.variant == variant && series.connections == connections)
}

fn print_table(results: &[Series], connections: u32) {
    println!("\n{}, µs of CPU a request:\n", counted(connections));
    println!(
        "| variant | Envoy | Redis | webdis | added | × no limiter | p50 ms | p99 ms | p50 added µs | requests/s | × no limiter | Envoy busy % |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let none = find(results, Variant::None, connections);
    for series in results.iter().filter(|series| series.connections == connections) {
        let part = |of: fn(&Measurement) -> Option<f64>| {
            let is_there = series.measured.iter().all(|m| of(m).is_some());
            dash(is_there.then(|| series.median(|m| of(m).unwrap_or_default())), 1)
        };
        println!(
            "| {} | {:.1} | {} | {} | {} | {} | {:.3} | {:.3} | {} | {:.0} | {} | {:.0} |",
            description(series.variant),
            series.median(|m| m.envoy_us),
            part(|m| m.redis_us),
            part(|m| m.other_us),
            dash(none.map(|none| series.added_cpu_us(none)), 1),
            dash(none.map(|none| series.beside(none, |m, b| m.cpu_us() / b.cpu_us())), 2),
            series.median(|m| m.report.p50_ms),
            series.median(|m| m.report.p99_ms),
            dash(none.map(|none| series.added_p50_us(none)), 0),
            series.median(|m| m.report.requests_per_second),
            dash(none.map(|none| series.rate(none)), 2),
            series.median(Measurement::busy),
        );
    }
}

/// What was aimed at, beside what was found.
fn print_aims(results: &[Series]) {
    println!("\n| aim | wanted | Redis | Redis Cluster |");
    println!("|---|--:|--:|--:|");
    let row = |aim: &str, wanted: &str, connections: u32, digits: usize, of: fn(&Series, &Series) -> f64| {
        let none = find(results, Variant::None, connections);
        let found = [Variant::Redis, Variant::RedisCluster].map(|variant| {
            let found = find(results, variant, connections).zip(none);
            dash(found.map(|(series, none)| of(series, none)), digits)
        });
        println!("| {aim}, {} | {wanted} | {} | {} |", counted(connections), found[0], found[1]);
    };
    let mut connections: Vec<u32> = results.iter().map(|series| series.connections).collect();
    connections.dedup();
    for &many in connections.iter().filter(|&&connections| connections >= MANY_CONNECTIONS) {
        row("µs of CPU added", &format!("≤ {AIM_ADDED_CPU_US}"), many, 1, Series::added_cpu_us);
        row("requests/s × no limiter", &format!("≥ {AIM_RATE}"), many, 2, Series::rate);
    }
    if connections.contains(&1) {
        row("p50 added µs", &format!("≤ {AIM_ADDED_P50_US}"), 1, 0, Series::added_p50_us);
    }
    for &connections in &connections {
        let refusing = [Variant::RedisRefusing, Variant::SharedDataRefusing]
            .map(|variant| find(results, variant, connections));
        if let [Some(redis), Some(shared_data)] = refusing {
            let ratio = redis.beside(shared_data, |m, b| m.cpu_us() / b.cpu_us());
            println!("| CPU of a refusal × shared data's, {} | ≤ 1 | {ratio:.2} | – |", counted(connections));
        }
    }
}

fn counted(connections: u32) -> String {
    format!("{connections} connection{}", if connections == 1 { "" } else { "s" })
}

fn dash(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.digits$}"))
}
