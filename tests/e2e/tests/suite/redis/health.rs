//! A change of health is in Redis before it is answered, everywhere within a second, and outlives Redis.

use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::resp::Reply;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

use super::{HEALTH_TRAVELS, PATIENT_MS, RECOVERY, await_redis, health_report, in_redis, patient};
use crate::support::{health, switch, switch_request, two_tiers};

pub(super) const KEY: &str = "system:health:status";

/// What a busy machine may add to a second.
const SLACK: Duration = Duration::from_millis(500);

fn start(redis: &Redis) -> Envoy {
    patient(two_tiers(1_000, 10), redis).start()
}

fn stored(redis: &Redis) -> Option<String> {
    match redis.command(&["GET", KEY]) {
        Reply::Text(text) => text,
        other => panic!("{KEY} is {other:?}"),
    }
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
fn a_change_is_in_redis_before_it_is_answered_and_everywhere_within_a_second() {
    let redis = Redis::start();
    let envoys = [start(&redis), start(&redis), start(&redis)];
    for round in 0..4 {
        let from = &envoys[round % 3];
        let status = if round % 2 == 0 { "DEGRADED" } else { "NORMAL" };
        switch(from, status);
        let since = Instant::now();
        assert_eq!(stored(&redis).as_deref(), Some(status), "in Redis when it is answered");
        assert_eq!(from.send(&Request::get("/")).one("x-system-health"), status, "here at once");
        await_health(&envoys.each_ref(), status, since);
    }
    assert_eq!(redis.command(&["PTTL", KEY]).integer(), -1, "what an operator set does not expire");
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
fn every_worker_learns_of_a_change_made_elsewhere() {
    let redis = Redis::start();
    let here = start(&redis);
    let there = patient(two_tiers(1_000, 10), &redis).workers(4).start();
    let mut connections: Vec<_> = (0..24).map(|_| there.connect()).collect();
    for status in ["DEGRADED", "NORMAL"] {
        switch(&here, status);
        await_health(&[&there], status, Instant::now());
        for connection in &mut connections {
            assert_eq!(connection.send(&Request::get("/")).one("x-system-health"), status);
        }
    }
    let by_worker = there.connections_by_worker();
    assert!(by_worker.len() == 4 && by_worker.iter().all(|n| *n > 0), "{by_worker:?}");
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
fn what_an_operator_writes_into_redis_is_a_change_and_nonsense_is_none() {
    let redis = Redis::start();
    let envoys = [start(&redis), start(&redis)];
    redis.command(&["SET", KEY, "DEGRADED"]);
    await_health(&envoys.each_ref(), "DEGRADED", Instant::now());
    for nonsense in ["", "normal", "NORMAL ", "HEALTHY", "NORMAL\n", "\u{fffd}", "{}"] {
        redis.command(&["SET", KEY, nonsense]);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(health(&envoys[0]), "DEGRADED", "{nonsense:?}");
    }
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

#[test]
fn without_redis_every_envoy_keeps_the_health_it_knew_and_so_does_an_empty_redis() {
    let mut redis = Redis::start();
    let config = in_redis(two_tiers(1_000, 10), 100, "local");
    let start = || Setup::new().config(&config).redis(redis.address()).quiet().start();
    let envoys = [start(), start()];
    switch(&envoys[0], "DEGRADED");
    await_health(&envoys.each_ref(), "DEGRADED", Instant::now());
    redis.kill();
    for envoy in &envoys {
        await_redis(envoy, "disconnected");
        let report = json!({"status": "degraded", "redis": "disconnected", "health": "DEGRADED"});
        assert_eq!(health_report(envoy), report);
    }
    assert_health_stays(&envoys.each_ref(), "DEGRADED");
    redis.restart();
    for envoy in &envoys {
        await_redis(envoy, "connected");
    }
    wait::until_within(RECOVERY, "the health is in Redis again", || {
        (stored(&redis).as_deref() == Some("DEGRADED")).then_some(())
    });
    assert_health_stays(&envoys.each_ref(), "DEGRADED");
}

#[test]
fn a_switch_costs_no_bucket_its_tokens_and_holds_everywhere_at_its_own_limit() {
    let redis = Redis::start();
    let mut config = two_tiers(1_000, 10);
    config["tiers"]["pro"]["degraded"] = json!({"capacity": 4});
    let envoys = [patient(config.clone(), &redis).start(), patient(config.clone(), &redis).start()];
    let ask = |envoy: &Envoy| {
        let reply = envoy.send(&Request::get("/").key("pro"));
        (reply.limit(), reply.remaining())
    };
    assert_eq!([ask(&envoys[0]), ask(&envoys[1])], [(10, 9), (10, 8)]);
    switch(&envoys[0], "DEGRADED");
    await_health(&[&envoys[1]], "DEGRADED", Instant::now());
    assert_eq!([ask(&envoys[0]), ask(&envoys[1])], [(4, 3), (4, 2)], "tokens above four are gone");
    switch(&envoys[1], "NORMAL");
    await_health(&[&envoys[0]], "NORMAL", Instant::now());
    assert_eq!([ask(&envoys[0]), ask(&envoys[1])], [(10, 1), (10, 0)], "and do not come back");
}

#[test]
fn before_first_contact_redis_is_disconnected() {
    let redis = Redis::not_started(&[]);
    let config = in_redis(two_tiers(5, 10), PATIENT_MS, "local");
    let envoy = Setup::new().config(&config).redis(redis.address()).start();
    let report = json!({"status": "degraded", "redis": "disconnected", "health": "NORMAL"});
    assert_eq!(health_report(&envoy), report);
    assert_eq!(envoy.send(&switch_request("DEGRADED")).status, 500);
    assert_eq!(health(&envoy), "NORMAL");
}
