//! A busy worker: one turn of its event loop takes longer than the Redis timeout, or thousands of its requests wait for
//! Redis at the same time.

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

use super::{FALLBACKS, await_counted, in_redis, total};
use crate::support::{ONE_PER_HOUR, tier};

/// Connections of each of the two sending threads.
const CONNECTIONS: usize = 250;

const REQUESTS_SENT: usize = 40_000;

/// HTTP/2 connections, concurrent streams on each, and rounds.
const STREAMS: (usize, usize, usize) = (50, 100, 4);

/// Capacity of the caller that sends most of the requests.
const CAPACITY: u64 = 50;

/// How many requests in a thousand `on_failure` may decide while Redis is healthy.
const MAX_FALLBACKS_PER_THOUSAND: f64 = 1.0;

/// The default of `timeout_ms`.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(20);

/// How many runs there are at most until the machine does not stall Redis.
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

/// One request in five uses the large bucket, so that there is a command to Redis in every turn.
fn flood(envoy: &Envoy) -> load::StatusCounts {
    let [few, many] = ["few", "many"].map(|key| Request::get("/").key(key).encode());
    let encode = |n: usize, bytes: &mut Vec<u8>| {
        bytes.extend_from_slice(if n.is_multiple_of(5) { &many } else { &few });
    };
    load::flood(envoy.address(), CONNECTIONS, 0..REQUESTS_SENT, encode)
}

/// As [`flood`], but each connection sends all its streams at once; they wait for Redis together.
fn flood_of_streams(envoy: &Envoy) -> load::StatusCounts {
    let (connections, streams, rounds) = STREAMS;
    let request = |n: usize| {
        let key = if n.is_multiple_of(5) { "many" } else { "few" };
        Request::get("/").key(key)
    };
    let requests: Vec<_> = (0..streams).map(request).collect();
    let mut counts = load::StatusCounts::new();
    for _ in 0..rounds {
        for reply in http2::send_on_each(envoy.address(), connections, &requests, || ()) {
            *counts.entry(reply.status).or_default() += 1;
        }
    }
    counts
}

/// Runs `work`; returns its result and the longest latency of Redis for another client meanwhile.
fn watching<T>(redis: &Redis, work: impl FnOnce() -> T) -> (T, Duration) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let sent = Instant::now();
                redis.command(&["PING"]);
                slowest = slowest.max(sent.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            slowest
        });
        let end = load::SetOnDrop(&over);
        let done = work();
        drop(end);
        (done, watcher.join().expect("Redis answers"))
    })
}

/// Checks that `on_failure` decided at most the allowed part of the requests, one in five of them for the large bucket.
/// Tries again if the machine stalled Redis.
#[track_caller]
fn assert_no_redis_failure(policy: &str, flood: fn(&Envoy) -> load::StatusCounts) {
    for _ in 0..ATTEMPTS {
        let redis = Redis::start();
        let envoy = start(policy, &redis);
        let (counts, slowest) = watching(&redis, || flood(&envoy));
        let sent: u64 = counts.values().sum();
        await_counted(&envoy, sent as usize);
        let fallbacks = total(&envoy, FALLBACKS);
        println!("{policy}: {counts:?}, {fallbacks} decided by on_failure, Redis took up to {slowest:?}");
        let most = sent as f64 * MAX_FALLBACKS_PER_THOUSAND / 1_000.0;
        if fallbacks > most && slowest >= DEFAULT_TIMEOUT {
            continue;
        }
        assert!(fallbacks <= most, "{policy}: {fallbacks} of {sent} decided by on_failure: {counts:?}");
        let admitted = sent / 5 + CAPACITY;
        let surplus = load::count(&counts, 200).abs_diff(admitted) as f64;
        assert!(
            surplus <= fallbacks,
            "{policy}: {surplus} more or less than {admitted} admitted: {counts:?}"
        );
        return;
    }
    panic!("{policy}: in {ATTEMPTS} attempts the machine stalled Redis");
}

#[test]
fn five_hundred_connections_on_one_worker_cause_no_redis_failure() {
    let _alone = wait::alone();
    for policy in ["allow", "deny", "local"] {
        assert_no_redis_failure(policy, flood);
    }
}

#[test]
fn five_thousand_waiting_requests_on_one_worker_cause_no_redis_failure() {
    let _alone = wait::alone();
    for policy in ["allow", "deny"] {
        assert_no_redis_failure(policy, flood_of_streams);
    }
}

#[test]
fn five_hundred_connections_and_busy_cores_cause_no_redis_failure() {
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
        let _end = load::SetOnDrop(&over);
        assert_no_redis_failure("allow", flood);
    });
}
