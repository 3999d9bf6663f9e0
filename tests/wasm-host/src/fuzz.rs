//! Arbitrary bytes as a sequence of callbacks.
//!
//! A sequence drives two workers and a Redis: requests of any kind in any order, bodies and trailers that arrive late
//! or after the response, clients and upstreams that act at any time, ticks, stale and unknown queues and streams,
//! replies of Redis in arbitrary pieces, responses of the configuration cluster, valid, damaged and arbitrary
//! configurations, damaged shared data, clocks that step, and host calls that fail as Envoy's can.
//!
//! No callback may trap, exceed its fuel bound or the memory of a VM. Every request must get exactly one outcome, no
//! request may wait forever, and no secret may be shown.
//!
//! Excluded are events that Envoy cannot send and for which the SDK panics: a context id that was never created or is
//! deleted (Envoy calls through the context object, which is deleted then), a context created twice (`onCreate` records
//! it), and a response to an unknown HTTP call (Envoy first removes the call from its own list).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use harness::catch_panic;
use harness::random::Random;
use scenarios::Request;

use crate::failures::{self, ENVOY_FAILURES, Failure};
use crate::redis::Mode;
use crate::secrets::{ADMIN_TOKEN, API_KEY};
use crate::state::Aside;
use crate::{LIMITER, Setup, World};

const MAX_STEPS: usize = 300;

/// Counts over some sequences, by name; for names with `most`, the maximum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary(BTreeMap<&'static str, u64>);

impl Summary {
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn note(&mut self, name: &'static str, count: u64) {
        let sum = self.0.entry(name).or_default();
        *sum = if name.starts_with("most") { (*sum).max(count) } else { *sum + count };
    }

    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(name, count)| self.note(name, *count));
    }
}

/// The kept inputs, among them those that once failed.
pub fn corpus_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The `index`-th input of a seed: the same bytes on every machine.
pub fn input(seed: u64, index: u64) -> Vec<u8> {
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index);
    let length = 32 + random.below(256) * 4;
    (0..length).map(|_| random.next() as u8).collect()
}

/// Runs a sequence; the error is the failure.
pub fn run_sequence(bytes: &[u8]) -> Result<Summary, String> {
    catch_panic(|| run(bytes))
}

/// A shorter input that also fails: pieces are removed as long as it still fails.
pub fn minimized(bytes: &[u8]) -> Vec<u8> {
    let mut best = bytes.to_vec();
    let mut piece = best.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < best.len() {
            let mut shorter = best.clone();
            shorter.drain(at..(at + piece).min(shorter.len()));
            if run_sequence(&shorter).is_err() {
                best = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    best
}

/// Decodes an input; returns zeros at its end.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> usize {
        let Some((byte, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        usize::from(*byte)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.byte() % from.len()]
    }

    fn some(&mut self) -> &'a [u8] {
        let length = (self.byte() % 48).min(self.bytes.len());
        let (some, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        some
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte() as u8))
    }
}

fn configuration(kind: usize) -> String {
    let store = r#", "store": {"kind": "redis", "cluster": "redis", "timeout_ms": 20, "on_failure": "#;
    let more = match kind % 6 {
        0 => String::new(),
        1 => format!(r#"{store}"local"}}"#),
        2 => format!(r#"{store}"deny"}}, "headers": {{"ietf": true}}"#),
        3 => format!(r#"{store}"allow"}}, "exempt_paths": ["/metrics*"]"#),
        4 => r#", "config_source": {"cluster": "config_files", "tiers": "/t", "api_keys": "/k", "ttl_seconds": 1}"#.into(),
        _ => r#", "store": {"kind": "shared_data", "max_buckets": 1024}, "ipv6_prefix": 48"#.into(),
    };
    format!(
        r#"{{"tiers": {{"free": {{"base": {{"capacity": 2, "refill_rate": 1}}}},
             "pro": {{"base": {{"capacity": 4, "refill_rate": 0.5}}, "degraded": {{"capacity": 1, "refill_rate": 9}}}}}},
            "api_keys": {{"{API_KEY}": "pro"}}{more}}}"#
    )
}

fn run(bytes: &[u8]) -> Summary {
    let mut input = Reader { bytes };
    let first = configuration(input.byte());
    let mut world = World::boot(Setup { is_quiet: true, ..Setup::new(first).workers(2) });
    world.configure_all();
    let mut summary = Summary::default();
    summary.note("inputs", 1);
    summary.note("configured", 2);
    for _ in 0..MAX_STEPS {
        if input.bytes.is_empty() {
            break;
        }
        step(&mut world, &mut input, &mut summary);
    }
    finish(&mut world, &mut summary);
    summary
}

fn step(world: &mut World, input: &mut Reader<'_>, summary: &mut Summary) {
    let worker = input.byte() % 2;
    let vm = world.workers[worker].vm;
    let root = world.workers[worker].root;
    match input.byte() % 24 {
        0..=5 => request(world, input, worker),
        6 => on_some_request(world, input, |world, input, id| {
            let is_last = input.byte().is_multiple_of(2);
            world.body(id, input.some(), is_last);
        }),
        7 => on_some_request(world, input, |world, _, id| world.trailers(id)),
        8 => on_some_request(world, input, |world, _, id| world.answer_from_upstream(id)),
        9 => on_some_request(world, input, |world, _, id| world.disconnect(id)),
        10 | 11 => {
            world.advance_us(input.pick(&[0, 1, 1_000, 5_000, 20_000, 250_000, 1_000_000, 11_000_000]))
        }
        12 => {
            world.take_one_turn();
        }
        13 => world.settle(),
        14 => {
            let queue = input.pick(&[0, 1, 2, u32::MAX]);
            world.call(vm, "proxy_on_queue_ready", &[root, queue]);
        }
        15 => answer_http_call(world, input),
        16 => {
            let token = stale_token(world, input);
            let message = input.some().to_vec();
            let owner = world.vms[vm].state().grpc_streams.get(&token).copied();
            world.deliver_to_root(vm, owner.unwrap_or(root), token, message);
        }
        17 => {
            let (token, status) = (stale_token(world, input), input.pick(&[0, 2, 14, u32::MAX]));
            world.call(vm, "proxy_on_grpc_close", &[root, token, status]);
        }
        18 => redis(world, input),
        19 => configure(world, input, worker, summary),
        20 => script(world, input, worker),
        21 => damage_a_record(world, input),
        22 => {
            let process = &world.processes[0];
            match input.byte() % 4 {
                0 => world.clock.wall_ns.set(u64::from(input.number()) << (input.byte() % 33)),
                1 => process.log_level.set(input.pick(&[0, 1, 2, 3, 6])),
                2 => process.keeps_stats.set(!process.keeps_stats.get()),
                _ => {
                    let key = process.shared_records().first().map(|(key, _)| key.clone());
                    let value = input.some().to_vec();
                    world.vms[vm].state_mut().another_worker = key.map(|key| -> Aside {
                        Box::new(move |process| {
                            process.set_shared(LIMITER, &key, &value, 0);
                        })
                    });
                }
            }
        }
        _ => {
            world.redis.piece_bytes = input.pick(&[1, 2, 5, 17, usize::MAX]);
        }
    }
}

fn request(world: &mut World, input: &mut Reader<'_>, worker: usize) {
    let method = input.pick(&["GET", "POST", "OPTIONS", "HEAD", "CONNECT", ""]);
    let path =
        input.pick(&["/", "/health", "/system/health", "/system/health?a", "/metrics", "", "\u{fffd}"]);
    let source =
        input.pick(&["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:9", "[::ffff:1.2.3.4]:1", "", "x"]);
    let mut request = Request::new(method, path).from(source);
    match input.byte() % 8 {
        0..=3 => request = request.key(API_KEY),
        4 => request = request.key(input.some()),
        5 => request = request.from(&String::from_utf8_lossy(input.some())),
        6 => request = request.header("content-type", "application/grpc"),
        _ => {}
    }
    match input.byte() % 8 {
        0..=2 => request = request.header("x-admin-token", ADMIN_TOKEN),
        3 => request = request.header("x-admin-token", input.some()),
        4 => request = request.header("origin", "a").header("access-control-request-method", "GET"),
        5 => request.method = "CONNECT".to_owned(),
        6 => world.upstream.waits = true,
        _ => {}
    }
    let body = input.pick(&["", r#"{"status":"DEGRADED"}"#, r#"{"status":"NORMAL"}"#, "{"]);
    let id = world.begin(worker, &request, body.is_empty() && input.byte().is_multiple_of(2));
    world.upstream.waits = false;
    if !body.is_empty() {
        world.body(id, body.as_bytes(), input.byte().is_multiple_of(4));
    }
}

fn on_some_request(
    world: &mut World,
    input: &mut Reader<'_>,
    act: impl FnOnce(&mut World, &mut Reader<'_>, usize),
) {
    let count = world.exchanges.len();
    if count > 0 {
        let id = count - 1 - input.byte() % count.min(16);
        act(world, input, id);
    }
}

/// The token of a stream that is open, was open, or never existed.
fn stale_token(world: &World, input: &mut Reader<'_>) -> u32 {
    match input.byte() % 3 {
        0 => 4 + (input.byte() % 16) as u32,
        1 => world.vms[0].state().grpc_streams.keys().copied().last().unwrap_or_default(),
        _ => input.number(),
    }
}

fn answer_http_call(world: &mut World, input: &mut Reader<'_>) {
    if world.calls.is_empty() {
        let document = match input.byte() % 3 {
            0 => configuration(0).into_bytes(),
            1 => br#"{"pro": "free"}"#.to_vec(),
            _ => input.some().to_vec(),
        };
        world.documents.insert("/k".to_owned(), (200, document.clone()));
        world.documents.insert("/t".to_owned(), (input.pick(&[200, 200, 404]), document));
        return;
    }
    let index = input.byte() % world.calls.len();
    let answer = match input.byte() % 4 {
        0 => None,
        1 => Some((503, b"no".to_vec())),
        2 => Some((200, br#"{"other": {"tier": "pro", "id": "o"}}"#.to_vec())),
        _ => Some((200, input.some().to_vec())),
    };
    world.answer_call(index, answer);
}

fn redis(world: &mut World, input: &mut Reader<'_>) {
    let link = world.links.len().saturating_sub(1);
    match input.byte() % 8 {
        0 | 1 => world.redis_starts(),
        2 => world.redis.mode = Mode::Frozen,
        3 => world.redis.mode = Mode::Refuses,
        4 => world.redis_disconnects(),
        5 => {
            world.redis.model.error =
                input.pick(&[None, Some("LOADING x"), Some("NOSCRIPT x"), Some("OOM x")])
        }
        6 => {
            let replies: [&[u8]; 8] = [
                b"+OK\r\n",
                b"-ERR x\r\n",
                b"$-1\r\n",
                b":1\r\n",
                b"$3\r\nabc\r\n",
                b"$6\r\nNORMAL\r\n",
                b"*1\r\n",
                b"$",
            ];
            for _ in 0..input.byte() % 4 {
                world.redis_sends(link, input.pick(&replies));
            }
        }
        _ => world.redis_sends(link, input.some()),
    }
}

fn configure(world: &mut World, input: &mut Reader<'_>, worker: usize, summary: &mut Summary) {
    let mut bytes = configuration(input.byte()).into_bytes();
    match input.byte() % 4 {
        0 => bytes = input.some().to_vec(),
        1 => {
            for _ in 0..1 + input.byte() % 3 {
                let at = (input.byte() | input.byte() << 8) % bytes.len();
                bytes[at] = input.byte() as u8;
            }
        }
        _ => {}
    }
    let is_accepted = world.configure(worker, &bytes);
    summary.note(if is_accepted { "configured" } else { "refused" }, 1);
}

fn script(world: &mut World, input: &mut Reader<'_>, worker: usize) {
    let (call, statuses) = ENVOY_FAILURES[input.byte() % ENVOY_FAILURES.len()];
    let acts = failures::acts(call, statuses);
    if !acts.is_empty() {
        let act = input.pick(&acts);
        let (after, times) = (input.byte() as u32 % 8, input.pick(&[1, 2, 1_000]));
        world.vm(worker).script([Failure { call, after, times, act }]);
    }
}

fn damage_a_record(world: &mut World, input: &mut Reader<'_>) {
    let process = &world.processes[0];
    let records = process.shared_records();
    if !records.is_empty() {
        let (key, mut value) = records[input.byte() % records.len()].clone();
        match input.byte() % 3 {
            0 => value = input.some().to_vec(),
            1 => value.truncate(input.byte()),
            _ if !value.is_empty() => {
                let at = (input.byte() | input.byte() << 8) % value.len();
                value[at] = input.byte() as u8;
            }
            _ => {}
        }
        process.set_shared(LIMITER, &key, &value, 0);
    }
}

/// Ends all failures; then no request may wait. The world searches for secrets when it is dropped.
fn finish(world: &mut World, summary: &mut Summary) {
    for worker in 0..2 {
        summary.note("failed_calls", u64::from(world.vm(worker).has_failed_a_call()));
        world.vm(worker).script([]);
    }
    world.redis.model.error = None;
    world.redis_starts();
    world.advance_ms(12_000);
    assert!(world.undecided().is_empty(), "requests {:?} wait forever", world.undecided());
    summary.note("requests", world.exchanges.len() as u64);
    for id in (0..world.exchanges.len()).filter(|id| world.response(*id).is_some()) {
        let counted = if world.forwarded(id).is_some() { "forwarded" } else { "answered" };
        summary.note(counted, 1);
    }
    summary.note("connections", world.links.len() as u64);
    for vm in &mut world.vms {
        summary.note("callbacks", vm.callbacks);
        summary.note("most_fuel", vm.most_fuel);
        summary.note("most_memory_bytes", vm.memory_bytes() as u64);
    }
}
