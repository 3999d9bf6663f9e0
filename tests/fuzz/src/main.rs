//! Runs libFuzzer on one target, or on all. `cargo xtask search fuzz` builds this with instrumentation.

use std::error::Error;
use std::ffi::{CString, c_char, c_int};
use std::process::Command;

use fuzz::targets::{self, Target};
use fuzz::{corpus, shipped};
use pico_args::Arguments;

/// Longest input that is made, in bytes: a little over the longest reply that the limiter reads.
const MAX_BYTES: usize = 6000;

const USAGE: &str = "usage: fuzz [--target NAME] [--inputs N | --seconds N] [--seed N] [--keep] [FILE…]
  Hands bytes from outside to the limiter's own functions, and says where a property does not hold.
  --inputs N   for each target, 100000 without it
  --seconds N  for all targets together
  --keep       adds the inputs that reach something new to the corpus
  FILE…        replays these inputs on the target instead";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = Arguments::from_env();
    if arguments.contains("--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let name: Option<String> = arguments.opt_value_from_str("--target")?;
    let seconds: Option<u64> = arguments.opt_value_from_str("--seconds")?;
    let inputs: Option<u64> = arguments.opt_value_from_str("--inputs")?;
    let seed: u32 =
        arguments.opt_value_from_fn("--seed", |seed| seed.parse().map(|seed: u64| seed as u32))?.unwrap_or(1);
    let keeps = arguments.contains("--keep");
    let files = arguments.finish();
    let Some(name) = name else {
        return each(seconds, inputs, seed, keeps);
    };
    let target = targets::named(&name).ok_or_else(|| format!("no target {name}\n{USAGE}"))?;
    if !files.is_empty() {
        files.iter().try_for_each(|file| std::fs::read(file).map(|input| (target.check)(&input)))?;
        println!("{name} holds for {} inputs", files.len());
        return Ok(());
    }
    let limit = match (seconds, inputs) {
        (Some(seconds), _) => format!("-max_total_time={seconds}"),
        (None, inputs) => format!("-runs={}", inputs.unwrap_or(100_000)),
    };
    search(target, &limit, seed, keeps)
}

/// Each target in a process of its own, since libFuzzer ends the one that it runs in.
fn each(seconds: Option<u64>, inputs: Option<u64>, seed: u32, keeps: bool) -> Result<(), Box<dyn Error>> {
    let mut failed = Vec::new();
    for target in targets::ALL {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--target", target.name, "--seed", &seed.to_string()]);
        let seconds = seconds.map(|seconds| ("--seconds", seconds.div_ceil(targets::ALL.len() as u64)));
        for (option, value) in seconds.into_iter().chain(inputs.map(|inputs| ("--inputs", inputs))) {
            command.arg(option).arg(value.to_string());
        }
        if !command.args(keeps.then_some("--keep")).status()?.success() {
            failed.push(target.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("found something: {}", failed.join(", ")).into()) }
}

fn search(target: Target, limit: &str, seed: u32, keeps: bool) -> Result<(), Box<dyn Error>> {
    let name = target.name;
    // The build's folder: findings and new inputs are not part of the sources.
    let folder = std::env::current_exe()?.with_file_name("fuzz-found").join(name);
    let made = folder.join("made");
    let _ = std::fs::remove_dir_all(&made);
    std::fs::create_dir_all(&made)?;
    shipped(target).map(|input| std::fs::write(made.join("shipped"), input)).transpose()?;
    let dictionary = folder.join("words");
    std::fs::write(&dictionary, words(target))?;
    let mut folders = corpus(target);
    folders.insert(if keeps { folders.len() } else { 0 }, made);
    println!(
        "{name}: a failure is repeated by\n  {} --target {name} FILE",
        std::env::current_exe()?.display()
    );
    let options = [
        limit.to_owned(),
        format!("-seed={seed}"),
        format!("-max_len={MAX_BYTES}"),
        format!("-dict={}", dictionary.display()),
        format!("-artifact_prefix={}/", folder.display()),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
    ];
    run(target, options.into_iter().chain(folders.iter().map(|path| path.display().to_string())))
}

/// A dictionary as libFuzzer reads it: every byte as hex.
fn words(target: Target) -> String {
    let hex = |byte: u8| format!("\\x{byte:02x}");
    let word = |word: &str| format!("\"{}\"\n", word.bytes().map(hex).collect::<String>());
    target.words.split('|').map(word).collect()
}

static TARGET: std::sync::OnceLock<Target> = std::sync::OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.check)(bytes);
    }
});

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        test: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

extern "C" fn test(bytes: *const u8, length: usize) -> c_int {
    // SAFETY: libFuzzer hands over an array of that length.
    unsafe { libfuzzer_sys::test_input_wrap(bytes, length) }
}

fn run(target: Target, options: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let _ = TARGET.set(target);
    let arguments = std::iter::once("fuzz".to_owned()).chain(options).map(CString::new);
    let arguments: Vec<CString> = arguments.collect::<Result<_, _>>()?;
    let mut pointers: Vec<*mut c_char> = arguments.iter().map(|text| text.as_ptr().cast_mut()).collect();
    let mut count = c_int::try_from(pointers.len())?;
    pointers.push(std::ptr::null_mut());
    let mut list = pointers.as_mut_ptr();
    libfuzzer_sys::initialize(std::ptr::null(), std::ptr::null());
    // SAFETY: the arguments are C strings that outlive the call, in a list that ends with null as `main`'s does.
    let status = unsafe { LLVMFuzzerRunDriver(&raw mut count, &raw mut list, test) };
    std::process::exit(status)
}
