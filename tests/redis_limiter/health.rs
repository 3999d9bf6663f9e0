//! The health that an operator sets, shared by all Envoys through Redis.

use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::metrics::StatUpdate;

use super::*;

fn commands(world: &World, envoy: usize) -> Vec<usize> {
    world.workers.range((envoy, 0)..(envoy + 1, 0)).map(|(_, worker)| worker.commands).collect()
}

fn store_health(world: &mut World, text: &[u8]) {
    world.redis.strings.insert(HEALTH.to_owned(), text.to_vec());
}

#[test]
fn health_that_an_operator_sets_in_redis_applies_and_other_values_are_ignored() {
    let mut world = World::new(2, 1, "");
    let cases: [(&[u8], Health); 9] = [
        (b"DEGRADED", Health::Degraded),
        (b"degraded", Health::Degraded),
        (b"", Health::Degraded),
        (b"NORMAL\n", Health::Degraded),
        (b"\xff\xfe", Health::Degraded),
        (b"NORMAL", Health::Normal),
        (b"OFFLINE", Health::Normal),
        (&[b'x'; 4_000], Health::Normal),
        (b"DEGRADED", Health::Degraded),
    ];
    for (text, health) in cases {
        store_health(&mut world, text);
        world.run(SECOND);
        world.assert_health_everywhere(health);
    }
}

#[test]
fn one_worker_of_each_envoy_polls_health_and_another_takes_over() {
    let mut world = World::new(2, 3, "");
    world.run(10 * SECOND);
    for envoy in 0..2 {
        let mut sent = commands(&world, envoy);
        sent.sort_unstable();
        assert_eq!(sent[..2], [0, 0], "one polls, the others send nothing");
        // It also probes until Redis is healthy.
        assert!((38..=44).contains(&sent[2]), "four times a second: {sent:?}");
    }
    // That worker of the first Envoy stops.
    let gone = commands(&world, 0).iter().position(|sent| *sent > 0).expect("one polls");
    let left: Vec<Name> = world.names().into_iter().filter(|name| *name != (0, gone)).collect();
    let pass = |world: &mut World, us: u64| {
        for _ in 0..us / (5 * MS) {
            world.advance(5 * MS);
            left.iter().for_each(|name| drop(world.tick(*name)));
        }
    };
    store_health(&mut world, b"DEGRADED");
    pass(&mut world, SECOND);
    // Another has taken over within a second.
    world.assert_health((0, (gone + 1) % 3), Health::Degraded);
    pass(&mut world, 10 * SECOND);
    let sent = commands(&world, 0);
    let polling = sent.iter().filter(|sent| **sent > 0).count();
    assert_eq!(polling, 2, "one besides the one that is gone: {sent:?}");
}

#[test]
fn a_worker_that_cannot_connect_leaves_the_polls_to_another() {
    let mut world = World::new(1, 2, "");
    world.run(SECOND);
    let polls = commands(&world, 0).iter().position(|sent| *sent > 0).expect("one polls");
    world.go_down();
    world.advance(POLL_US);
    world.tick((0, polls));
    world.is_down = false;
    store_health(&mut world, b"DEGRADED");
    world.tick((0, 1 - polls));
    world.assert_health((0, 1 - polls), Health::Degraded);
}

#[test]
fn a_worker_that_only_polls_does_not_stay_with_a_replica() {
    let mut world = World::new(1, 1, "");
    world.run(SECOND);
    // Redis closes an idle connection, and the next one reaches a replica that has lost its master.
    world.go_down();
    world.is_down = false;
    world.redis.is_replica = true;
    store_health(&mut world, b"DEGRADED");
    world.run(SECOND);
    world.assert_health(WORKER, Health::Normal);
    world.redis.is_replica = false;
    world.run(2 * SECOND);
    world.assert_health(WORKER, Health::Degraded);
}

#[test]
fn a_change_of_health_applies_when_redis_has_stored_it() {
    let mut world = World::new(1, 2, "");
    world.is_frozen = true;
    let (id, decision) = world.start_post(WORKER, DEGRADED);
    assert_eq!(kind(&decision), "AwaitsRedis");
    world.exchange(WORKER);
    assert_eq!(world.redis.strings[HEALTH], b"DEGRADED");
    assert!(world.run(100 * MS).is_empty(), "it may take longer than a request");
    world.advance(899 * MS);
    world.tick(WORKER);
    // The change is not confirmed yet.
    world.assert_health(OTHER, Health::Normal);
    world.is_frozen = false;
    let (status, body) = replied(only(world.exchange(WORKER), id));
    assert_eq!(status, 200);
    assert!(body.contains(r#""previous_status":"NORMAL","new_status":"DEGRADED""#), "{body}");
    world.assert_health(OTHER, Health::Degraded);
    world.assert_update(
        WORKER,
        StatUpdate::Count("rate_limiter_admin_requests_total.result.ok".to_owned(), 1),
    );
}

#[test]
fn an_invalid_change_is_not_sent() {
    let mut world = World::new(1, 1, "");
    assert_eq!(replied(world.start_post(WORKER, "{}").1).0, 400);
    world.exchange(WORKER);
    assert_eq!(world.redis.take_commands(), [""; 0]);
}

#[test]
fn restoring_a_missing_health_does_not_overwrite_a_newer_one() {
    let mut world = World::new(2, 1, "");
    world.post(WORKER, "DEGRADED");
    world.run(SECOND);
    world.redis.strings.clear();
    // The first Envoy finds none; before it restores its own, another Envoy sets a new one.
    world.is_frozen = true;
    world.advance(POLL_US);
    world.tick(WORKER);
    world.is_frozen = false;
    world.post(ELSEWHERE, "NORMAL");
    world.run(SECOND);
    assert_eq!(world.redis.strings[HEALTH], b"NORMAL");
    world.assert_health_everywhere(Health::Normal);
}

#[test]
fn a_health_read_before_a_change_does_not_undo_it() {
    let mut world = World::new(1, 2, "");
    store_health(&mut world, b"NORMAL");
    world.run(SECOND);
    let polls = commands(&world, 0).iter().position(|sent| *sent > 0).expect("one polls");
    // The reply with the old health is in flight while the other worker sets a new one.
    world.is_frozen = true;
    world.advance(POLL_US);
    world.tick((0, polls));
    assert_eq!(world.worker((0, polls)).stream.replies.len(), 1);
    world.is_frozen = false;
    assert_eq!(world.post((0, 1 - polls), "DEGRADED").0, 200);
    world.exchange((0, polls));
    world.assert_health_everywhere(Health::Degraded);
    world.run(SECOND);
    world.assert_health(WORKER, Health::Degraded);
    assert_eq!(world.redis.strings[HEALTH], b"DEGRADED");
}
