//! The cost of each kind of request: guest fuel (WebAssembly instructions, as wasmtime counts them) and host calls.
//!
//! Both are counted, not measured, so the same filter costs the same on every machine. The recorded table is
//! `costs.txt`; a test compares it with the current filter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use scenarios::{Answer, Request};

use crate::secrets::{ADMIN_TOKEN, API_KEY};
use crate::{Setup, World};

/// How far fuel may differ from the recorded value, in percent.
///
/// The filter is built with rustup's or Debian's compiler. Because of their standard libraries and optimisers, the fuel
/// of a request differs by a few percent. Host calls do not depend on the compiler, and are compared exactly.
pub const FUEL_TOLERANCE_PERCENT: u64 = 10;

const CONFIGURATION: &str = r#""tiers": {
    "free": {"base": {"capacity": 2, "refill_rate": 1}},
    "pro": {"base": {"capacity": 1000, "refill_rate": 1}},
    "small": {"base": {"capacity": 1, "refill_rate": 0.001}},
    "open": {"unlimited": true}},
  "exempt_paths": ["/metrics"]"#;

/// The cost of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub fuel: u64,
    pub calls: BTreeMap<String, u64>,
}

impl World {
    /// The cost in a VM while `act` runs.
    pub fn cost(&mut self, vm: usize, act: impl FnOnce(&mut Self)) -> Cost {
        let before = (self.vms[vm].total_fuel, self.vms[vm].state().calls.clone());
        act(self);
        let grown = |(name, count): (&&'static str, &u64)| {
            let more = count - before.1.get(name).copied().unwrap_or_default();
            (more > 0).then(|| (name.trim_start_matches("proxy_").to_owned(), more))
        };
        let calls = self.vms[vm].state().calls.iter().filter_map(grown).collect();
        Cost { fuel: self.vms[vm].total_fuel - before.0, calls }
    }
}

const AUTO: &str = r#", "health": {"mode": "auto"}"#;

pub fn measure() -> Vec<(String, Cost)> {
    const UNTIMED: &str = r#", "health": {"mode": "auto"}, "headers": {"processing_time": false}"#;
    let keyed = || Request::get("/test").key(API_KEY);
    let small = Request::get("/test").key("c4nary-small");
    let unlimited = Request::get("/test").key("c4nary-open");
    let unknown = Request::get("/test").key("c4nary-unknown");
    let call = Request::post("/test", [0; 5]).key(API_KEY);
    // `headers alone` is a response without a body; after a request with a body it may be gRPC, whose status is read.
    // Measured health adds five host calls if no queue is in use: the cluster, its gauge twice, the status, and the
    // gauge once more. The end of a body adds one.
    let kinds = [
        ("", "admitted, known key", keyed(), "hello"),
        ("", "admitted, address", Request::get("/test"), "hello"),
        ("", "admitted, unknown key", unknown, "hello"),
        ("", "rejected, known key", small, "hello"),
        ("", "unlimited tier", unlimited, "hello"),
        ("", "exempt path", Request::get("/metrics"), "hello"),
        ("", "GET /health", Request::get("/health"), "hello"),
        ("", "POST /system/health, wrong token", wrong_token(), "hello"),
        (AUTO, "measured, known key", keyed(), "hello"),
        (AUTO, "measured, headers alone", keyed(), ""),
        (AUTO, "measured, body, headers alone", call, ""),
        (UNTIMED, "measured, untimed", keyed(), "hello"),
        (UNTIMED, "measured, untimed, headers alone", keyed(), ""),
    ];
    let rows = kinds.iter().flat_map(|(more, name, request, body)| one(more, name, request, body));
    let mut table: Vec<_> = rows.collect();
    table.push(("tick, nothing to report".to_owned(), ticks("", 2_050)));
    table.push(("measured: a second of ticks".to_owned(), ticks(AUTO, 20_050)));
    with_redis(&mut table);
    table
}

/// A setup with Envoy's default log level.
fn setup(more: &str) -> Setup {
    let configuration = format!(
        r#"{{{CONFIGURATION}, "api_keys": {{"{API_KEY}": {{"tier": "pro", "id": "pro"}},
            "c4nary-small": "small", "c4nary-open": "open"}}{more}}}"#
    );
    Setup { log_level: 2, ..Setup::new(configuration) }
}

/// Measures the second of two requests, and its response with this body.
fn one(more: &str, name: &str, request: &Request, body: &str) -> Vec<(String, Cost)> {
    let mut world = World::start(setup(more));
    world.upstream.answer = Answer::ok(body);
    world.get(0, request);
    world.upstream.waits = true;
    let mut id = 0;
    let cost = world.cost(0, |world| id = world.submit(0, request));
    let mut rows = vec![(format!("{name}: request"), cost)];
    if world.response(id).is_none() {
        let cost = world.cost(0, |world| world.upstream_answers(id));
        rows.push((format!("{name}: response"), cost));
    }
    rows
}

/// Measures a second without requests, this long after the start.
fn ticks(more: &str, after_ms: u64) -> Cost {
    let mut world = World::start(setup(more));
    world.advance_ms(after_ms);
    world.cost(0, |world| world.advance_ms(1_000))
}

fn wrong_token() -> Request {
    let token: String = ADMIN_TOKEN.chars().rev().collect();
    // How often shared data is read depends on the address.
    Request::post("/system/health", "").header("x-admin-token", token).from("192.0.2.1")
}

fn with_redis(table: &mut Vec<(String, Cost)>) {
    let store = r#", "store": {"kind": "redis", "cluster": "redis", "timeout_ms": 20}"#;
    let mut world = World::start(setup(store));
    let keyed = Request::get("/test").key(API_KEY);
    let small = Request::get("/test").key("c4nary-small");
    world.get(0, &keyed);
    world.get(0, &small);
    let mut row = |name: &str, cost: Cost| table.push((format!("Redis, {name}"), cost));
    let mut id = 0;
    world.upstream.waits = true;
    row("known key: request", world.cost(0, |world| id = world.begin(0, &keyed, true)));
    row("known key: command and reply", world.cost(0, World::settle));
    row("known key: response", world.cost(0, |world| world.upstream_answers(id)));
    world.upstream.waits = false;
    row("known key: bridge", world.cost(1, |world| _ = world.send(0, &keyed)));
    world.get(0, &small);
    row("known to be empty: request", world.cost(0, |world| _ = world.begin(0, &small, true)));
    world.upstream.waits = true;
    let many = world.cost(0, |world| {
        for _ in 0..32 {
            world.begin(0, &keyed, true);
        }
        world.settle();
    });
    row("known key: 32 at once", many);
}

pub fn recorded_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("costs.txt")
}

pub fn shown(table: &[(String, Cost)]) -> String {
    let mut text = String::from(
        "# Guest fuel and host calls of each kind of request, one request each. Recorded by\n\
         #   cargo run -p wasm-host -- costs --record\n\
         # and compared by `cargo test -p wasm-host costs`: host calls exactly, fuel within the tolerance that\n\
         # src/costs.rs defines. A commit with a new record explains the higher cost.\n",
    );
    for (name, Cost { fuel, calls }) in table {
        let mut calls: Vec<String> = calls.iter().map(|(call, count)| format!("{call} {count}")).collect();
        if calls.is_empty() {
            calls.push("none".to_owned());
        }
        let _ = writeln!(text, "{name:<42} {fuel:>8}  {}", calls.join(", "));
    }
    text
}

/// The differences from the recorded table, one string for each.
pub fn differences(table: &[(String, Cost)], recorded: &str) -> Vec<String> {
    let is_row = |line: &&str| !line.starts_with('#') && !line.is_empty();
    let rows: Vec<&str> = recorded.lines().filter(is_row).collect();
    let now = shown(table);
    let rows_now: Vec<&str> = now.lines().filter(is_row).collect();
    let mut found = Vec::new();
    if rows.len() != rows_now.len() {
        found.push(format!("{} kinds are recorded, {} are measured", rows.len(), rows_now.len()));
    }
    for (old, new) in rows.into_iter().zip(rows_now) {
        let is_same = split(old).zip(split(new)).is_some_and(|((name, fuel, calls), now)| {
            let is_near = fuel.abs_diff(now.1) * 100 <= fuel * FUEL_TOLERANCE_PERCENT;
            (name, calls) == (now.0, now.2) && is_near
        });
        if !is_same {
            found.push(format!("recorded  {old}\n     now  {new}"));
        }
    }
    found
}

/// Name, fuel and host calls of a row.
fn split(row: &str) -> Option<(&str, u64, &str)> {
    let (name, rest) = row.split_at_checked(42)?;
    let (fuel, calls) = rest.trim_start().split_once("  ")?;
    Some((name, fuel.parse().ok()?, calls))
}
