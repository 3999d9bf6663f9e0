//! Buckets in a real Redis, which is killed, frozen, filled up and locked, and whose replies are changed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load::{self, Exchange};
use e2e::redis::Redis;
use e2e::setup::Setup;
use e2e::wait;
use scenarios::support::{A_SECOND as HEALTH_PROPAGATION, LONG_TIMEOUT_MS, RECOVERY, SLACK, in_redis};
use serde_json::{Map, Value, json};

use crate::support::{ONE_PER_HOUR, health, tier};

mod auth;
mod basics;
mod busy_worker;
mod cluster;
mod deny_cache;
mod faults;
mod health;
mod many_envoys;
mod measured;
mod outages;
mod shipped;
mod uploads;

/// An Envoy whose buckets are in the Redis with this address.
fn redis_setup(config: Value, timeout_ms: u64, on_failure: &str, redis: SocketAddr) -> Setup {
    Setup::new().config(&in_redis(config, timeout_ms, on_failure)).redis(redis)
}

/// An Envoy with a Redis timeout that a busy machine does not exceed.
fn long_timeout_setup(config: Value, redis: &Redis) -> Setup {
    redis_setup(config, LONG_TIMEOUT_MS, "local", redis.address()).quiet()
}

/// `clients` callers, each with a key, a tier and a capacity. The capacities are far apart; nothing refills.
fn clients(clients: usize) -> Value {
    let names = || (0..clients).map(|n| (format!("client-{n}"), n));
    let tiers: Map<String, Value> =
        names().map(|(name, n)| (name, tier(client_capacity(n), ONE_PER_HOUR))).collect();
    let keys: Map<String, Value> =
        names().map(|(name, _)| (name.clone(), json!({"tier": name, "id": name}))).collect();
    json!({"tiers": tiers, "api_keys": keys, "default_tier": "client-0"})
}

fn client_capacity(client: usize) -> u64 {
    (client as u64 + 1) * 100_000
}

fn client_request(client: usize) -> Request {
    Request::get("/").key(format!("client-{client}"))
}

/// The whole tokens in a bucket in Redis.
#[track_caller]
fn whole_tokens(redis: &Redis, caller: &str) -> u64 {
    let (tokens, _) = redis.bucket(&format!("rate_limit:{caller}")).expect("a bucket in Redis");
    let (whole, _) = tokens.split_once('.').expect("a decimal");
    whole.parse().expect("a number of tokens")
}

/// The response of `GET /health`.
#[track_caller]
fn health_report(envoy: &Envoy) -> Value {
    let reply = envoy.send(&Request::get("/health"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[track_caller]
fn await_redis(envoy: &Envoy, state: &str) {
    wait::until_within(RECOVERY, &format!("redis {state}"), || {
        (health_report(envoy)["redis"] == state).then_some(())
    });
}

/// Waits until decisions of these Envoys follow these healths, but not longer than a change may take.
#[track_caller]
fn await_healths<const N: usize>(envoys: [&Envoy; N], wanted: [&str; N]) {
    let read = || envoys.map(health_of_a_decision);
    wait::for_value(HEALTH_PROPAGATION + SLACK, &format!("{wanted:?}"), read, |last| *last == wanted);
}

/// Checks that no health changes for as long as a change may take.
#[track_caller]
fn assert_healths_stay<const N: usize>(envoys: [&Envoy; N], wanted: [&str; N]) {
    let began = Instant::now();
    while began.elapsed() < HEALTH_PROPAGATION + SLACK {
        assert_eq!(envoys.map(health_of_a_decision), wanted, "after {:?}", began.elapsed());
        assert_eq!(envoys.map(health), wanted, "after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
fn health_of_a_decision(envoy: &Envoy) -> String {
    envoy.send(&Request::get("/")).one("x-system-health")
}

/// The sum of a counter over its labels.
#[track_caller]
fn total(envoy: &Envoy, name: &str) -> f64 {
    envoy.scrape().named(name).iter().map(|sample| sample.value).sum()
}

const REQUESTS: &str = "rate_limiter_requests_total";
const FAILURES: &str = "rate_limiter_store_failures_total";
const FALLBACKS: &str = "rate_limiter_fallback_decisions_total";
const CONNECTED: &str = "rate_limiter_redis_connected";

/// Waits until this number of requests is counted; then everything before them is counted, too.
#[track_caller]
fn await_counted(envoy: &Envoy, requests: usize) {
    let what = format!("{requests} requests counted");
    wait::for_value(wait::SOON, &what, || total(envoy, REQUESTS), |last| *last == requests as f64);
}

/// Checks that every request was answered with one of these statuses.
#[track_caller]
fn assert_statuses(exchanges: &[Exchange], allowed: &[u16]) {
    let unexpected: Vec<_> = exchanges.iter().filter(|e| !allowed.contains(&e.status())).take(3).collect();
    assert!(unexpected.is_empty(), "{:?}: {unexpected:?}", load::count_by_status(exchanges));
}

/// Checks that Redis has decided all requests so far.
#[track_caller]
fn assert_no_failures(envoy: &Envoy) {
    let scrape = envoy.scrape();
    for name in [FAILURES, FALLBACKS] {
        let counted: Vec<_> = scrape.named(name).into_iter().filter(|sample| sample.value > 0.0).collect();
        assert!(counted.is_empty(), "{counted:?}");
    }
}
