//! An Envoy without an upstream: the limiter compared with Envoy's own, an empty filter and no filter.

mod variant;

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::load::{Callers, Load, Report, cpu_us, rss_mib};
use super::{
    Machine, Timing, WARM_UP_SECONDS, chosen, description, ensure_response, ensure_responses, loopback,
    median, name,
};
use crate::envoy::ensure_free;
use crate::filter::{self, Toolchain};
use crate::{http, step};
use variant::Variant;

/// Different from the demo's ports, and below the kernel's ports for outgoing connections.
const SERVICE_PORT: u16 = 18000;
const ADMIN_PORT: u16 = 18001;

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

pub(super) fn run(options: &Options) -> Result<()> {
    let machine = Machine::find()?;
    let toolchain = Toolchain::find()?;
    filter::build(toolchain)?;
    filter::build_package(toolchain, "empty-filter")?;

    let mut results: Vec<(Variant, Vec<Measurement>)> =
        chosen(&options.only).into_iter().map(|variant| (variant, Vec::new())).collect();
    let rounds = options.timing.rounds;
    for round in 1..=rounds {
        for (variant, measurements) in &mut results {
            let measured = measure(&machine, *variant, options).with_context(|| name(*variant))?;
            step(format!(
                "round {round} of {rounds}: {:15} {:6.1} µs CPU a request, {:6.0} requests/s",
                name(*variant),
                measured.cpu_us,
                measured.report.requests_per_second
            ));
            measurements.push(measured);
        }
    }
    print_table(&results, options, machine.is_pinned());
    step("`cargo xtask bench redis` measures with Redis and an upstream");
    Ok(())
}

fn measure(machine: &Machine, variant: Variant, options: &Options) -> Result<Measurement> {
    let [service, admin] = [SERVICE_PORT, ADMIN_PORT].map(loopback);
    [service, admin].into_iter().try_for_each(ensure_free)?;
    let mut envoy = machine.measured_envoy(&name(variant), &variant.bootstrap(service, admin), admin)?;
    verify(variant, service)?;

    let load =
        Load { address: service, callers: Callers::One(variant.api_key()), connections: options.connections };
    load.run(machine.wrk(), WARM_UP_SECONDS)?;
    let before = cpu_us(&[envoy.id()])?;
    let report = load.run(machine.wrk(), options.timing.seconds)?;
    let spent = cpu_us(&[envoy.id()])? - before;
    envoy.check()?;
    ensure_responses(&report, variant.rejects())?;
    Ok(Measurement { cpu_us: spent / report.requests, rss_mib: rss_mib(envoy.id())?, report })
}

/// Checks that a variant behaves as expected: a variant that is configured wrongly would look fast.
fn verify(variant: Variant, service: SocketAddr) -> Result<()> {
    // The first request takes the only token of the variant that rejects.
    http::get(service, "/", &[("x-api-key", variant.api_key())])?;
    ensure_response(service, variant.api_key(), variant.rejects(), variant.has_limit_headers())
}

fn print_table(results: &[(Variant, Vec<Measurement>)], options: &Options, pinned: bool) {
    let of = |wanted| results.iter().find(|(variant, _)| *variant == wanted).map(|(_, found)| found);
    let (native, none) = (of(Variant::Native), of(Variant::None));
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
    for (variant, measured) in results {
        let median = |of: fn(&Measurement) -> f64| median(measured.iter().map(of));
        println!(
            "| {} | {:.1} | {} | {} | {:.0} | {:.2} | {:.2} | {:.0} |",
            description(*variant),
            median(|m| m.cpu_us),
            cpu_ratio(measured, native),
            cpu_ratio(measured, none),
            median(|m| m.report.requests_per_second),
            median(|m| m.report.p50_ms),
            median(|m| m.report.p99_ms),
            median(|m| m.rss_mib),
        );
    }
}

/// The median of the ratios of two variants in each round.
fn cpu_ratio(measured: &[Measurement], base: Option<&Vec<Measurement>>) -> String {
    base.map_or_else(
        || "–".into(),
        |base| format!("{:.2}", median(measured.iter().zip(base).map(|(m, b)| m.cpu_us / b.cpu_us))),
    )
}
