//! The deny cache: after a refusal by Redis, the worker itself refuses the caller until its next token is due, and
//! queries Redis again once a second.

use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load;
use e2e::redis::Redis;
use e2e::wait;

use super::long_timeout_setup;
use crate::support::two_tiers;

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
