//! `docs/tour.md` typed again: what is printed is what the document shows, but for times.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::envoy::Envoy;
use e2e::redis::Redis;

use crate::shipped::repository_root;
use crate::troubleshooting::demo_with_redis;

/// A machine that is so slow that a bucket refills between two lines gets another try.
const TRIES: usize = 3;

/// What is typed, and what is then shown.
struct Step {
    command: String,
    shown: Vec<String>,
}

fn steps() -> Vec<Step> {
    let text = fs::read_to_string(repository_root().join("docs/tour.md")).expect("the tour");
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (line, line.strip_prefix("$ ")) {
            ("```console", _) => inside = true,
            ("```", _) => inside = false,
            (_, Some(command)) if inside => {
                steps.push(Step { command: command.to_owned(), shown: Vec::new() });
            }
            _ if inside => steps.last_mut().expect("a command first").shown.push(line.to_owned()),
            _ => {}
        }
    }
    assert!(steps.len() > 20, "found {} commands", steps.len());
    steps
}

/// Types all of it; gives what was printed otherwise than shown.
fn type_all(redis: &mut Redis, envoy: &Envoy, folder: &Path) -> Result<(), String> {
    for step in steps() {
        if step.command.contains("SHUTDOWN") {
            // The harness started it, and has to know that it is gone.
            redis.kill();
            continue;
        }
        let command = step
            .command
            .replace("localhost:8000", &envoy.address().to_string())
            .replace("127.0.0.1:9901", &envoy.admin_address().to_string())
            .replace("redis-cli", &format!("redis-cli -p {}", redis.address().port()));
        let mut shell = Command::new("bash");
        let output = shell.args(["-c", &command]).current_dir(folder).stdin(Stdio::null()).output();
        let output = output.expect("bash");
        let printed: Vec<_> = String::from_utf8_lossy(&output.stdout).trim_end().lines().map(shape).collect();
        let shown: Vec<_> = step.shown.iter().map(|line| shape(line)).collect();
        if printed != shown {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("$ {}\nprinted {printed:#?}\nshown {shown:#?}\n{errors}", step.command));
        }
    }
    Ok(())
}

/// A line without what differs from run to run: times, fractions of a token, counts, how often a status repeats.
fn shape(line: &str) -> String {
    let volatile = ["date:", "x-envoy-upstream-service-time:"];
    if let Some(name) = volatile.into_iter().find(|name| line.starts_with(name)) {
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

/// Numbers with a fraction, and those of seven digits or more, are times or close to it.
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
fn the_tour_prints_what_it_shows() {
    let mut failures = Vec::new();
    for _ in 0..TRIES {
        let mut redis = Redis::start();
        let (envoy, folder) = demo_with_redis(&redis, &[]);
        match type_all(&mut redis, &envoy, &folder) {
            Ok(()) => return,
            Err(failure) => failures.push(failure),
        }
    }
    panic!("in each of {TRIES} tries:\n{}", failures.join("\n\n"));
}

#[test]
fn only_what_differs_from_run_to_run_is_left_out_of_a_comparison() {
    for (line, other) in [
        ("x-ratelimit-reset: 1795466752", "x-ratelimit-reset: 1795466753"),
        ("x-processing-time: 0.0009s", "x-processing-time: 0.0123s"),
        ("{\"timestamp\":1795466750.369}", "{\"timestamp\":1795466751.369}"),
        ("200 200 429 429", "200 429"),
        ("date: Mon", "date: Tue"),
    ] {
        assert_eq!(shape(line), shape(other));
    }
    for (line, other) in [
        ("x-ratelimit-limit: 10", "x-ratelimit-limit: 20"),
        ("HTTP/1.1 200 OK", "HTTP/1.1 429 Too Many Requests"),
        ("200 429", "200 429 200"),
        ("200", "429"),
        ("rate_limiter_requests_total{tier=\"pro\"} 3", "rate_limiter_requests_total{tier=\"free\"} 3"),
    ] {
        assert_ne!(shape(line), shape(other));
    }
}
