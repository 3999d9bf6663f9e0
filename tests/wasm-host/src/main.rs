//! The tools of this crate: what each kind of request costs, and fuzzing for as long as one likes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use wasm_host::{costs, fuzz};

const USAGE: &str = "cargo run -p wasm-host -- costs [--record]
cargo run --profile soak -p wasm-host -- fuzz [--seconds N | --inputs N] [--seed S] [--from INDEX]
cargo run --profile soak -p wasm-host -- replay FILE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["costs"] => print!("{}", costs::shown(&costs::measure())),
        ["costs", "--record"] => {
            let path = costs::recorded_path();
            std::fs::write(&path, costs::shown(&costs::measure())).expect("a place for the table");
            println!("recorded in {}", path.display());
        }
        ["fuzz", options @ ..] => return Options::read(options).map_or_else(usage, |options| fuzz(&options)),
        ["replay", file] => {
            let bytes = std::fs::read(file).expect("a file to replay");
            match fuzz::run_sequence(&bytes) {
                Ok(summary) => println!("{summary:#?}"),
                Err(text) => {
                    eprintln!("{text}");
                    return ExitCode::FAILURE;
                }
            }
        }
        _ => return usage(),
    }
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::FAILURE
}

struct Options {
    seconds: u64,
    inputs: u64,
    seed: u64,
    from: u64,
}

impl Options {
    fn read(words: &[&str]) -> Option<Self> {
        let mut options = Self { seconds: u64::MAX, inputs: u64::MAX, seed: 1, from: 0 };
        for pair in words.chunks(2) {
            let [name, value] = pair else { return None };
            let value = value.parse().ok()?;
            match *name {
                "--seconds" => options.seconds = value,
                "--inputs" => options.inputs = value,
                "--seed" => options.seed = value,
                "--from" => options.from = value,
                _ => return None,
            }
        }
        if options.seconds == u64::MAX && options.inputs == u64::MAX {
            options.seconds = 60;
        }
        Some(options)
    }
}

fn fuzz(options: &Options) -> ExitCode {
    let Options { seconds, inputs, seed, from } = *options;
    println!("seed {seed}, from input {from}");
    // What fails is shown once, and shorter.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let mut total = fuzz::Summary::default();
    let mut shown = Duration::ZERO;
    for index in (from..).take(usize::try_from(inputs).unwrap_or(usize::MAX)) {
        if start.elapsed().as_secs() >= seconds {
            break;
        }
        let bytes = fuzz::input(seed, index);
        match fuzz::run_sequence(&bytes) {
            Ok(summary) => total.add(summary),
            Err(_) => return report(seed, index, &bytes),
        }
        if start.elapsed() > shown + Duration::from_secs(10) {
            shown = start.elapsed();
            println!("{:>5} s: {} inputs, {} callbacks", shown.as_secs(), total.inputs, total.callbacks);
        }
    }
    println!("{total:#?}\nin {} s, no failure", start.elapsed().as_secs());
    ExitCode::SUCCESS
}

/// Makes the failing input shorter, keeps it, and says how to see it again.
fn report(seed: u64, index: u64, bytes: &[u8]) -> ExitCode {
    let short = fuzz::minimized(bytes);
    let text = fuzz::run_sequence(&short).err().unwrap_or_default();
    let path = fuzz::corpus_path().join(format!("failure-{seed}-{index}"));
    let _ = std::fs::create_dir_all(fuzz::corpus_path());
    std::fs::write(&path, &short).expect("a place for the input");
    eprintln!(
        "{text}\ninput {index} of seed {seed} fails; shortened from {} to {} bytes:",
        bytes.len(),
        short.len()
    );
    eprintln!("  cargo run -p wasm-host -- replay {}", path.display());
    eprintln!("  cargo run -p wasm-host -- fuzz --seed {seed} --from {index} --inputs 1");
    ExitCode::FAILURE
}
