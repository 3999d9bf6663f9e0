//! Keys and tokens: hashing existing ones, and generating new ones. None is ever an argument, because arguments appear
//! in the shell's history and in the list of processes.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dynamic_rate_limiter::identity::{KeyHash, MAX_KEY_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::process::interrupted;

/// 192 bits, which cannot be guessed.
const NEW_KEY_BYTES: usize = 24;

/// How often a prompt checks for Ctrl-C.
const POLL: Duration = Duration::from_millis(100);

/// Prints the hash of each line of the standard input; a terminal gets a prompt, and does not show the input.
pub(super) fn hash_input() -> Result<()> {
    let input = io::stdin();
    if !input.is_terminal() {
        return hash_lines(input.lock(), &mut io::stdout());
    }
    let _echo = NoEcho::begin()?;
    loop {
        eprint!("Key or token (not shown; an empty one ends): ");
        let line = typed_line()?;
        eprintln!();
        if line.trim_ascii_end().is_empty() {
            return Ok(());
        }
        hash_lines(line.as_slice(), &mut io::stdout())?;
    }
}

/// Writes the hash of each line; an error contains the number of the line, and never its content.
pub(super) fn hash_lines(input: impl BufRead, output: &mut impl Write) -> Result<()> {
    for (number, line) in (1..).zip(input.split(b'\n')) {
        let line = line?;
        let key = line.strip_suffix(b"\r").unwrap_or(&line);
        let length = key.len();
        ensure!(
            (1..=MAX_KEY_BYTES).contains(&length),
            "line {number}: found {length} bytes, wanted 1 to {MAX_KEY_BYTES}"
        );
        // Envoy removes spaces around a header's value, so such a key could never be sent.
        ensure!(
            key.trim_ascii().len() == length,
            "line {number}: found a space at the start or the end, wanted none"
        );
        writeln!(output, "{}", hash(key))?;
    }
    Ok(())
}

/// Prints new keys, each with its hash.
pub(super) fn generate(count: u16) -> Result<()> {
    eprintln!(
        "Each line: a key for the caller, and its hash for api_keys.json, as \"sha256:…\": {{\"tier\": \"…\", \"id\": \"…\"}}"
    );
    for _ in 0..count {
        let key = new_key()?;
        println!("{key}  {}", hash(key.as_bytes()));
    }
    Ok(())
}

/// A new random key, of characters that need no quotes.
pub(super) fn new_key() -> Result<String> {
    let mut bytes = [0; NEW_KEY_BYTES];
    getrandom::fill(&mut bytes).context("the system has no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The hash of a key for a key document; `admin.token_sha256` has only the digits.
fn hash(key: &[u8]) -> String {
    format!("sha256:{}", KeyHash::of(key).to_hex())
}

/// The terminal does not show the input until this is dropped.
struct NoEcho {
    before: Termios,
}

impl NoEcho {
    fn begin() -> Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut no_echo = before.clone();
        no_echo.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &no_echo)?;
        Ok(Self { before })
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// A line from the terminal. Checks for Ctrl-C meanwhile, so that the terminal's echo is restored.
fn typed_line() -> Result<Vec<u8>> {
    let input = io::stdin();
    let pause = Timespec::try_from(POLL)?;
    loop {
        ensure!(!interrupted(), "interrupted");
        let mut waiting = [PollFd::new(&input, PollFlags::IN)];
        // An interruption by a signal is no error: the loop checks again.
        if poll(&mut waiting, Some(&pause)).is_ok_and(|ready| ready > 0) {
            let mut line = Vec::new();
            input.lock().read_until(b'\n', &mut line)?;
            return Ok(line);
        }
    }
}
