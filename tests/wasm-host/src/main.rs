//! The tools of this crate: the cost of each kind of request, and fuzzing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser};
use wasm_host::{costs, fuzz};

/// The cost of the compiled filter, and fuzzing of it
#[derive(Parser)]
enum Verb {
    /// Print the cost of each kind of request
    Costs {
        /// Record it as expected
        #[arg(long)]
        record: bool,
    },
    /// Send random sequences of callbacks
    Fuzz(Options),
    /// Send the sequence in a file
    Replay { file: PathBuf },
}

#[derive(Args)]
struct Options {
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many sequences, instead of seconds
    #[arg(long)]
    inputs: Option<u64>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first sequence
    #[arg(long, default_value_t = 0)]
    from: u64,
}

fn main() -> ExitCode {
    match Verb::parse() {
        Verb::Costs { record: false } => print!("{}", costs::shown(&costs::measure())),
        Verb::Costs { record: true } => {
            let path = costs::recorded_path();
            std::fs::write(&path, costs::shown(&costs::measure())).expect("the table is writable");
            println!("recorded in {}", path.display());
        }
        Verb::Fuzz(options) => return fuzz(&options),
        Verb::Replay { file } => match fuzz::run_sequence(&std::fs::read(file).expect("a file to replay")) {
            Ok(summary) => println!("{summary:#?}"),
            Err(text) => {
                eprintln!("{text}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}

fn fuzz(options: &Options) -> ExitCode {
    let Options { seconds, inputs, seed, from } = *options;
    println!("seed {seed}, from input {from}");
    // A failure is printed once, after minimizing.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let mut total = fuzz::Summary::default();
    let mut shown = Duration::ZERO;
    for index in from.. {
        let is_over = match inputs {
            Some(inputs) => index - from >= inputs,
            None => start.elapsed().as_secs() >= seconds,
        };
        if is_over {
            break;
        }
        let bytes = fuzz::input(seed, index);
        match fuzz::run_sequence(&bytes) {
            Ok(summary) => total.add(&summary),
            Err(_) => return report(seed, index, &bytes),
        }
        if start.elapsed() > shown + Duration::from_secs(10) {
            shown = start.elapsed();
            println!("{:>5} s: {} inputs", shown.as_secs(), total.count("inputs"));
        }
    }
    println!("{total:#?}\nin {} s, no failure", start.elapsed().as_secs());
    ExitCode::SUCCESS
}

/// Minimizes the failing input, keeps it, and prints how to run it again.
fn report(seed: u64, index: u64, bytes: &[u8]) -> ExitCode {
    let short = fuzz::minimized(bytes);
    let text = fuzz::run_sequence(&short).err().unwrap_or_default();
    let path = fuzz::corpus_path().join(format!("failure-{seed}-{index}"));
    let _ = std::fs::create_dir_all(fuzz::corpus_path());
    std::fs::write(&path, &short).expect("the input is writable");
    eprintln!(
        "{text}\ninput {index} of seed {seed} fails; shortened from {} to {} bytes:",
        bytes.len(),
        short.len()
    );
    eprintln!("  cargo run -p wasm-host -- replay {}", path.display());
    eprintln!("  cargo run -p wasm-host -- fuzz --seed {seed} --from {index} --inputs 1");
    ExitCode::FAILURE
}
