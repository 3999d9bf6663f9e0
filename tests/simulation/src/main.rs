//! `cargo xtask search simulation`: runs worlds one after the other until the time is over or a check fails.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use simulation::redis::Client;
use simulation::report::Totals;

/// In this number of worlds every event occurs.
const ENOUGH_WORLDS: u64 = 200;

/// Simulates several Envoys with one Redis under a virtual clock, with faults and an oracle
#[derive(Parser)]
struct Arguments {
    /// The time to run for
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The number of worlds to run instead
    #[arg(long, conflicts_with = "seconds")]
    worlds: Option<u64>,
    /// The seed of the run; by default a random one
    #[arg(long)]
    seed: Option<u64>,
    /// A model of Redis, or a redis-server (named by REDIS_SERVER) with the real script
    #[arg(long, value_enum, default_value = "model")]
    redis: Redis,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Redis {
    Model,
    Real,
}

fn main() -> ExitCode {
    match search(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            eprintln!("{report}");
            ExitCode::FAILURE
        }
    }
}

fn search(arguments: &Arguments) -> Result<(), String> {
    let is_real = arguments.redis == Redis::Real;
    let mut client = is_real.then(Client::start);
    let seed = arguments.seed.unwrap_or_else(simulation::random::new_seed);
    println!("seed {seed}");
    let started = Instant::now();
    let is_over = |worlds| match arguments.worlds {
        Some(wanted) => worlds == wanted,
        None => started.elapsed() >= Duration::from_secs(arguments.seconds),
    };
    let (mut totals, mut worlds, mut next_line) = (Totals::default(), 0, Duration::from_secs(10));
    while !is_over(worlds) {
        let world_seed = simulation::world_seed(seed, worlds);
        simulation::run(world_seed, &mut client, &mut totals).map_err(|found| {
            let real = if is_real { " --redis real" } else { "" };
            // Not `cargo xtask search`, which runs for a time and not for a number of worlds.
            format!(
                "{found}\nafter {worlds} worlds and {} operations, {:.1} s. To see it again:\n\
                 cargo run --profile search --package simulation -- --seed {world_seed} --worlds 1{real}",
                totals.operations,
                started.elapsed().as_secs_f64()
            )
        })?;
        worlds += 1;
        if started.elapsed() >= next_line {
            next_line += Duration::from_secs(10);
            eprintln!("{} s: {worlds} worlds, {} operations", started.elapsed().as_secs(), totals.operations);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let a_minute = totals.operations as f64 / seconds * 60.0;
    println!("{worlds} worlds, {} operations in {seconds:.1} s: {a_minute:.0} a minute", totals.operations);
    print!("{totals}");
    match totals.missing() {
        missing if missing.is_empty() || worlds < ENOUGH_WORLDS || is_real => Ok(()),
        missing => Err(format!("these events did not occur: {missing:?}")),
    }
}
