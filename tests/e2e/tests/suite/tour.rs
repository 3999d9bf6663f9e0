//! The commands of `docs/tour.md` and of the README's console print what these documents show, except for times.

use std::path::Path;
use std::process::{Command, Stdio};

use e2e::envoy::Envoy;
use e2e::redis::Redis;

use crate::production::shipped;
use crate::troubleshooting::{code_lines, demo, with_addresses};

/// On a busy machine a few commands take long, and buckets must not refill meanwhile.
const TIMES_SLOWER: f64 = 5.0;

/// A command and its documented output, after [`normalized`].
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The steps in a document's `console` blocks. A command that ends with a backslash continues in the next line.
fn steps(document: &str, at_least: usize) -> Vec<Step> {
    let text = shipped(document).replace("\\\n", "");
    let mut steps: Vec<Step> = Vec::new();
    for line in code_lines(&text, "console") {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step { command: command.to_owned(), shown: Vec::new() }),
            None => steps.last_mut().expect("a command first").shown.push(normalized(line)),
        }
    }
    for step in &mut steps {
        // An empty line before a command is only for readability.
        while step.shown.last().is_some_and(String::is_empty) {
            step.shown.pop();
        }
    }
    assert!(steps.len() >= at_least, "found {} commands in {document}", steps.len());
    steps
}

fn run_all(steps: &[Step], mut redis: Option<Redis>, envoy: &Envoy, folder: &Path) {
    for step in steps {
        if let Some(redis) = &mut redis
            && step.command.contains("SHUTDOWN")
        {
            // The harness started it, and must know that it has stopped.
            redis.kill();
            continue;
        }
        let command = with_addresses(&step.command, envoy, redis.as_ref())
            .replace("sleep 1;", &format!("sleep {TIMES_SLOWER};"));
        let mut shell = Command::new("bash");
        let output = shell.args(["-c", &command]).current_dir(folder).stdin(Stdio::null()).output();
        let output = output.expect("bash");
        let printed: Vec<_> =
            String::from_utf8_lossy(&output.stdout).trim_end().lines().map(normalized).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(printed, step.shown, "$ {}\n{errors}", step.command);
    }
}

/// A line without values that differ between runs: times, fractions of a token, counts, how often a status repeats.
fn normalized(line: &str) -> String {
    let varying = ["date:", "x-envoy-upstream-service-time:", "retry-after:"];
    if let Some(name) = varying.into_iter().find(|name| line.starts_with(name)) {
        return name.to_owned();
    }
    if let Some((series, _)) = line.rsplit_once(' ').filter(|_| line.starts_with("rate_limiter_")) {
        return series.to_owned();
    }
    let mut statuses: Vec<_> = line.split_whitespace().collect();
    if statuses.len() > 1 && statuses.iter().all(|word| ["200", "429"].contains(word)) {
        statuses.dedup();
        return statuses.join(" ");
    }
    without_times(line)
}

/// Numbers with a fraction, and those of seven digits or more, are times or similar values.
fn without_times(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.trim_end();
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number_on) = rest.split_at(start);
        let end = number_on.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number_on.len());
        let (number, after) = number_on.split_at(end);
        text += before;
        text += if number.len() >= 7 || number.contains('.') { "<number>" } else { number };
        rest = after;
    }
    text + rest
}

#[test]
fn the_commands_of_the_tour_print_the_documented_output() {
    let redis = Redis::start();
    let (envoy, folder) = demo(Some(&redis), &[], &slower());
    run_all(&steps("docs/tour.md", 25), Some(redis), &envoy, &folder);
}

#[test]
fn the_commands_of_the_readme_print_the_documented_output() {
    let (envoy, folder) = demo(None, &[], &slower());
    run_all(&steps("README.md", 4), None, &envoy, &folder);
}

/// The shipped text of the tiers, with lower rates: commands of the tour search for its spelling.
fn slower() -> String {
    let text = shipped("config/tiers.json");
    let mut pieces = text.split("\"refill_rate\": ");
    let start = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(start, |text, piece| {
        let (rate, rest) = piece.split_once(' ').expect("a rate and more");
        let rate: f64 = rate.parse().expect("a rate");
        format!("{text}\"refill_rate\": {} {rest}", rate / TIMES_SLOWER)
    })
}

#[test]
fn only_values_that_differ_between_runs_are_ignored() {
    for (line, other) in [
        ("x-ratelimit-reset: 1795466752", "x-ratelimit-reset: 1795466753"),
        ("x-processing-time: 0.0009s", "x-processing-time: 0.0123s"),
        ("{\"timestamp\":1795466750.369}", "{\"timestamp\":1795466751.369}"),
        ("200 200 429 429", "200 429"),
        ("date: Mon", "date: Tue"),
    ] {
        assert_eq!(normalized(line), normalized(other));
    }
    for (line, other) in [
        ("x-ratelimit-limit: 10", "x-ratelimit-limit: 20"),
        ("HTTP/1.1 200 OK", "HTTP/1.1 429 Too Many Requests"),
        ("200 429", "200 429 200"),
        ("200", "429"),
        ("rate_limiter_requests_total{tier=\"pro\"} 3", "rate_limiter_requests_total{tier=\"free\"} 3"),
    ] {
        assert_ne!(normalized(line), normalized(other));
    }
}
