//! A Redis that cannot be reached or does not write: changes of health fail, and the health check reports it.

use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::metrics::StatUpdate;

use super::*;

#[test]
fn a_change_that_redis_does_not_store_is_an_error_and_changes_nothing() {
    type Fault<T> = fn(&mut World) -> T;
    let freeze: Fault<()> = |world| world.is_frozen = true;
    let fail_thrice: Fault<()> = |world| {
        world.is_down = true;
        (0..3).for_each(|_| drop(world.decide_with_redis(WORKER, &get())));
    };
    let lose_connection: Fault<Decisions> = |world| {
        world.go_down();
        world.exchange(WORKER)
    };
    // (what happens before the change, and while it waits for Redis)
    let cases: [(&str, Fault<()>, Fault<Decisions>); 5] = [
        ("an error reply", |world| world.redis.error = Some("READONLY"), |_| Vec::new()),
        ("no connection", |world| world.is_down = true, |_| Vec::new()),
        ("connection lost", freeze, lose_connection),
        ("no answer", freeze, |world| world.run(SECOND)),
        ("known to be lost", fail_thrice, |_| Vec::new()),
    ];
    for (what, before, meanwhile) in cases {
        let mut world = World::new(1, 2, "");
        before(&mut world);
        let (id, decision) = world.start_post(WORKER, DEGRADED);
        assert_eq!(kind(&decision), if what == "known to be lost" { "Replied" } else { "AwaitsRedis" });
        let mut decisions = world.exchange(WORKER);
        decisions.extend(meanwhile(&mut world));
        decisions.push((id, decision));
        let failed = (500, r#"{"detail":"Failed to update health"}"#.to_owned());
        assert_eq!(replied(only(decisions, id)), failed, "{what}");
        world.assert_health_everywhere(Health::Normal);
        let failed = "rate_limiter_admin_requests_total.result.failed".to_owned();
        world.assert_update(WORKER, StatUpdate::Count(failed, 1));
    }
}

#[test]
fn the_health_check_reports_the_state_of_redis() {
    let mut world = World::new(1, 2, "");
    let reported = |world: &mut World| {
        let [first, second] = [WORKER, OTHER].map(|name| world.get(name, "/health"));
        assert_eq!(first, second, "workers report the same");
        first
    };
    let gauge = |level| StatUpdate::SetGauge("rate_limiter_redis_connected".to_owned(), level);
    let connected = r#"{"status":"healthy","redis":"connected","health":"NORMAL"}"#;
    let disconnected = r#"{"status":"degraded","redis":"disconnected","health":"NORMAL"}"#;
    assert_eq!(reported(&mut world), disconnected, "before the first reply");
    world.run(POLL_US + 5 * MS);
    assert_eq!(reported(&mut world), connected, "connected without a request");
    world.assert_update(WORKER, gauge(1));
    for name in [WORKER, OTHER] {
        world.decide_with_redis(name, &get());
    }
    world.go_down();
    assert_eq!(reported(&mut world), connected, "a closed stream is no failure");
    for name in [WORKER, OTHER] {
        (0..3).for_each(|_| drop(world.decide_with_redis(name, &get())));
    }
    assert_eq!(reported(&mut world), disconnected);
    world.assert_update(WORKER, gauge(0));
    world.is_down = false;
    world.run(3 * SECOND);
    assert_eq!(reported(&mut world), connected, "by itself");
    world.post(WORKER, "DEGRADED");
    assert_eq!(reported(&mut world), connected.replace("NORMAL", "DEGRADED"));
    let head = FakeRequest { method: "HEAD".into(), ..FakeRequest::get("/health") };
    assert_eq!(replied(world.decide_with_redis(WORKER, &head)).0, 200);
}

#[test]
fn a_read_only_redis_is_not_reported_as_connected() {
    let mut world = World::new(1, 3, "");
    world.redis.is_replica = true;
    for name in (0..5).flat_map(|_| [WORKER, OTHER, (0, 2)]) {
        world.decide_with_redis(name, &get());
    }
    for _ in 0..20 {
        world.run(POLL_US);
        let reported = world.get(WORKER, "/health");
        assert!(reported.contains(r#""redis":"disconnected""#), "by a worker that only polls: {reported}");
    }
    world.redis.is_replica = false;
    world.run(5 * SECOND);
    assert!(world.get(WORKER, "/health").contains(r#""redis":"connected""#));
}
