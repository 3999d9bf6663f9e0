//! TODO
use clap::Parser;
use overload::{judge::judge, scenario, world};
use std::time::Instant;

/// x
#[derive(Parser)]
struct Arguments {
    /// Only scenarios whose names contain this
    #[arg(default_value = "")]
    name: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    verbose: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let (mut runs, mut bad) = (0, 0);
    for scenario in scenario::all() {
        if !scenario.name.contains(&arguments.name) {
            continue;
        }
        let started = Instant::now();
        let story = world::run(&scenario, arguments.seed);
        let verdict = judge(&scenario, &story);
        runs += 1;
        bad += usize::from(!verdict.violations.is_empty());
        if arguments.verbose {
            for (index, bin) in story.bins.iter().enumerate().step_by(1) {
                println!(
                    "{:6.1} ph{} {:8} sev {:.3} calls {:?} sent {:5} good {:4} shed {:?} waiting {:5} gave up {:?}",
                    index as f64 / 2.0, bin.phase, bin.health.name(), bin.severity, bin.calls, bin.sent, bin.good, bin.shed, bin.waiting, bin.given_up
                );
            }
        }
        println!(
            "{:28} {} goodput {:?} ent {:?} trans {:?} recov {:?} {:.2}s {}",
            scenario.name,
            if verdict.violations.is_empty() { "ok " } else { "BAD" },
            verdict.goodput.map(|g| (g * 1000.0).round() / 1000.0), verdict.enterprise, story.transitions, verdict.recovery,
            started.elapsed().as_secs_f64(), verdict.violations.join("; ")
        );
    }
    println!("{bad} of {runs} bad");
}
