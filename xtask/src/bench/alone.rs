//! An Envoy without an upstream: the limiter compared with Envoy's own, an empty filter and no filter.

mod variant;

use anyhow::{Context, Result};

use super::load::{Callers, Load, Report, cpu_us, rss_mib};
use super::{Machine, Timing, WARM_UP_SECONDS, chosen, description, name};
use crate::filter::{self, Toolchain};
use crate::step;
use variant::Variant;

#[derive(clap::Args)]
// By default a group has its type's name, which the outer options have already.
#[group(id = "alone")]
pub(super) struct Options {
    #[command(flatten)]
    timing: Timing,
    /// The number of wrk's connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Only this variant; may be given more than once
    #[arg(long)]
    only: Vec<Variant>,
}

/// One run of wrk against one Envoy.
#[derive(Debug)]
struct Measurement {
    /// Envoy's CPU time for a request: all threads, user and system.
    cpu_us: f64,
    rss_mib: f64,
    report: Report,
}

type Series = super::Series<Variant, Measurement>;

pub(super) fn run(options: &Options) -> Result<()> {
    let machine = Machine::find()?;
    let toolchain = Toolchain::find()?;
    filter::build(toolchain)?;
    filter::build_package(toolchain, "empty-filter")?;

    let series = |variant| Series::new(variant, options.connections);
    let mut results: Vec<Series> = chosen(&options.only).into_iter().map(series).collect();
    let rounds = options.timing.rounds;
    for round in 1..=rounds {
        for Series { variant, measured, .. } in &mut results {
            let measurement = measure(&machine, *variant, options).with_context(|| name(*variant))?;
            step(format!(
                "round {round} of {rounds}: {:15} {:6.1} µs CPU a request, {:6.0} requests/s",
                name(*variant),
                measurement.cpu_us,
                measurement.report.requests_per_second
            ));
            measured.push(measurement);
        }
    }
    print_table(&results, options, machine.is_pinned());
    step("`cargo xtask bench redis` measures with Redis and an upstream");
    Ok(())
}

fn measure(machine: &Machine, variant: Variant, options: &Options) -> Result<Measurement> {
    let mut envoy = machine.measured_envoy(&name(variant), &variant.bootstrap())?;
    let expected = variant.expected();
    expected.verify()?;

    let load = Load { callers: Callers::One(expected.api_key()), connections: options.connections };
    load.run(machine.wrk(), WARM_UP_SECONDS)?;
    let before = cpu_us(&[envoy.id()])?;
    let report = load.run(machine.wrk(), options.timing.seconds)?;
    let spent = cpu_us(&[envoy.id()])? - before;
    envoy.check()?;
    expected.check(&report)?;
    Ok(Measurement { cpu_us: spent / report.requests, rss_mib: rss_mib(envoy.id())?, report })
}

fn print_table(results: &[Series], options: &Options, pinned: bool) {
    println!(
        "\n{} rounds of {} s, {} connections, one Envoy worker{}; medians\n",
        options.timing.rounds,
        options.timing.seconds,
        options.connections,
        if pinned { ", Envoy on its own CPU" } else { "" }
    );
    println!(
        "| variant | CPU µs/request | × native | × no filter | requests/s | p50 ms | p99 ms | RSS MiB |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for series in results {
        let ratio_to =
            |base| series.compared_with(series.beside(base, results), 2, |m, b| m.cpu_us / b.cpu_us);
        println!(
            "| {} | {:.1} | {} | {} | {:.0} | {:.2} | {:.2} | {:.0} |",
            description(series.variant),
            series.median(|m| m.cpu_us),
            ratio_to(Variant::Native),
            ratio_to(Variant::None),
            series.median(|m| m.report.requests_per_second),
            series.median(|m| m.report.p50_ms),
            series.median(|m| m.report.p99_ms),
            series.median(|m| m.rss_mib),
        );
    }
}
