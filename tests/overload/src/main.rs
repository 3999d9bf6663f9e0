//! `cargo xtask search overload`: runs worlds for a given time. The table applies to all runs of a scenario together;
//! few single runs may miss it by far.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use overload::gradient::Gradient;
use overload::judge::{Check, Found, beside, judge};
use overload::protection::{Protection, Unprotected};
use overload::scenario::{KNOWN, Scenario, all, random, short};
use overload::workers::Workers;
use overload::world::{BIN_US, Run, run, workers};

/// Simulates upstreams that can be overloaded, callers, and the filter's overload control
#[derive(Parser)]
struct Arguments {
    /// Only scenarios whose names contain this
    #[arg(default_value = "")]
    name: String,
    /// Only the scenarios of every test run
    #[arg(long)]
    short: bool,
    /// Run one seed after the other for this time
    #[arg(long)]
    seconds: Option<u64>,
    /// The number of seeds, without --seconds
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first seed; by default a random one
    #[arg(long)]
    seed: Option<u64>,
    /// The protection between callers and upstream
    #[arg(long, default_value = "ours")]
    protection: Kind,
    /// Print the result of every row, not only of those that do not hold
    #[arg(long)]
    table: bool,
    /// Print the state at each half second
    #[arg(long)]
    verbose: bool,
    /// Print the names of all scenarios
    #[arg(long)]
    list: bool,
}

/// The share of runs that may be far off: random service times sometimes mislead the control.
const FAR_OFF: f64 = 0.01;

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Ours,
    AdaptiveConcurrency,
    None,
}

#[derive(Default)]
struct Sweep {
    runs: u32,
    /// Runs that are far off, and those that only miss a row.
    failed: u32,
    missed: u32,
    /// The checks of all runs of each scenario together.
    sums: BTreeMap<String, Vec<Check>>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        all().iter().for_each(|scenario| println!("{}", scenario.name));
        return ExitCode::SUCCESS;
    }
    let first = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let (started, mut sweep) = (Instant::now(), Sweep::default());
    let is_late =
        || arguments.seconds.is_some_and(|seconds| started.elapsed() > Duration::from_secs(seconds));
    let end = if arguments.seconds.is_some() { u64::MAX } else { first + arguments.seeds };
    for seed in first..end {
        let mut scenarios = if arguments.short { short() } else { all() };
        if !arguments.short {
            scenarios.push(random(seed));
        }
        scenarios.retain(|scenario| scenario.name.contains(&arguments.name));
        for scenario in &scenarios {
            sweep.run(scenario, seed, &arguments);
            if seed > first && is_late() {
                break;
            }
        }
        if is_late() {
            break;
        }
    }
    let missed = sweep.print(arguments.table);
    println!(
        "{} runs in {:.0} s from seed {first}: {} are far off, {} more miss a row; {missed} rows do not hold in all runs \
         together",
        sweep.runs,
        started.elapsed().as_secs_f64(),
        sweep.failed,
        sweep.missed
    );
    let far_off = Found::Misses { missed: sweep.failed, of: sweep.runs, allowed: FAR_OFF };
    let holds = sweep.runs > 0 && far_off.holds() && missed == 0;
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Sweep {
    fn run(&mut self, scenario: &Scenario, seed: u64, arguments: &Arguments) {
        let protection = || protection(arguments.protection, scenario, seed);
        let ours = run(scenario, seed, protection().as_mut());
        let mut checks = judge(scenario, &ours, seed, &protection);
        if arguments.protection == Kind::Ours && scenario.is_compared() {
            let gradient = run(scenario, seed, &mut Gradient::new(seed));
            checks.push(beside(&scenario.clusters[0], &ours, &gradient));
        }
        if arguments.verbose {
            print(&ours);
        }
        let failed: Vec<&Check> = checks.iter().filter(|check| !holds(&scenario.name, check)).collect();
        if !failed.is_empty() {
            let is_far_off = failed.iter().any(|check| check.found.is_far_off());
            *(if is_far_off { &mut self.failed } else { &mut self.missed }) += 1;
            let label = if is_far_off { "FAR OFF" } else { "misses" };
            let name = &scenario.name;
            let workers = workers(scenario, seed);
            println!("{label}: {name}, {workers} workers: again with overload {name} --seed {seed}");
            failed.iter().for_each(|check| println!("    {check}"));
        }
        self.runs += 1;
        match self.sums.get_mut(&scenario.name) {
            Some(sums) if sums.len() == checks.len() => {
                sums.iter_mut().zip(&checks).for_each(|(sum, check)| sum.found.add(check.found));
            }
            Some(_) => {}
            None => _ = self.sums.insert(scenario.name.clone(), checks),
        }
    }

    /// Returns the number of rows that do not hold.
    fn print(&self, all: bool) -> usize {
        let mut missed = 0;
        for (name, sums) in &self.sums {
            for check in sums.iter().map(over_all_runs) {
                missed += usize::from(!holds(name, &check));
                let label = match (check.found.holds(), holds(name, &check)) {
                    (true, _) => "      ",
                    (false, true) => "known ",
                    (false, false) => "MISSED",
                };
                if all || !check.found.holds() {
                    println!("{label} {name}, {check}");
                }
            }
        }
        missed
    }
}

/// A row of all runs together. A condition of a whole run may fail in as many runs as may be far off.
fn over_all_runs(sum: &Check) -> Check {
    let mut check = sum.clone();
    if let Found::Misses { allowed, .. } = &mut check.found {
        *allowed = if *allowed > 0.0 { *allowed } else { FAR_OFF };
    }
    check
}

/// Whether a row holds, or is in [`KNOWN`].
fn holds(scenario: &str, check: &Check) -> bool {
    let is_known = |(of, row, _): &(&str, &str, &str)| scenario.contains(of) && check.row.contains(row);
    check.found.holds() || KNOWN.iter().any(is_known)
}

fn protection(kind: Kind, scenario: &Scenario, seed: u64) -> Box<dyn Protection> {
    match kind {
        Kind::Ours => Box::new(Workers::new(workers(scenario, seed), scenario.has_gauges)),
        Kind::AdaptiveConcurrency => Box::new(Gradient::new(seed)),
        Kind::None => Box::new(Unprotected::default()),
    }
}

fn print(run: &Run) {
    println!("cluster  time   served/s   upstream's queue   limit");
    for (cluster, bins) in run.bins.iter().enumerate() {
        for (index, bin) in bins.iter().enumerate() {
            let seconds = index as f64 * BIN_US as f64 / 1e6;
            let served = bin.useful * 1e6 / BIN_US as f64;
            println!("{cluster:7} {seconds:5.1} {served:10.1} {:18} {:7.1}", bin.queue, bin.limit);
        }
    }
}
