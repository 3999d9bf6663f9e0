//! The tools of this crate: `costs` prints what each kind of request costs, or records it.

use std::process::ExitCode;

use wasm_host::costs;

const USAGE: &str = "cargo run -p wasm-host -- costs [--record]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["costs"] => print!("{}", costs::shown(&costs::measure())),
        ["costs", "--record"] => {
            let path = costs::recorded_path();
            std::fs::write(&path, costs::shown(&costs::measure())).expect("a place for the table");
            println!("recorded in {}", path.display());
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
