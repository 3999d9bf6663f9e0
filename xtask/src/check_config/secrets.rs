//! Keys and tokens: hashing existing ones, and generating new ones. None is ever an argument, because arguments appear
//! in the shell's history and in the list of processes.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result, ensure};
use dynamic_rate_limiter::identity::{KeyHash, MAX_KEY_BYTES};
use inquire::{Password, PasswordDisplayMode};

/// 192 bits, which cannot be guessed.
const NEW_KEY_BYTES: usize = 24;

/// Prints the hash of each line of the standard input; a terminal gets a prompt, and does not show the input.
pub(super) fn hash_input() -> Result<()> {
    let input = io::stdin();
    if !input.is_terminal() {
        return hash_lines(input.lock(), &mut io::stdout());
    }
    loop {
        let prompt = Password::new("Key or token (not shown; an empty one ends):");
        let prompt = prompt.with_display_mode(PasswordDisplayMode::Hidden).without_confirmation();
        let line = prompt.prompt()?;
        if line.is_empty() {
            return Ok(());
        }
        hash_lines(line.as_bytes(), &mut io::stdout())?;
    }
}

/// Writes the hash of each line; an error contains the number of the line, and never its content.
pub(super) fn hash_lines(input: impl BufRead, output: &mut impl Write) -> Result<()> {
    for (number, line) in (1..).zip(input.split(b'\n')) {
        let line = line?;
        let key = line.strip_suffix(b"\r").unwrap_or(&line);
        let (length, most) = (key.len(), MAX_KEY_BYTES);
        ensure!((1..=most).contains(&length), "line {number}: found {length} bytes, wanted 1 to {most}");
        // Envoy removes spaces around a header's value, so such a key could never be sent.
        let is_trimmed = key.trim_ascii().len() == length;
        ensure!(is_trimmed, "line {number}: found a space at the start or the end, wanted none");
        writeln!(output, "{}", hash(key))?;
    }
    Ok(())
}

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
