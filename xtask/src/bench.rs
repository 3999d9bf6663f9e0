//! `cargo xtask bench`: what the limiter costs, beside what else one could run.
//!
//! Every variant answers by itself, with no upstream behind it, so that the limiter's own cost is
//! the largest share of a request that it can be. The measure is the CPU time that Envoy spends on a
//! request: rates and latencies also count the time that other programs took. It is not immune to
//! them, since they share caches and clock speed, so give the bench a quiet machine.
//!
//! Rounds interleave the variants, and ratios are taken within a round, so that a machine that
//! slows down slows all of them. Each measurement has a fresh Envoy: where a process happens to lie
//! in memory is worth a few per cent for all of its life, and this way the median is over that too.

mod load;
mod variant;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};

use crate::envoy::{Envoy, ensure_free};
use crate::filter::{self, Toolchain};
use crate::{http, step, tools, workspace};
use load::{Load, Measurement};
use variant::Variant;

/// Not the demo's, and below those that the kernel gives to connections.
const SERVICE_PORT: u16 = 18000;
const ADMIN_PORT: u16 = 18001;

/// Long enough for V8 to have optimised what the load runs through.
const WARM_UP_SECONDS: u32 = 2;

/// The share of answers that must be the variant's own kind. A bucket that refuses nearly all
/// lets the first request through, and one more in an hour.
const EXPECTED_SHARE: f64 = 0.999;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each variant is measured; medians are printed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a measurement takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// How many connections wrk keeps busy
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Only this variant, or these if given more than once
    #[arg(long)]
    only: Vec<Variant>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(Path::new("/proc/self/stat").exists(), "the bench reads CPU times from /proc, so it needs Linux");
    let bench =
        Bench { envoy: tools::envoy()?, wrk: tools::wrk()?, pinned: available_parallelism()?.get() >= 2 };
    let toolchain = Toolchain::find()?;
    filter::build(toolchain)?;
    filter::build_package(toolchain, "empty-filter", &workspace::target().join("empty_filter.wasm"))?;

    let wanted = |variant: &&Variant| options.only.is_empty() || options.only.contains(variant);
    let variants: Vec<Variant> = Variant::ALL.iter().filter(wanted).copied().collect();
    let mut results: Vec<(Variant, Vec<Measurement>)> =
        variants.into_iter().map(|variant| (variant, Vec::new())).collect();
    for round in 1..=options.rounds {
        for (variant, measurements) in &mut results {
            let measured = bench.measure(*variant, options).with_context(|| variant.name())?;
            step(format!(
                "round {round} of {}: {:15} {:6.1} µs CPU a request, {:6.0} requests/s",
                options.rounds,
                variant.name(),
                measured.cpu_us,
                measured.requests_per_second
            ));
            measurements.push(measured);
        }
    }
    print_table(&results, options, bench.pinned);
    Ok(())
}

struct Bench {
    envoy: std::path::PathBuf,
    wrk: std::path::PathBuf,
    /// Whether Envoy and wrk each have a CPU of their own.
    pinned: bool,
}

impl Bench {
    fn measure(&self, variant: Variant, options: &Options) -> Result<Measurement> {
        let [service, admin] = [SERVICE_PORT, ADMIN_PORT].map(|port| (Ipv4Addr::LOCALHOST, port).into());
        ensure_free(service)?;
        ensure_free(admin)?;
        let directory = workspace::target().join("bench");
        fs::create_dir_all(&directory)?;
        let bootstrap = directory.join(variant.name()).with_extension("json");
        fs::write(&bootstrap, serde_json::to_vec_pretty(&variant.bootstrap(service, admin))?)?;

        let mut command = self.on_cpu(0, &self.envoy);
        command.arg("--config-path").arg(&bootstrap);
        command.args(["--concurrency", "1", "--log-level", "warning"]);
        let mut envoy = Envoy::start(&mut command, &bootstrap.with_extension("log"))?;
        envoy.wait_for(admin, "/ready")?;
        verify(variant, service)?;

        let load = Load {
            address: service,
            header: ("x-api-key", variant.api_key()),
            connections: options.connections,
        };
        load.run(self.on_cpu(1, &self.wrk), WARM_UP_SECONDS, envoy.id())?;
        let measured = load.run(self.on_cpu(1, &self.wrk), options.seconds, envoy.id())?;
        envoy.check()?;
        let expected = if variant.refuses() { measured.refused_share } else { 1.0 - measured.refused_share };
        ensure!(
            expected >= EXPECTED_SHARE,
            "{:.2} % of the answers under load were not what it is measured for",
            100.0 * (1.0 - expected)
        );
        Ok(measured)
    }

    fn on_cpu(&self, cpu: u32, program: &Path) -> Command {
        if !self.pinned {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cpu.to_string()]).arg(program);
        command
    }
}

/// Sees to it that a variant does what its name says: one that was set up wrongly would look fast.
fn verify(variant: Variant, service: SocketAddr) -> Result<()> {
    let get = || http::get(service, "/", &[("x-api-key", variant.api_key())]);
    // The first request takes the only token of the variant that refuses.
    get()?;
    let response = get()?;
    let status = if variant.refuses() { 429 } else { 200 };
    ensure!(response.status == status, "answers {} instead of {status}", response.status);
    for header in variant::LIMIT_HEADERS {
        ensure!(
            response.has_header(header) == variant.has_limit_headers(),
            "{header} is {} the answer",
            if variant.has_limit_headers() { "missing from" } else { "in" }
        );
    }
    Ok(())
}

fn print_table(results: &[(Variant, Vec<Measurement>)], options: &Options, pinned: bool) {
    let of = |wanted| results.iter().find(|(variant, _)| *variant == wanted).map(|(_, found)| found);
    let (native, none) = (of(Variant::Native), of(Variant::None));
    println!(
        "\n{} rounds of {} s, {} connections, one Envoy worker{}; medians\n",
        options.rounds,
        options.seconds,
        options.connections,
        if pinned { ", Envoy and wrk on a CPU each" } else { "" }
    );
    println!(
        "| variant | CPU µs/request | × native | × no filter | requests/s | p50 ms | p99 ms | RSS MiB |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (variant, measured) in results {
        println!(
            "| {} | {:.1} | {} | {} | {:.0} | {:.2} | {:.2} | {:.0} |",
            variant.description(),
            median(measured.iter().map(|m| m.cpu_us)),
            cpu_ratio(measured, native),
            cpu_ratio(measured, none),
            median(measured.iter().map(|m| m.requests_per_second)),
            median(measured.iter().map(|m| m.p50_ms)),
            median(measured.iter().map(|m| m.p99_ms)),
            median(measured.iter().map(|m| m.rss_mib)),
        );
    }
}

/// The median of the ratios that two variants had in each round.
fn cpu_ratio(measured: &[Measurement], base: Option<&Vec<Measurement>>) -> String {
    base.map_or_else(
        || "–".into(),
        |base| format!("{:.2}", median(measured.iter().zip(base).map(|(m, b)| m.cpu_us / b.cpu_us))),
    )
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
