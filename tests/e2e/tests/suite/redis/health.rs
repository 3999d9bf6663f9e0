//! A change of health is in Redis before it is answered, reaches every Envoy within a second, and survives a FLUSHALL.

use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::wait;
use serde_json::json;

use super::{
    HEALTH_PROPAGATION, RECOVERY, SLACK, assert_healths_stay, await_healths, await_redis, health_report,
    long_timeout_setup, redis_setup,
};
use crate::support::{health, set_health, set_health_request, two_tiers};

pub(super) const KEY: &str = "system:health:status";

fn start(redis: &Redis) -> Envoy {
    long_timeout_setup(two_tiers(1_000, 10), redis).start()
}

fn stored(redis: &Redis) -> Option<String> {
    redis.command(&["GET", KEY]).optional_text()
}

#[test]
fn a_change_reaches_envoys_without_requests() {
    let redis = Redis::start();
    let (busy, idle) = (start(&redis), [start(&redis), start(&redis)]);
    set_health(&busy, "DEGRADED");
    for envoy in &idle {
        // Scraping metrics is no request to the filter. Workers report once a second.
        wait::until_within(HEALTH_PROPAGATION * 2 + SLACK, "the idle Envoy's gauge", || {
            (envoy.metric("rate_limiter_system_degraded", &[]) == Some(1.0)).then_some(())
        });
        let first = envoy.send(&Request::get("/"));
        assert_eq!(first.one("x-system-health"), "DEGRADED", "on its first request");
    }
}

#[test]
fn an_envoy_that_starts_later_adopts_the_health() {
    let redis = Redis::start();
    let first = start(&redis);
    set_health(&first, "DEGRADED");
    let later = start(&redis);
    await_healths([&later], ["DEGRADED"]);
    assert_healths_stay([&first, &later], ["DEGRADED"; 2]);
}

#[test]
fn a_health_key_of_another_type_is_ignored_and_no_outage() {
    let redis = Redis::start();
    let envoys = [start(&redis), start(&redis)];
    redis.command(&["SET", KEY, "DEGRADED"]);
    await_healths(envoys.each_ref(), ["DEGRADED"; 2]);
    redis.command(&["DEL", KEY]);
    redis.command(&["LPUSH", KEY, "NORMAL"]);
    assert_healths_stay(envoys.each_ref(), ["DEGRADED"; 2]);
    assert_eq!(health_report(&envoys[0])["redis"], "connected", "one wrong key is no outage");
    redis.command(&["DEL", KEY]);
    redis.command(&["SET", KEY, "NORMAL"]);
    await_healths(envoys.each_ref(), ["NORMAL"; 2]);
}

#[test]
fn without_health_in_redis_nothing_changes_and_degraded_is_written_back() {
    let redis = Redis::start();
    let envoys = [start(&redis), start(&redis)];
    assert_healths_stay(envoys.each_ref(), ["NORMAL"; 2]);
    assert_eq!(stored(&redis), None, "no health was set");
    set_health(&envoys[0], "DEGRADED");
    await_healths(envoys.each_ref(), ["DEGRADED"; 2]);
    for emptied in 0..3 {
        redis.command(&["FLUSHALL"]);
        wait::until_within(HEALTH_PROPAGATION + SLACK, &format!("written back, time {emptied}"), || {
            (stored(&redis).as_deref() == Some("DEGRADED")).then_some(())
        });
    }
    assert_healths_stay(envoys.each_ref(), ["DEGRADED"; 2]);
}

#[test]
fn a_change_that_redis_rejects_is_answered_with_500_and_not_applied() {
    let mut redis = Redis::start();
    let envoy = redis_setup(two_tiers(1_000, 10), 100, "local", redis.address()).start();
    set_health(&envoy, "DEGRADED");
    type Step = fn(&mut Redis);
    let cases: [(&str, Step, Step); 4] = [
        (
            "a replica",
            |redis| drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"])),
            |redis| drop(redis.command(&["REPLICAOF", "NO", "ONE"])),
        ),
        (
            "full",
            |redis| drop(redis.command(&["CONFIG", "SET", "maxmemory", "1"])),
            |redis| drop(redis.command(&["CONFIG", "SET", "maxmemory", "0"])),
        ),
        ("frozen", |redis| redis.freeze(), |redis| redis.thaw()),
        ("gone", Redis::kill, Redis::restart),
    ];
    let mut failed = 0;
    for (name, inject, heal) in cases {
        await_redis(&envoy, "connected");
        inject(&mut redis);
        // The first attempts fail in Redis, the later ones because the breaker is open.
        for attempt in 0..4 {
            failed += 1;
            let began = Instant::now();
            let reply = envoy.send(&set_health_request("NORMAL"));
            assert_eq!(reply.status, 500, "{name}, attempt {attempt}: {}", reply.text());
            assert_eq!(reply.json(), json!({"detail": "Failed to update health"}), "{name}");
            assert_eq!(reply.one("content-type"), "application/json");
            assert!(began.elapsed() < Duration::from_secs(5), "{name} took {:?}", began.elapsed());
            assert_eq!(health(&envoy), "DEGRADED", "{name}, attempt {attempt}");
        }
        heal(&mut redis);
        wait::until_within(RECOVERY, &format!("a change accepted after {name}"), || {
            let is_accepted = envoy.send(&set_health_request("DEGRADED")).status == 200;
            failed += u32::from(!is_accepted);
            is_accepted.then_some(())
        });
        assert_eq!(stored(&redis).as_deref(), Some("DEGRADED"), "after {name}");
    }
    envoy.await_metric("rate_limiter_admin_requests_total", &[("result", "failed")], failed.into());
}
