//! The deny cache: after a refusal by Redis, the worker itself refuses the caller until its next token is due, and
//! queries Redis again once a second.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load;
use e2e::redis::Redis;
use e2e::wait::{self, unix_now};
use serde_json::json;

use super::long_timeout_setup;
use crate::support::{ONE_PER_HOUR, assert_headers_complete, tier, two_tiers};

fn request() -> Request {
    Request::get("/").key("pro")
}

/// Empties the caller's bucket, and sends on enough connections that every worker has refused the caller.
#[track_caller]
fn empty_on_every_worker(envoy: &Envoy) {
    while envoy.send(&request()).status == 200 {}
    let refused = load::burst(envoy.address(), 12, 4, &request());
    assert_eq!(load::count(&refused, 429), 48, "{refused:?}");
}

/// Checks that the caller is admitted on each of several new connections.
#[track_caller]
fn assert_admitted_on_every_worker(envoy: &Envoy, why: &str) {
    let admitted = load::burst(envoy.address(), 12, 2, &request());
    assert_eq!(load::count(&admitted, 200), 24, "{why}: {admitted:?}");
}

#[test]
fn a_flood_of_an_empty_caller_queries_redis_once_a_second_per_worker() {
    let _alone = wait::alone();
    let (redis, workers) = (Redis::start(), 2);
    let envoy = long_timeout_setup(two_tiers(5, 1), &redis).workers(workers).start();
    assert_eq!(envoy.send(&request()).status, 200);
    empty_on_every_worker(&envoy);
    let scripts = || redis.calls("evalsha") + redis.calls("eval");
    let (before, began) = (scripts(), Instant::now());
    let ((), counts) = load::during(envoy.address(), 8, Duration::ZERO, &request(), || {
        std::thread::sleep(Duration::from_secs(4));
    });
    // A part of a second at either end may add one query.
    let most = (began.elapsed().as_secs() + 2) * u64::from(workers);
    let queries = scripts() - before;
    let refused = load::count(&counts, 429);
    assert_eq!(counts.len(), 1, "all are refused: {counts:?}");
    assert!(refused > 1_000, "{counts:?}");
    assert!(queries <= most, "{queries} queries for {refused} refusals, {most} at most");
    assert!(queries >= 3, "{queries} queries: at least one a second");
}

#[test]
fn retry_after_is_correct_until_the_next_token() {
    let redis = Redis::start();
    let rate = 0.2;
    let config = json!({"tiers": {"free": tier(1, 1.0), "pro": tier(1, rate)}, "api_keys": {"pro": {"tier": "pro", "id": "pro"}}});
    let envoy = long_timeout_setup(config, &redis).start();
    assert_eq!(envoy.send(&request()).status, 200);
    let (_, taken_at) = redis.bucket("rate_limit:pro").expect("a bucket");
    let due = taken_at.parse::<f64>().expect("a time") + 1.0 / rate;
    let mut connections: Vec<_> = (0..6).map(|_| envoy.connect()).collect();
    let mut sent = Vec::new();
    loop {
        for connection in &mut connections {
            let before = unix_now();
            let reply = connection.send(&request());
            let after = unix_now();
            if reply.status == 200 {
                assert!(after >= due - 0.01, "admitted {} s early", due - after);
                assert!(before <= due + 2.0, "admitted {} s late", before - due);
                // Each value was correct when sent; at the turn of a second, workers may differ.
                let seen: BTreeSet<_> = sent.iter().collect();
                assert!(seen.len() >= 4, "Retry-After fell: {sent:?}");
                return;
            }
            assert_headers_complete(&reply, "pro", 1, "NORMAL");
            let retry_after = reply.number("retry-after");
            let wait = (due - after - 0.02, due - before + 0.02);
            let fits = (wait.0.ceil().max(1.0), wait.1.ceil().max(1.0));
            assert!(
                (fits.0..=fits.1).contains(&(retry_after as f64)),
                "sent {retry_after} s, {:.3} s remained",
                wait.1
            );
            let reset = reply.number("x-ratelimit-reset") as f64;
            assert!((due - 0.02..=due + 1.02).contains(&reset), "reset {reset}, due {due}");
            sent.push(retry_after);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn a_reloaded_document_clears_the_deny_cache_at_once() {
    let redis = Redis::start();
    let mut config = two_tiers(1_000, 1);
    config["config_source"] = json!({"cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 1});
    let documents = config["tiers"].to_string();
    let envoy = long_timeout_setup(config, &redis).config_files(&documents, "{}").start();
    envoy.await_metric("rate_limiter_config_reloads_total", &[("result", "applied")], 2.0);
    empty_on_every_worker(&envoy);
    let mut next = json!({"free": tier(1_001, ONE_PER_HOUR), "pro": null});
    next["pro"] = tier(1_000, 100_000.0);
    envoy.save("tiers.json", &next.to_string());
    wait::until("the new document", || {
        let reply = envoy.send(&Request::get("/"));
        (reply.limit() == 1_001).then_some(())
    });
    assert_admitted_on_every_worker(&envoy, "at once");
}
