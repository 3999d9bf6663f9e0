//! The times in the headers are correct.

use std::thread::sleep;
use std::time::Duration;

use e2e::client::{Request, Response};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::wait::unix_now;
use serde_json::json;

use crate::support::{at_once, tier};

/// How late a response may be on a busy machine.
const SLACK_SECONDS: f64 = 0.9;

fn envoy_with(capacity: u64, refill_rate: f64) -> Envoy {
    Setup::new().config(&json!({"tiers": {"free": tier(capacity, refill_rate)}})).start()
}

/// Sends requests until the bucket is empty; returns the refusal.
fn drain(envoy: &Envoy) -> Response {
    let mut connection = envoy.connect();
    loop {
        let reply = connection.send(&Request::get("/"));
        if reply.status == 429 {
            return reply;
        }
        assert_eq!(reply.status, 200);
    }
}

#[test]
fn a_request_is_admitted_after_retry_after_and_not_earlier() {
    // Whole seconds between tokens, less than one, and a fraction to round up.
    at_once([(0.5, 2), (4.0, 1), (0.4, 3)], |(refill_rate, retry_after)| {
        let envoy = envoy_with(3, refill_rate);
        let refused = drain(&envoy);
        assert_eq!(refused.number("retry-after"), retry_after, "{refill_rate}/s");
        if refill_rate < 1.0 {
            assert_eq!(envoy.send(&Request::get("/")).status, 429, "{refill_rate}/s");
        }
        sleep(Duration::from_secs(retry_after));
        assert_eq!(envoy.send(&Request::get("/")).status, 200, "{refill_rate}/s");
    });
}

#[test]
fn reset_on_a_refusal_is_when_the_next_request_is_admitted() {
    let envoy = envoy_with(2, 0.4);
    let refused = drain(&envoy);
    let reset = refused.number("x-ratelimit-reset") as f64;
    let wait = reset - unix_now();
    assert!((0.0..=3.5).contains(&wait), "in {wait} s");
    sleep(Duration::from_secs_f64(wait));
    assert_eq!(envoy.send(&Request::get("/")).status, 200);
}

#[test]
fn reset_on_an_admission_is_when_the_bucket_is_full_again() {
    let envoy = envoy_with(10, 0.5);
    let mut connection = envoy.connect();
    for spent in 1..=3 {
        let before = unix_now();
        let reply = connection.send(&Request::get("/"));
        let reset = reply.number("x-ratelimit-reset") as f64;
        // `spent` tokens at two seconds each, less what the earlier ones have refilled.
        let full_in = f64::from(spent) * 2.0;
        let off = reset - (before + full_in);
        assert!((-SLACK_SECONDS..=1.0 + SLACK_SECONDS).contains(&off), "{off} s off");
    }
}

#[test]
fn a_bucket_refills_at_its_rate_and_no_further_than_its_capacity() {
    let envoy = envoy_with(3, 1.0);
    drain(&envoy);
    sleep(Duration::from_secs(5));
    let mut connection = envoy.connect();
    for remaining in [2, 1] {
        assert_eq!(connection.send(&Request::get("/")).remaining(), remaining);
    }
}
