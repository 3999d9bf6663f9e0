//! The upstream, the load, and the comparison of reports as commands. `cargo xtask bench --overload` and
//! `cargo xtask demo --overload` run them.

mod health;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use health::Health;
use loadgen::plan::{Phase, Plan};
use loadgen::report::{Report, Second};
use loadgen::upstream::{Shape, Upstream};
use loadgen::{callers, plot, table};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// An upstream with limited capacity, an open-loop load, and reports
#[derive(Parser)]
enum Verb {
    /// Serve with limited capacity until Ctrl-C
    Upstream {
        #[arg(long)]
        listen: SocketAddr,
        #[command(flatten)]
        shape: Shape,
    },
    /// Send more requests than can be served; print a line a second
    Load {
        #[arg(long)]
        to: SocketAddr,
        /// The name in the report
        #[arg(long, default_value = "load")]
        name: String,
        /// The path of the limiter's health report, to be shown in every line
        #[arg(long)]
        health: Option<String>,
        /// Where to write the report, as JSON
        #[arg(long)]
        report: Option<PathBuf>,
        #[command(flatten)]
        plan: Plan,
    },
    /// Print a table of reports
    Table {
        #[arg(required = true)]
        reports: Vec<PathBuf>,
        /// Where to write a plot of them, as SVG
        #[arg(long)]
        svg: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match Verb::parse() {
        Verb::Upstream { listen, shape } => {
            let upstream = Upstream::start(shape, listen).with_context(|| listen.to_string())?;
            println!("serving {:.0} requests a second at {}", shape.capacity(), upstream.address());
            runtime.block_on(tokio::signal::ctrl_c())?;
        }
        Verb::Load { to, name, health, report: file, plan } => {
            let health = health.map(|path| Health::new(to, &path));
            let report = runtime.block_on(load(to, &name, health.as_ref(), &plan));
            if let Some(file) = file {
                write(&file, serde_json::to_vec(&report)?)?;
            }
        }
        Verb::Table { reports, svg } => {
            let reports = reports.iter().map(read).collect::<Result<Vec<_>>>()?;
            print!("{}", table::markdown(&reports));
            if let Some(file) = svg {
                write(&file, plot::svg(&reports)?)?;
            }
        }
    }
    Ok(())
}

fn read(file: &PathBuf) -> Result<Report> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not a report", file.display()))
}

fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}

async fn load(to: SocketAddr, name: &str, health: Option<&Health>, plan: &Plan) -> Report {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let started = Instant::now();
    let sending = callers::run(to, plan, started, sender);
    let collecting = async {
        let (mut report, mut latest) = (Report::new(name, *plan), Second::default());
        let mut tick = interval_at(started + Duration::from_secs(1), Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                outcome = receiver.recv() => match outcome {
                    Some(outcome) => {
                        report.add(&outcome);
                        latest.add(&outcome);
                    }
                    None => return report,
                },
                _ = tick.tick() => {
                    let second = started.elapsed().as_secs() as u32;
                    let health = match health {
                        Some(health) => format!(" | {}", health.line().await),
                        None => String::new(),
                    };
                    println!("{second:3} s {:8} {}{health}", phase_name(plan, second), latest.line());
                    latest = Second::default();
                }
            }
        }
    };
    let ((), report) = tokio::join!(sending, collecting);
    report
}

/// The phase of the last second.
fn phase_name(plan: &Plan, second: u32) -> &'static str {
    match plan.phase(second.saturating_sub(1)) {
        _ if second > plan.seconds() => "waiting",
        Phase::Before => "before",
        Phase::Overload => "overload",
        Phase::After => "after",
    }
}
