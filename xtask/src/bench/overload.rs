//! The same minute of overload without protection, with each of Envoy's own, and with ours.
//!
//! The upstream is a model of small capacity (`bench/loadgen/src/upstream.rs`), so that it is the bottleneck and not
//! the machine. Load is open loop: callers do not wait for each other's responses. Every variant gets the same
//! arrivals and the same service times, a fresh Envoy with two workers and a fresh upstream.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;
use harness::bootstrap::extension;
use serde_json::{Value, json};

use super::{ADMIN, SERVICE, UPSTREAM, chosen, description, directory, name, start_envoy};
use crate::envoy::ensure_free;
use crate::filter::{self, Toolchain};
use crate::overload::{Between, HEALTH_PATH, Program, ROUTE_TIMEOUT, bootstrap, ours};
use crate::process::run as run_program;
use crate::{step, tools, workspace};

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum UpstreamKind {
    /// 50 requests a second, a queue without bound; clients wait and do not retry
    Unbounded,
    /// 100 requests a second, a queue of two seconds; clients wait a second and retry
    Bounded,
}

/// The arguments of the upstream and the load.
struct Shape {
    slots: u32,
    upstream: &'static str,
    route_timeout: &'static str,
    before: u32,
    plan: &'static str,
}

impl UpstreamKind {
    fn shape(self) -> Shape {
        match self {
            Self::Unbounded => Shape {
                slots: 5,
                upstream: "--slots 5 --service-ms 100",
                route_timeout: "2s",
                before: 12,
                plan: "--capacity 50 --overload 25 --after 15 --timeout-ms 3000 --retries 0",
            },
            Self::Bounded => Shape {
                slots: 10,
                upstream: "--slots 10 --service-ms 100 --queue 200",
                route_timeout: ROUTE_TIMEOUT,
                before: 10,
                plan: "--capacity 100 --overload 30 --after 30 --timeout-ms 1000 --retries 2",
            },
        }
    }
}

/// The maximum limit of `adaptive_concurrency`, as a multiple of the upstream's slots.
const MAX_CONCURRENCY_FACTOR: u32 = 5;

#[derive(clap::Args)]
#[group(id = "overload")]
pub(super) struct Options {
    /// The load in overload, as a multiple of the capacity
    #[arg(long, default_value_t = 10.0, value_parser = a_load)]
    times: f64,
    /// No load before the overload: Envoy starts in the middle of it
    #[arg(long)]
    cold: bool,
    /// Decides which requests arrive when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this upstream
    #[arg(long)]
    upstream: Option<UpstreamKind>,
    /// Only this variant; may be given more than once
    #[arg(long)]
    only: Vec<Variant>,
}

fn a_load(text: &str) -> Result<f64, String> {
    let load = text.parse().ok().filter(|load| (1.0..=100.0).contains(load));
    load.ok_or_else(|| "a number from 1 to 100 is wanted".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Variant {
    /// no protection
    None,
    /// Envoy's admission_control
    AdmissionControl,
    /// Envoy's adaptive_concurrency
    AdaptiveConcurrency,
    /// ours, "health": {"mode": "auto"}
    Ours,
}

impl Variant {
    fn filter(self, slots: u32) -> Option<Value> {
        match self {
            Self::None => None,
            Self::AdmissionControl => Some(admission_control()),
            Self::AdaptiveConcurrency => Some(adaptive_concurrency(slots)),
            // With the documented defaults.
            Self::Ours => Some(ours(json!({}))),
        }
    }
}

/// Envoy's defaults are a window of 30 s, an aggression of 1, at most 80 % rejected and a required success rate of 95
/// %. With a window as short as ours it reacts and recovers sooner. With at most 80 % rejected, twice the capacity of
/// the upstream would still be admitted, not counting retries.
fn admission_control() -> Value {
    let value =
        |name: &str, value: Value| json!({"default_value": value, "runtime_key": format!("overload.{name}")});
    let fields = json!({
        "enabled": value("enabled", json!(true)),
        "success_criteria": {},
        "sampling_window": "10s",
        "aggression": value("aggression", json!(1.5)),
        "sr_threshold": value("sr_threshold", json!({"value": 95})),
        "max_rejection_probability": value("max_rejection_probability", json!({"value": 99})),
    });
    let kind = "envoy.extensions.filters.http.admission_control.v3.AdmissionControl";
    extension("envoy.filters.http.admission_control", kind, fields)
}

/// Envoy's defaults are the median as the aggregate, a limit of at most 1000, 50 requests and a concurrency of 3 for
/// the measurement of the minimum RTT, 15 % of jitter and 25 % of buffer; there are none for the two intervals. Unlike
/// ours, it is configured with the capacity of the upstream: the minimum RTT is measured with as many requests as the
/// upstream has slots, and the limit never exceeds a few times that (without overload it grows to its maximum, and is
/// there when an overload begins). The minimum RTT is not measured again within the run, because that would only cost
/// throughput.
fn adaptive_concurrency(slots: u32) -> Value {
    let fields = json!({
        "enabled": {"default_value": true, "runtime_key": "overload.enabled"},
        "gradient_controller_config": {
            "sample_aggregate_percentile": {"value": 50},
            "concurrency_limit_params": {
                "max_concurrency_limit": MAX_CONCURRENCY_FACTOR * slots,
                "concurrency_update_interval": "0.5s",
            },
            "min_rtt_calc_params": {"interval": "300s", "request_count": 50, "min_concurrency": slots},
        },
    });
    let kind = "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency";
    extension("envoy.filters.http.adaptive_concurrency", kind, fields)
}

pub(super) fn run(options: &Options) -> Result<()> {
    let envoy = tools::envoy()?;
    let variants: Vec<Variant> = chosen(&options.only);
    if variants.contains(&Variant::Ours) {
        filter::build(Toolchain::find()?)?;
    }
    let program = Program::build()?;
    for upstream in chosen(options.upstream.as_slice()) {
        let mut reports = Vec::new();
        for variant in &variants {
            step(format!("upstream {}: {}", name(upstream), description(*variant)));
            let report = measure(&program, &envoy, (upstream, *variant), options);
            reports.push(report.with_context(|| name(*variant))?);
        }
        let svg = directory().join(format!("overload-{}.svg", name(upstream)));
        run_program(program.subcommand("table").args(&reports).arg("--svg").arg(&svg))?;
        step(format!("the plot: {}", workspace::shown(&svg)));
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    step(format!("load of this machine at the end (1, 5, 15 minutes): {}", load.trim()));
    Ok(())
}

fn measure(
    program: &Program,
    envoy_bin: &Path,
    (kind, variant): (UpstreamKind, Variant),
    options: &Options,
) -> Result<PathBuf> {
    ensure_free([SERVICE, ADMIN, UPSTREAM])?;
    let (directory, stem) = (directory(), format!("overload-{}-{}", name(kind), name(variant)));
    let file = |extension: &str| directory.join(&stem).with_extension(extension);
    let shape = kind.shape();
    let _upstream = program.upstream(UPSTREAM, shape.upstream, &file("upstream.log"))?;
    let bootstrap = bootstrap(Between {
        service: SERVICE,
        admin: ADMIN,
        upstream: UPSTREAM,
        route_timeout: shape.route_timeout,
        protection: variant.filter(shape.slots),
    });
    let mut envoy = start_envoy(Command::new(envoy_bin), 2, &stem, &bootstrap, (ADMIN, "/ready"))?;

    let report = file("report.json");
    let before = if options.cold { 0 } else { shape.before };
    let (times, seed) = (options.times, options.seed);
    let plan = format!("{} --before {before} --times {times} --seed {seed}", shape.plan);
    let mut load = program.load(SERVICE, &plan);
    load.args(["--name", &description(variant)]).arg("--report").arg(&report);
    if variant == Variant::Ours {
        load.args(["--health", HEALTH_PATH]);
    }
    // Its lines are progress, so only the table goes to standard output.
    load.stdout(std::io::stderr());
    run_program(&mut load)?;
    envoy.check()?;
    Ok(report)
}
