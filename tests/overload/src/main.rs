//! `cargo xtask soak overload`: worlds, until all scenarios have been through, the time is over or something is wrong.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant, UNIX_EPOCH};

use clap::Parser;
use overload::judge::{Verdict, WANTED_GOODPUT, judge};
use overload::scenario::{Scenario, all, drawn, quick};
use overload::world::{BIN_US, Story, run, run_told};

/// An upstream, callers that try again, and the filter's own controller between them
#[derive(Parser)]
struct Arguments {
    /// Only scenarios whose names contain this
    #[arg(default_value = "")]
    name: String,
    /// A few scenarios, in which everything happens that can
    #[arg(long)]
    quick: bool,
    /// Scenarios that are drawn at random, for so long
    #[arg(long, conflicts_with_all = ["quick", "name"])]
    seconds: Option<u64>,
    /// Brings a run back; drawn where absent
    #[arg(long)]
    seed: Option<u64>,
    /// What happened in each half second
    #[arg(long)]
    verbose: bool,
    /// Which scenarios there are
    #[arg(long)]
    list: bool,
}

#[derive(Default)]
struct Tally {
    runs: u32,
    failed: u32,
    /// With less goodput than is wanted of what can be had.
    below: u32,
    found_out: Missed,
    told: Missed,
}

/// Runs of a limiter that find out what the upstream can do, or is told, in which something is missed.
#[derive(Default)]
struct Missed {
    goodput: u32,
    short: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        all().iter().for_each(|scenario| println!("{}", scenario.name));
        return ExitCode::SUCCESS;
    }
    let new_seed = || UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64 % 1_000_000_000_000);
    let seed = arguments.seed.unwrap_or_else(new_seed);
    println!("seed {seed}");
    let started = Instant::now();
    let mut tally = Tally::default();
    if let Some(seconds) = arguments.seconds {
        while tally.runs == 0 || started.elapsed() < Duration::from_secs(seconds) {
            let seed = seed.wrapping_add(tally.runs.into());
            tally.run(&drawn(seed), seed, "--seconds 1", arguments.verbose);
        }
    } else {
        let mut scenarios = if arguments.quick { quick() } else { all() };
        scenarios.retain(|scenario| scenario.name.contains(&arguments.name));
        for (index, scenario) in scenarios.iter().enumerate() {
            if std::io::stderr().is_terminal() {
                eprint!("\r[{}/{}] {:<40}\r", index + 1, scenarios.len(), scenario.name);
            }
            tally.run(scenario, seed, &scenario.name, arguments.verbose);
        }
    }
    tally.say(started.elapsed());
    if tally.failed > 0 || tally.runs == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Tally {
    fn run(&mut self, scenario: &Scenario, seed: u64, again: &str, is_verbose: bool) {
        let (story, told) = (run(scenario, seed), run_told(scenario, seed));
        let verdict = judge(scenario, &story, &told);
        if is_verbose {
            print_story(&story);
        }
        println!("{}", line(scenario, &story, &verdict));
        for violation in &verdict.violations {
            println!(
                "    {violation}\n    again: cargo xtask soak overload --seed {seed}, or overload {again} --verbose"
            );
        }
        self.runs += 1;
        self.failed += u32::from(!verdict.violations.is_empty());
        self.below += u32::from(verdict.had.is_some_and(|had| had < WANTED_GOODPUT));
        self.found_out.note(&verdict);
        self.told.note(&judge(scenario, &told, &told));
    }

    fn say(&self, elapsed: Duration) {
        let Self { runs, failed, below, found_out, told } = self;
        println!(
            "{runs} runs in {:.0} s: {failed} failed, {below} with a goodput under {WANTED_GOODPUT} of what can be had\n\
             under {WANTED_GOODPUT} of what the upstream can do: {}, and {} with a limiter that is told what that is\n\
             short elsewhere, with an upstream that is ill by itself: {}, and {} with a limiter that is told",
            elapsed.as_secs_f64(),
            found_out.goodput,
            told.goodput,
            found_out.short,
            told.short,
        );
    }
}

impl Missed {
    fn note(&mut self, verdict: &Verdict) {
        self.goodput += u32::from(verdict.goodput.is_some_and(|goodput| goodput < WANTED_GOODPUT));
        self.short += u32::from(!verdict.shortfalls.is_empty());
    }
}

fn line(scenario: &Scenario, story: &Story, verdict: &Verdict) -> String {
    let said = match (verdict.violations.as_slice(), verdict.shortfalls.as_slice()) {
        ([], []) => "holds".to_owned(),
        ([], shortfalls) => format!("short: {}", shortfalls.join("; ")),
        _ => "FAILS".to_owned(),
    };
    let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.3}"));
    let (calls, failed) = verdict.enterprise;
    format!(
        "{:<28} goodput {:>5}, {:>5} of what can be had, enterprise {failed:>3} of {calls:>5} failed, health changed at {:?}, back after {} s: {said}",
        scenario.name,
        number(verdict.goodput),
        number(verdict.had),
        story.transitions,
        number(verdict.recovery),
    )
}

fn print_story(story: &Story) {
    println!(
        "  time health   severity   calls   sent   good   shed (free, pro, enterprise)   waiting   limit"
    );
    for (index, bin) in story.bins.iter().enumerate() {
        println!(
            "{:6.1} {:8} {:8.3} {:>7} {:>6} {:>6}   {:>6} {:>6} {:>6} {:>19}   {:?}",
            index as f64 * BIN_US as f64 / 1e6,
            bin.health.name(),
            bin.severity,
            bin.calls.iter().sum::<u32>(),
            bin.sent,
            bin.good,
            bin.shed[0],
            bin.shed[1],
            bin.shed[2],
            bin.waiting,
            bin.controller,
        );
    }
}
