//! The same minute of overload with no protection, with each of Envoy's own, and with ours.
//!
//! The upstream is a model of small capacity (`bench/rush/src/upstream.rs`), so that it is the bottleneck and not the
//! machine; the load knows nothing of what becomes of it, as real callers do not. Every variant gets the same arrivals,
//! a fresh Envoy and a fresh upstream.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{directory, loopback};
use crate::envoy::{Envoy, ensure_free};
use crate::filter::{self, Toolchain};
use crate::overload::{HEALTH_PATH, Program, bootstrap, ours, write};
use crate::process::run as run_program;
use crate::{step, tools, workspace};

/// Not those of the demo or of the other tables, and below those that the kernel gives to connections.
const SERVICE_PORT: u16 = 18030;
const ADMIN_PORT: u16 = 18031;
const UPSTREAM_PORT: u16 = 18032;

/// Normal load before the overload, in seconds: long enough for everybody to learn what is usual.
const BEFORE_SECONDS: u32 = 10;

/// What the upstream can serve: ten requests at once, each of which takes 100 ms on average.
const SLOTS: u32 = 10;
const SERVICE_MS: u32 = 100;
const CAPACITY: u32 = SLOTS * 1_000 / SERVICE_MS;

/// How many times the upstream's slots `adaptive_concurrency` may let in at once.
const MOST_CONCURRENCY: u32 = 5;

#[derive(clap::Args)]
#[group(id = "overload")]
pub(super) struct Options {
    /// How long the overload lasts, and how long the normal load after it
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(5..))]
    seconds: u32,
    /// How many times what the upstream can serve is asked for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// How often a client tries again after a server error or a timeout
    #[arg(long, default_value_t = 2)]
    retries: u32,
    /// How many requests wait for their turn in the upstream before it refuses more: by default two seconds' worth
    #[arg(long, default_value_t = 200)]
    queue: u32,
    /// Decides who asks when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the plot goes
    #[arg(long, default_value = "target/bench/overload.svg", value_name = "FILE")]
    svg: PathBuf,
    /// Only this variant, or these if given more than once
    #[arg(long)]
    only: Vec<Variant>,
}

/// What stands between the callers and the upstream.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Variant {
    None,
    AdmissionControl,
    AdaptiveConcurrency,
    Ours,
}

impl Variant {
    const ALL: [Self; 4] = [Self::None, Self::AdmissionControl, Self::AdaptiveConcurrency, Self::Ours];

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AdmissionControl => "admission-control",
            Self::AdaptiveConcurrency => "adaptive-concurrency",
            Self::Ours => "ours",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::None => "no protection",
            Self::AdmissionControl => "Envoy's admission_control",
            Self::AdaptiveConcurrency => "Envoy's adaptive_concurrency",
            Self::Ours => "ours, \"health\": {\"mode\": \"auto\"}",
        }
    }

    fn filter(self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::AdmissionControl => Some(admission_control()),
            Self::AdaptiveConcurrency => Some(adaptive_concurrency()),
            // As documented, without any bound of our own.
            Self::Ours => Some(ours(&json!({}))),
        }
    }
}

/// Envoy's defaults are a window of 30 s, an aggression of 1, at most 80 % rejected and a wanted success rate of 95 %. A
/// window as short as ours makes it act and recover sooner, and with at most 80 % rejected twice what the upstream can
/// bear would still come through, retries not counted.
fn admission_control() -> Value {
    let value =
        |name: &str, value: Value| json!({"default_value": value, "runtime_key": format!("overload.{name}")});
    json!({
        "name": "envoy.filters.http.admission_control",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.admission_control.v3.AdmissionControl",
            "enabled": value("enabled", json!(true)),
            "success_criteria": {},
            "sampling_window": "10s",
            "aggression": value("aggression", json!(1.5)),
            "sr_threshold": value("sr_threshold", json!({"value": 95})),
            "max_rejection_probability": value("max_rejection_probability", json!({"value": 99})),
        },
    })
}

/// Envoy's defaults are the median as the aggregate, a limit of at most 1000, 50 requests and a concurrency of 3 for the
/// measurement of the ideal time, 15 % of jitter and 25 % of buffer; it has none for the two intervals. Here it is told
/// what ours is not, how much the upstream can bear: the ideal time is measured with as many requests as the upstream can
/// work on, and the limit never exceeds a few times that (while all is well it grows up to its bound, and an overload
/// then finds it there). The ideal time is not measured again within the run, since that would only cost goodput.
fn adaptive_concurrency() -> Value {
    json!({
        "name": "envoy.filters.http.adaptive_concurrency",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
            "enabled": {"default_value": true, "runtime_key": "overload.enabled"},
            "gradient_controller_config": {
                "sample_aggregate_percentile": {"value": 50},
                "concurrency_limit_params": {
                    "max_concurrency_limit": MOST_CONCURRENCY * SLOTS,
                    "concurrency_update_interval": "0.5s",
                },
                "min_rtt_calc_params": {"interval": "300s", "request_count": 50, "min_concurrency": SLOTS},
            },
        },
    })
}

pub(super) fn run(options: &Options) -> Result<()> {
    let envoy = tools::envoy()?;
    let wanted = |variant: &&Variant| options.only.is_empty() || options.only.contains(variant);
    let variants: Vec<Variant> = Variant::ALL.iter().filter(wanted).copied().collect();
    if variants.contains(&Variant::Ours) {
        filter::build(Toolchain::find()?)?;
    }
    let program = Program::build()?;
    let mut reports = Vec::new();
    for (index, variant) in variants.iter().enumerate() {
        step(format!(
            "{} of {}: {}, {} s",
            index + 1,
            variants.len(),
            variant.description(),
            BEFORE_SECONDS + 2 * options.seconds
        ));
        reports.push(measure(&program, &envoy, *variant, options).with_context(|| variant.name())?);
    }
    let svg = workspace::root().join(&options.svg);
    run_program(program.verb("table").args(&reports).arg("--svg").arg(&svg))?;
    step(format!("the plot: {}", workspace::shown(&svg)));
    Ok(())
}

/// Runs the load against one variant; gives where its report is.
fn measure(program: &Program, envoy: &PathBuf, variant: Variant, options: &Options) -> Result<PathBuf> {
    let [service, admin, upstream] = [SERVICE_PORT, ADMIN_PORT, UPSTREAM_PORT].map(loopback);
    for address in [service, admin, upstream] {
        ensure_free(address)?;
    }
    let file = |extension: &str| -> Result<PathBuf> {
        Ok(directory()?.join(format!("overload-{}", variant.name())).with_extension(extension))
    };
    let shape = arguments(&[("slots", SLOTS), ("service-ms", SERVICE_MS), ("queue", options.queue)]);
    let _upstream = program.upstream(upstream, &shape, &file("upstream.log")?)?;

    let config = file("json")?;
    write(&bootstrap(service, admin, upstream, variant.filter()), &config)?;
    let mut command = Command::new(envoy);
    command.arg("--config-path").arg(&config).args(["--concurrency", "1", "--log-level", "warning"]);
    let mut envoy = Envoy::start(&mut command, &file("log")?)?;
    envoy.wait_for(admin, "/ready")?;

    let report = file("report.json")?;
    run_program(&mut load(program, variant, service, &report, options)?)?;
    envoy.check()?;
    Ok(report)
}

fn load(
    program: &Program,
    variant: Variant,
    service: SocketAddr,
    report: &PathBuf,
    options: &Options,
) -> Result<Command> {
    let mut plan = arguments(&[
        ("capacity", CAPACITY),
        ("before", BEFORE_SECONDS),
        ("overload", options.seconds),
        ("after", options.seconds),
        ("times", options.times),
        ("retries", options.retries),
    ]);
    plan.extend(["--seed".to_owned(), options.seed.to_string()]);
    let mut command = program.load(service, &plan);
    command.args(["--name", variant.description()]).arg("--report").arg(report);
    if variant == Variant::Ours {
        command.args(["--health", HEALTH_PATH]);
    }
    // Its lines are progress; the table alone goes where we print.
    command.stdout(Stdio::from(std::io::stderr().as_fd().try_clone_to_owned()?));
    Ok(command)
}

fn arguments(values: &[(&str, u32)]) -> Vec<String> {
    values.iter().flat_map(|(name, value)| [format!("--{name}"), value.to_string()]).collect()
}
