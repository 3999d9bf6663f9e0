//! A change of health is in Redis before it is answered, everywhere within a second, and outlives Redis.

use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

use super::{HEALTH_TRAVELS, RECOVERY, await_redis, health_report, in_redis, patient};
use crate::support::{health, switch, switch_request, two_tiers};

pub(super) const KEY: &str = "system:health:status";

/// What a busy machine may add to a second.
const SLACK: Duration = Duration::from_millis(500);

fn start(redis: &Redis) -> Envoy {
    patient(two_tiers(1_000, 10), redis).start()
}

fn stored(redis: &Redis) -> Option<String> {
    redis.command(&["GET", KEY]).optional_text()
}

/// Waits until a request is told this health, and not longer than a change may travel.
#[track_caller]
fn await_health(envoys: &[&Envoy], status: &str, since: Instant) {
    for (index, envoy) in envoys.iter().enumerate() {
        let reached = wait::poll(HEALTH_TRAVELS + SLACK, || {
            (envoy.send(&Request::get("/")).one("x-system-health") == status).then_some(())
        });
        assert!(reached.is_some(), "Envoy {index} does not know {status} after {:?}", since.elapsed());
    }
}

/// Checks that a health stays what it is for as long as a change may travel, and so does not come back later.
#[track_caller]
fn assert_health_stays(envoys: &[&Envoy], status: &str) {
    let began = Instant::now();
    while began.elapsed() < HEALTH_TRAVELS + SLACK {
        for (index, envoy) in envoys.iter().enumerate() {
            assert_eq!(envoy.send(&Request::get("/")).one("x-system-health"), status, "Envoy {index}");
            assert_eq!(health(envoy), status, "Envoy {index}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn envoys_that_have_never_had_a_request_learn_of_a_change_too() {
    let redis = Redis::start();
    let (busy, idle) = (start(&redis), [start(&redis), start(&redis)]);
    switch(&busy, "DEGRADED");
    for envoy in &idle {
        // Only metrics are looked at: that is no request to the filter. Workers report once a second.
        wait::until_within(HEALTH_TRAVELS * 2 + SLACK, "the idle Envoy's gauge", || {
            (envoy.metric("rate_limiter_system_degraded", &[]) == Some(1.0)).then_some(())
        });
        let first = envoy.send(&Request::get("/"));
        assert_eq!(first.one("x-system-health"), "DEGRADED", "on its very first request");
    }
}

#[test]
fn an_envoy_that_starts_later_takes_the_health_over() {
    let redis = Redis::start();
    let first = start(&redis);
    switch(&first, "DEGRADED");
    let later = start(&redis);
    await_health(&[&later], "DEGRADED", Instant::now());
    assert_health_stays(&[&first, &later], "DEGRADED");
}

#[test]
fn a_health_of_another_type_is_none_and_no_outage() {
    let redis = Redis::start();
    let envoys = [start(&redis), start(&redis)];
    redis.command(&["SET", KEY, "DEGRADED"]);
    await_health(&envoys.each_ref(), "DEGRADED", Instant::now());
    redis.command(&["DEL", KEY]);
    redis.command(&["LPUSH", KEY, "NORMAL"]);
    assert_health_stays(&envoys.each_ref(), "DEGRADED");
    assert_eq!(health_report(&envoys[0])["redis"], "connected", "one wrong key is no outage");
    redis.command(&["DEL", KEY]);
    redis.command(&["SET", KEY, "NORMAL"]);
    await_health(&envoys.each_ref(), "NORMAL", Instant::now());
}

#[test]
fn where_redis_has_no_health_nothing_changes_and_degraded_is_written_back() {
    let redis = Redis::start();
    let envoys = [start(&redis), start(&redis)];
    assert_health_stays(&envoys.each_ref(), "NORMAL");
    assert_eq!(stored(&redis), None, "nobody has set one");
    switch(&envoys[0], "DEGRADED");
    await_health(&envoys.each_ref(), "DEGRADED", Instant::now());
    for emptied in 0..3 {
        redis.command(&["FLUSHALL"]);
        wait::until_within(HEALTH_TRAVELS + SLACK, &format!("written back, time {emptied}"), || {
            (stored(&redis).as_deref() == Some("DEGRADED")).then_some(())
        });
    }
    assert_health_stays(&envoys.each_ref(), "DEGRADED");
}

#[test]
fn a_change_that_redis_does_not_take_is_a_500_and_no_change() {
    let mut redis = Redis::start();
    let config = in_redis(two_tiers(1_000, 10), 100, "local");
    let envoy = Setup::new().config(&config).redis(redis.address()).start();
    switch(&envoy, "DEGRADED");
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
            let reply = envoy.send(&switch_request("NORMAL"));
            assert_eq!(reply.status, 500, "{name}, attempt {attempt}: {}", reply.text());
            assert_eq!(reply.json(), json!({"detail": "Failed to update health"}), "{name}");
            assert_eq!(reply.one("content-type"), "application/json");
            assert!(began.elapsed() < Duration::from_secs(5), "{name} took {:?}", began.elapsed());
            assert_eq!(health(&envoy), "DEGRADED", "{name}, attempt {attempt}");
        }
        heal(&mut redis);
        wait::until_within(RECOVERY, &format!("a change taken after {name}"), || {
            let is_taken = envoy.send(&switch_request("DEGRADED")).status == 200;
            failed += u32::from(!is_taken);
            is_taken.then_some(())
        });
        assert_eq!(stored(&redis).as_deref(), Some("DEGRADED"), "after {name}");
    }
    envoy.await_metric("rate_limiter_admin_requests_total", &[("result", "failed")], failed.into());
}
