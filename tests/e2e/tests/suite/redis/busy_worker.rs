//! A worker so busy that one turn of its event loop takes longer than a request may wait for Redis, or one of which
//! thousands of requests wait for Redis at the same moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::http2;
use e2e::load;
use e2e::redis::Redis;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

use super::{FALLBACKS, REQUESTS, await_counted, in_redis, total};
use crate::support::{ONE_PER_HOUR, tier};

/// Connections of each of the two threads that send.
const CONNECTIONS: usize = 250;

const REQUESTS_SENT: usize = 40_000;

/// HTTP/2 connections, streams on each at a time, and how often they are used.
const STREAMS: (usize, usize, usize) = (50, 100, 4);

/// Capacity of the caller that sends most of the requests.
const CAPACITY: u64 = 50;

/// At most so many requests in a thousand may be decided by `on_failure` while Redis is well.
const MAX_FALLBACKS_PER_THOUSAND: f64 = 1.0;

/// How long a request may wait where the configuration says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// Runs at most until there is one in which this machine let Redis run.
const ATTEMPTS: usize = 5;

fn start(policy: &str, redis: &Redis) -> Envoy {
    let config = json!({
        "tiers": {"small": tier(CAPACITY, ONE_PER_HOUR), "large": tier(1_000_000, ONE_PER_HOUR)},
        "api_keys": {"few": {"tier": "small", "id": "few"}, "many": {"tier": "large", "id": "many"}},
        "default_tier": "small",
    });
    let mut config = in_redis(config, 0, policy);
    config["store"].as_object_mut().expect("an object").remove("timeout_ms");
    Setup::new().config(&config).redis(redis.address()).workers(1).quiet().start()
}

/// One request in five asks for the large bucket, so that there is a question in every turn.
fn flood(envoy: &Envoy) -> load::Tally {
    let [few, many] = ["few", "many"].map(|key| Request::get("/").key(key).encode());
    let encode = |n: usize, bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(if n.is_multiple_of(5) { &many } else { &few });
    };
    load::flood(envoy.address(), CONNECTIONS, 0..REQUESTS_SENT, encode)
}

/// As [`flood`], but each connection sends all its streams at once, which wait for Redis together.
fn flood_of_streams(envoy: &Envoy) -> load::Tally {
    let (connections, streams, rounds) = STREAMS;
    let request = |n: usize| {
        let key = if n.is_multiple_of(5) { "many" } else { "few" };
        Request::get("/").header("x-api-key", key)
    };
    let requests: Vec<_> = (0..streams).map(request).collect();
    let mut tally = load::Tally::new();
    for _ in 0..rounds {
        let replies = thread::scope(|scope| {
            let running: Vec<_> = (0..connections)
                .map(|_| scope.spawn(|| http2::send_all(envoy.address(), &requests)))
                .collect();
            running.into_iter().flat_map(|thread| thread.join().expect("answers")).collect::<Vec<_>>()
        });
        for reply in replies {
            *tally.entry(reply.status).or_default() += 1;
        }
    }
    tally
}

/// Ends the threads beside a test when it ends, even by a panic.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work`; gives what it gave and the longest time that Redis took meanwhile to answer somebody else.
fn watching<T>(redis: &Redis, work: impl FnOnce() -> T) -> (T, Duration) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                redis.command(&["PING"]);
                slowest = slowest.max(asked.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            slowest
        });
        let end = EndOnDrop(&over);
        let done = work();
        drop(end);
        (done, watcher.join().expect("Redis answers"))
    })
}

/// Whether `on_failure` decided no more than it may of `sent` requests, one in five of them for the large bucket. Says
/// nothing where this machine kept Redis from running.
#[track_caller]
fn holds(policy: &str, sent: usize, flood: fn(&Envoy) -> load::Tally) -> Option<()> {
    let redis = Redis::start();
    let envoy = start(policy, &redis);
    let (tally, slowest) = watching(&redis, || flood(&envoy));
    await_counted(&envoy, sent);
    let fallbacks = total(&envoy, FALLBACKS);
    println!("{policy}: {tally:?}, {fallbacks} decided by on_failure, Redis took up to {slowest:?}");
    let most = total(&envoy, REQUESTS) * MAX_FALLBACKS_PER_THOUSAND / 1_000.0;
    if fallbacks > most && slowest >= DEFAULT_TIMEOUT {
        return None;
    }
    assert!(fallbacks <= most, "{policy}: {fallbacks} of {sent} decided by on_failure: {tally:?}");
    let admitted = (sent / 5) as u64 + CAPACITY;
    let surplus = load::count(&tally, 200).abs_diff(admitted) as f64;
    assert!(surplus <= fallbacks, "{policy}: {surplus} more or less than {admitted} admitted: {tally:?}");
    Some(())
}

#[test]
fn five_hundred_connections_on_one_worker_are_no_failure_of_redis() {
    let _alone = wait::alone();
    for policy in ["allow", "deny", "local"] {
        let held = (0..ATTEMPTS).find_map(|_| holds(policy, REQUESTS_SENT, flood));
        assert!(held.is_some(), "{policy}: in {ATTEMPTS} attempts this machine kept Redis from running");
    }
}

#[test]
fn five_thousand_requests_that_wait_on_one_worker_are_no_failure_of_redis() {
    let _alone = wait::alone();
    let (connections, streams, rounds) = STREAMS;
    for policy in ["allow", "deny"] {
        let sent = connections * streams * rounds;
        let held = (0..ATTEMPTS).find_map(|_| holds(policy, sent, flood_of_streams));
        assert!(held.is_some(), "{policy}: in {ATTEMPTS} attempts this machine kept Redis from running");
    }
}

#[test]
fn five_hundred_connections_and_a_busy_core_beside_them_are_no_failure_of_redis() {
    let _alone = wait::alone();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let _end = EndOnDrop(&over);
        let held = (0..ATTEMPTS).find_map(|_| holds("allow", REQUESTS_SENT, flood));
        assert!(held.is_some(), "in {ATTEMPTS} attempts this machine kept Redis from running");
    });
}
