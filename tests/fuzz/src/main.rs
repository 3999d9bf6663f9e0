//! `cargo run --profile soak --package fuzz`: searches, or replays the inputs in files.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fuzz::search::{Found, Until, checked, minimised, search};
use fuzz::targets::{self, Target};
use fuzz::{corpus, coverage};

/// Hands bytes from outside to the limiter's own functions, and says where a property does not hold.
#[derive(Parser)]
struct Options {
    /// What to look at; without it, all of them in turn
    #[arg(long)]
    target: Option<String>,
    /// How many inputs for each target
    #[arg(long, conflicts_with = "seconds", default_value_t = 100_000)]
    inputs: u64,
    /// How long, for all targets together
    #[arg(long)]
    seconds: Option<u64>,
    /// Where the search starts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Add the few inputs that together reach most to the corpus; needs a build that counts
    #[arg(long)]
    keep: bool,
    /// Inputs to replay instead; needs --target
    #[arg(requires = "target")]
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let targets: Vec<Target> = match &options.target {
        None => targets::ALL.to_vec(),
        Some(name) => match targets::named(name) {
            Some(target) => vec![target],
            None => {
                let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
                eprintln!("error: found the target {name:?}, wanted one of {}", names.join(", "));
                return ExitCode::FAILURE;
            }
        },
    };
    for path in &options.files {
        if let Err(error) = replay(targets[0], path) {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    }
    if !options.files.is_empty() {
        return ExitCode::SUCCESS;
    }
    if options.keep && !coverage::is_counted() {
        eprintln!("error: this build does not count what inputs reach; src/coverage.rs says how to make one");
        return ExitCode::FAILURE;
    }
    let until = match options.seconds {
        Some(seconds) => Until::Time(Duration::from_secs(seconds) / targets.len() as u32),
        None => Until::Inputs(options.inputs),
    };
    let mut is_fine = true;
    for target in targets {
        let name = target.name;
        match search(target, options.seed, until) {
            Ok(searched) => {
                println!("{name}: {} inputs{}", searched.inputs, reached(searched.reached));
                if options.keep {
                    keep(target, searched.pool);
                }
            }
            Err(found) => {
                is_fine = false;
                report(target, options.seed, &found);
            }
        }
    }
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn reached(counts: usize) -> String {
    if coverage::is_counted() { format!(", {counts} counts reached") } else { String::new() }
}

fn replay(target: Target, path: &PathBuf) -> Result<(), String> {
    let input = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    checked(target, &input, 0).map_err(|found| format!("{}: {}", path.display(), found.message))?;
    println!("{}: holds", path.display());
    Ok(())
}

fn report(target: Target, seed: u64, found: &Found) {
    let (name, Found { input, message, number }) = (target.name, found);
    let path = write(target, input);
    eprintln!("{name}: seed {seed}, input {number}: {message}");
    eprintln!("{}", input.escape_ascii());
    eprintln!(
        "to repeat it, run\n  cargo run --profile soak --package fuzz -- --target {name} {}",
        path.display()
    );
}

/// Writes the few inputs that together reach most.
fn keep(target: Target, pool: Vec<Vec<u8>>) {
    let inputs = minimised(target, pool);
    println!("{}: {} inputs kept", target.name, inputs.len());
    for input in inputs {
        write(target, &input);
    }
}

/// Writes an input to the corpus, under a name that follows from its bytes.
fn write(target: Target, input: &[u8]) -> PathBuf {
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = corpus::folder(target).join(format!("{hash:016x}"));
    std::fs::write(&path, input).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}
