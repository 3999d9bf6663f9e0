//! The health that an operator sets, shared by all Envoys through Redis.

use scenarios::Request;
use wasm_host::failures::{Act, Failure, status};
use wasm_host::redis::Mode;
use wasm_host::{Setup, World};

use crate::support::{HEALTH, change, plain_redis_setup};

/// The interval of the polls, and more than a tick.
const POLL_MS: u64 = 250 + 20;

/// One Envoy on Redis, a second after its start.
fn started(setup: Setup) -> World {
    let mut world = World::start(setup);
    world.advance_ms(1_000);
    world
}

fn store_health(world: &mut World, health: impl Into<Vec<u8>>) {
    world.redis.model.strings.insert(HEALTH.to_owned(), health.into());
}

/// Asserts the health that a worker's next request sees.
#[track_caller]
fn assert_health(world: &mut World, worker: usize, wanted: &str) {
    let report = world.get(worker, &Request::get("/system/health")).json();
    assert_eq!(report["health"], wanted, "worker {worker}");
}

/// Advances to the next poll of one of two workers, whose reply is on its way until `World::redis_starts`. Returns the
/// worker that polls, and the other one.
fn poll_in_flight(world: &mut World) -> (usize, usize) {
    world.redis.mode = Mode::Silent;
    for _ in 0..POLL_MS {
        if let Some(polls) = (0..2).find(|worker| world.is_owed_a_reply(*worker)) {
            world.redis.mode = Mode::Up;
            return (polls, 1 - polls);
        }
        world.advance_ms(1);
    }
    panic!("no worker polls");
}

#[test]
fn a_health_in_redis_that_is_not_text_or_too_long_is_ignored() {
    let mut world = started(plain_redis_setup(""));
    for health in [&b"DEGRADED"[..], b"\xff\xfe", &[b'x'; 4_000]] {
        store_health(&mut world, health);
        world.advance_ms(2 * POLL_MS);
        assert_health(&mut world, 0, "DEGRADED");
    }
    assert!(world.is_connected(0));
}

#[test]
fn one_worker_of_each_envoy_polls_health_and_another_takes_over() {
    let mut world = World::start(plain_redis_setup("").envoys(2).workers(3));
    world.advance_ms(10_000);
    let polling = |world: &World| (0..6).filter(|worker| world.is_connected(*worker)).collect::<Vec<_>>();
    let [gone, elsewhere] = polling(&world)[..] else {
        panic!("one of each Envoy, not {:?}", polling(&world))
    };
    assert!(gone < 3 && elsewhere >= 3);
    let polls = world.redis.model.take_commands().iter().filter(|command| command.starts_with("GET")).count();
    assert!((76..=82).contains(&polls), "four times a second: {polls}");

    world.hang(gone);
    store_health(&mut world, "DEGRADED");
    world.advance_ms(1_000);
    assert_health(&mut world, (gone + 1) % 3, "DEGRADED");
    world.advance_ms(10_000);
    assert_eq!(polling(&world).len(), 3, "one besides the one that hangs");
}

#[test]
fn a_worker_that_cannot_connect_leaves_the_polls_to_another() {
    let mut world = started(plain_redis_setup("").workers(2));
    let (polls, other) = poll_in_flight(&mut world);
    let refused = Act::Status(status::INTERNAL_FAILURE);
    world.vm(polls).script([Failure { call: "proxy_grpc_stream", after: 0, times: u32::MAX, act: refused }]);
    world.redis_disconnects();
    store_health(&mut world, "DEGRADED");
    world.advance_ms(2 * POLL_MS);
    assert_health(&mut world, other, "DEGRADED");
}

#[test]
fn a_worker_that_only_polls_does_not_stay_with_a_replica() {
    let mut world = started(plain_redis_setup(""));
    // Redis closes an idle connection, and the next one reaches a replica that has lost its master.
    world.redis_disconnects();
    world.redis.model.is_replica = true;
    store_health(&mut world, "DEGRADED");
    world.advance_ms(1_000);
    assert_health(&mut world, 0, "NORMAL");
    world.redis.model.is_replica = false;
    world.advance_ms(2_000);
    assert_health(&mut world, 0, "DEGRADED");
}

#[test]
fn a_change_of_health_applies_when_redis_has_stored_it() {
    let mut world = World::start(plain_redis_setup("").workers(2));
    world.redis.mode = Mode::Silent;
    let id = world.send(0, &change("DEGRADED"));
    assert_eq!(world.redis.model.strings[HEALTH], b"DEGRADED");
    world.advance_ms(400);
    assert_eq!(world.undecided(), [id], "it may take longer than a request");
    assert_health(&mut world, 1, "NORMAL");
    world.redis_starts();
    let response = world.response(id).expect("a response");
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["previous_status"], "NORMAL");
    assert_eq!(response.json()["new_status"], "DEGRADED");
    assert_health(&mut world, 1, "DEGRADED");
    world.advance_ms(1_000);
    assert_eq!(world.processes[0].stat("rate_limiter_admin_requests_total.result.ok"), 1);
}

#[test]
fn an_invalid_change_is_not_sent() {
    let mut world = started(plain_redis_setup(""));
    world.redis.model.commands.clear();
    assert_eq!(world.get(0, &change("SICK")).status, 400);
    assert_eq!(world.redis.model.take_commands(), [""; 0]);
}

#[test]
fn restoring_a_missing_health_does_not_overwrite_a_newer_one() {
    let mut world = started(plain_redis_setup("").envoys(2));
    assert_eq!(world.get(0, &change("DEGRADED")).status, 200);
    world.advance_ms(1_000);
    world.redis.model.strings.clear();
    // One Envoy finds none; before it restores its own, another Envoy sets a new one.
    let (_, other) = poll_in_flight(&mut world);
    assert_eq!(world.get(other, &change("NORMAL")).status, 200);
    world.redis_starts();
    world.advance_ms(1_000);
    assert_eq!(world.redis.model.strings[HEALTH], b"NORMAL");
    (0..2).for_each(|worker| assert_health(&mut world, worker, "NORMAL"));
}

#[test]
fn a_health_read_before_a_change_does_not_undo_it() {
    let mut world = World::start(plain_redis_setup("").workers(2));
    store_health(&mut world, "NORMAL");
    world.advance_ms(1_000);
    // The reply with the old health is on its way while the other worker sets a new one.
    let (_, other) = poll_in_flight(&mut world);
    assert_eq!(world.get(other, &change("DEGRADED")).status, 200);
    world.redis_starts();
    for _ in 0..2 {
        (0..2).for_each(|worker| assert_health(&mut world, worker, "DEGRADED"));
        assert_eq!(world.redis.model.strings[HEALTH], b"DEGRADED");
        world.advance_ms(1_000);
    }
}
