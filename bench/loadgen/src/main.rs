//! The upstream, the load, and the comparison of reports as commands. `cargo xtask bench overload` and
//! `cargo xtask demo --overload` run them.

mod health;

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use health::Health;
use loadgen::plan::Plan;
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
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
        #[command(flatten)]
        shape: Shape,
    },
    /// Send more requests than can be served; print a line a second
    Load {
        /// The address to send to
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
        /// The reports
        #[arg(required = true)]
        reports: Vec<PathBuf>,
        /// Where to write a plot of them, as SVG
        #[arg(long)]
        svg: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Verb::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match verb {
        Verb::Upstream { listen, shape } => {
            let upstream = Upstream::start(shape, listen).map_err(|error| format!("{listen}: {error}"))?;
            println!("serving {:.0} requests a second at {}", shape.capacity(), upstream.address());
            runtime.block_on(tokio::signal::ctrl_c())?;
        }
        Verb::Load { to, name, health, report: file, plan } => {
            let health = health.map(|path| Health::new(to, &path));
            let report = runtime.block_on(load(to, &name, health.as_ref(), &plan));
            if let Some(file) = file {
                fs::write(&file, serde_json::to_vec(&report)?).map_err(|error| write_error(&file, &error))?;
            }
        }
        Verb::Table { reports, svg } => {
            let reports = reports.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            print!("{}", table::markdown(&reports));
            if let Some(file) = svg {
                fs::write(&file, plot::svg(&reports)).map_err(|error| write_error(&file, &error))?;
            }
        }
    }
    Ok(())
}

fn read(file: &PathBuf) -> Result<Report, Box<dyn Error>> {
    let shown = file.display();
    let bytes = fs::read(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    Ok(serde_json::from_slice(&bytes).map_err(|error| format!("{shown} is not a report: {error}"))?)
}

fn write_error(file: &std::path::Path, error: &std::io::Error) -> String {
    format!("cannot write {}: {error}", file.display())
}

/// Runs the plan and prints the outcomes of each second.
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
    if second > plan.seconds() { "waiting" } else { plan.phase(second.saturating_sub(1)).name() }
}
