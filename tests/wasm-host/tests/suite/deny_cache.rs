//! Callers that Redis has rejected are rejected by the worker, without a command to Redis.

use scenarios::Request;
use wasm_host::redis::Mode;
use wasm_host::{Id, Setup, World};

use crate::support::{change, plain_redis_setup};

/// A tier of one token, refilled in ten seconds.
const SLOW: &str =
    r#", "default_tier": "slow", "tiers": {"slow": {"base": {"capacity": 1, "refill_rate": 0.1}}}"#;

/// The same with requests that wait for places, and a more important caller without a bucket.
const AUTO: &str = r#", "health": {"mode": "auto"}, "api_keys": {"important": "open"}, "default_tier": "slow",
    "tiers": {"slow": {"base": {"capacity": 1, "refill_rate": 0.1}}, "open": {"unlimited": true, "priority": 5}}"#;

/// How many requests of a worker wait for places.
const MAX_WAITING: usize = 1_024;

fn get() -> Request {
    Request::get("/")
}

/// A world in which Redis has rejected the first worker's caller.
fn rejected(setup: Setup) -> World {
    let mut world = World::start(setup);
    assert_eq!([(); 2].map(|()| world.get(0, &get()).status), [200, 429]);
    world
}

fn status(world: &World, id: Id) -> Option<u16> {
    world.response(id).map(|response| response.status)
}

/// Whether the worker rejects the next request at once, without a command to Redis.
#[track_caller]
fn is_denied(world: &mut World, worker: usize) -> bool {
    let scripts = world.redis.scripts();
    let id = world.send(worker, &get());
    let is_denied = status(world, id) == Some(429) && world.redis.scripts() == scripts;
    assert!(is_denied || world.redis.scripts() == scripts + 1, "{:?}", world.response(id));
    is_denied
}

/// Sends important requests until all places are taken.
fn take_all_places(world: &mut World) -> Vec<Id> {
    world.upstream.waits = true;
    let mut ids = Vec::new();
    while world.undecided().is_empty() {
        ids.push(world.send(0, &get().key("important")));
    }
    let waiting = ids.pop().expect("the last one waits for a place");
    world.disconnect(waiting);
    ids
}

/// Takes all places. Returns a request that waits for one, and a recheck that waits, too.
fn send_recheck(world: &mut World) -> [Id; 2] {
    take_all_places(world);
    // Only where a request waits, the deny cache is asked before there is a place.
    let ids = [(); 2].map(|()| world.send(0, &get()));
    assert_eq!(world.undecided(), ids);
    assert!(is_denied(world, 0));
    ids
}

#[test]
fn the_reset_header_follows_the_clock_of_the_envoy_and_not_that_of_redis() {
    for ahead_us in [-3_600_000_000, 3_600_000_000] {
        let mut world = World::start(plain_redis_setup(SLOW));
        world.redis.ahead_us = ahead_us;
        // By Redis, and then by the deny cache.
        for wanted in [200, 429, 429] {
            let response = world.get(0, &get());
            assert_eq!((response.status, response.number("x-ratelimit-reset")), (wanted, 1_700_000_010));
        }
    }
}

#[test]
fn the_deny_cache_rejects_a_caller_for_a_second_at_most() {
    let mut world = rejected(plain_redis_setup(SLOW).workers(2));
    let sent = world.redis.scripts();
    let assert_rejected = |world: &World, id: Id, retry_after| {
        let response = world.response(id).expect("a response");
        assert_eq!((response.status, response.limit(), response.remaining()), (429, 1, 0));
        let times = [response.number("x-ratelimit-reset"), response.number("retry-after")];
        assert_eq!(times, [1_700_000_010, retry_after]);
    };
    for later_us in [0, 1, 999_998] {
        world.advance_us(later_us);
        let id = world.send(0, &get());
        assert_rejected(&world, id, 10);
    }
    assert_eq!(world.redis.scripts(), sent, "no command was sent");

    world.advance_us(1);
    // After a second one request waits for Redis.
    world.redis.mode = Mode::Silent;
    let id = world.send(0, &get());
    for _ in 0..5 {
        assert!(is_denied(&mut world, 0), "and the others are rejected");
    }
    assert_eq!(status(&world, id), None);
    world.redis_starts();
    assert_rejected(&world, id, 9);
    assert!(is_denied(&mut world, 0));
    assert_eq!(world.redis.scripts(), sent + 1);

    let other = world.get(0, &get().from("192.0.2.99"));
    assert_eq!(other.status, 200, "another caller is not rejected");
    assert!(!is_denied(&mut world, 1), "another worker waits for Redis");
    world.advance_ms(1_000);
    let limited = "rate_limiter_requests_total.tier.slow.status.limited";
    assert_eq!(world.processes[0].stat(limited), 1 + 3 + 1 + 5 + 1 + 1);
}

#[test]
fn the_deny_cache_ends_at_the_microsecond_at_which_a_token_is_due() {
    let tier = r#", "default_tier": "t", "tiers": {"t": {"base": {"capacity": 1, "refill_rate": 3}}}"#;
    let mut world = rejected(plain_redis_setup(tier));
    world.advance_us(333_333);
    assert!(is_denied(&mut world, 0), "a tick early");
    world.advance_us(1);
    world.redis.mode = Mode::Silent;
    let ids = [(); 2].map(|()| world.send(0, &get()));
    assert_eq!(world.undecided(), ids, "all wait for Redis again");
    world.redis_starts();
    assert_eq!(ids.map(|id| status(&world, id)), [Some(200), Some(429)]);
}

#[test]
fn the_deny_cache_forgets_a_caller_whose_reply_does_not_come() {
    let mut world = rejected(plain_redis_setup(SLOW));
    world.advance_ms(1_000);
    world.redis.mode = Mode::Silent;
    let id = world.send(0, &get());
    assert!(is_denied(&mut world, 0));
    world.advance_ms(20 + 5);
    assert_eq!(status(&world, id), Some(200), "by this Envoy's own bucket");
    assert!(!is_denied(&mut world, 0), "the next request waits for Redis");
}

#[test]
fn a_reply_to_a_command_before_a_change_is_not_cached_after_it() {
    let mut world = World::start(plain_redis_setup(SLOW).workers(2));
    assert_eq!(world.get(0, &get()).status, 200);
    world.redis.mode = Mode::Silent;
    let id = world.send(0, &get());
    // Later replies come at once.
    world.redis.mode = Mode::Up;
    assert_eq!(world.get(1, &change("DEGRADED")).status, 200);
    let health = world.get(0, &Request::get("/system/health")).text();
    assert!(health.contains("DEGRADED"), "the first worker sees the change: {health}");
    world.redis_starts();
    assert_eq!(status(&world, id), Some(429));
    assert!(!is_denied(&mut world, 0), "the rejection before the change is not cached");
    assert!(is_denied(&mut world, 0), "a rejection after the change is cached");
}

#[test]
fn a_rejection_by_the_limit_of_an_older_document_is_not_cached() {
    let tiers = |refill_rate| {
        let base = format!(r#"{{"capacity": 1, "refill_rate": {refill_rate}}}"#);
        (200, format!(r#"{{"slow": {{"base": {base}}}, "open": {{"unlimited": true}}}}"#).into_bytes())
    };
    let source =
        r#", "config_source": {"cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 10}"#;
    let mut world = World::boot(plain_redis_setup(&format!("{AUTO}{source}")));
    world.documents.insert("/tiers.json".to_owned(), tiers("0.01"));
    world.configure_all();
    // A busy worker leaves the second fetch to others, and fetches a second later itself.
    world.advance_ms(9_500);
    assert_eq!(world.get(0, &get()).status, 200);
    world.advance_ms(800);
    let important = take_all_places(&mut world);
    let id = world.send(0, &get());
    world.documents.insert("/tiers.json".to_owned(), tiers("0.1"));
    world.advance_ms(900);
    assert_eq!(world.fetched.len(), 2, "the document is published while a request waits for a place");
    assert_eq!(world.undecided(), [id]);
    important.into_iter().for_each(|id| world.upstream_answers(id));
    assert_eq!(status(&world, id), Some(429));
    assert!(!is_denied(&mut world, 0), "the rejection by the older limit is not cached");
    assert!(is_denied(&mut world, 0), "a rejection by the new one is");
}

#[test]
fn a_recheck_whose_client_leaves_is_left_to_the_next_request_only_if_it_was_not_sent() {
    // (other commands on the wire, where there is room for 125)
    for (others, wanted) in [(124, Some(429)), (125, None)] {
        let mut world = rejected(plain_redis_setup(SLOW));
        world.advance_ms(1_000);
        world.redis.mode = Mode::Silent;
        for n in 0..others {
            world.send(0, &get().from(&format!("198.51.100.{n}")));
        }
        let ids = [(); 2].map(|()| world.send(0, &get()));
        assert_eq!(ids.map(|id| status(&world, id)), [None, Some(429)]);
        world.disconnect(ids[0]);
        let next = world.send(0, &get());
        assert_eq!(status(&world, next), wanted, "{others} others");
    }
}

#[test]
fn a_caller_whose_clients_leave_at_once_costs_redis_one_command_a_second() {
    let mut world = World::start(plain_redis_setup(SLOW));
    assert_eq!(world.get(0, &get()).status, 200);
    // That there is no token left, the worker learns from a reply to a client that has left.
    for requests in [1, 10, 10] {
        let scripts = world.redis.scripts();
        world.redis.mode = Mode::Silent;
        for _ in 0..requests {
            let id = world.send(0, &get());
            world.disconnect(id);
        }
        world.redis_starts();
        assert!(is_denied(&mut world, 0));
        assert_eq!(world.redis.scripts(), scripts + 1);
        world.advance_ms(1_000);
    }
}

#[test]
fn a_recheck_that_is_shed_is_left_to_the_next_request() {
    let mut world = rejected(plain_redis_setup(AUTO));
    world.advance_ms(1_000);
    let [first, recheck] = send_recheck(&mut world);
    world.disconnect(first);
    assert!(is_denied(&mut world, 0), "the recheck is not that request's");
    for _ in 0..MAX_WAITING {
        world.send(0, &get().key("important"));
    }
    assert_eq!(status(&world, recheck), Some(503), "the queue is full");
    assert_eq!(world.get(0, &get()).status, 503, "the next request is the recheck, and is shed, too");
}

#[test]
fn at_a_recheck_one_request_waits_for_a_place_and_then_for_redis() {
    let mut world = rejected(plain_redis_setup(AUTO));
    world.advance_ms(1_000);
    let [first, recheck] = send_recheck(&mut world);
    world.disconnect(first);
    let scripts = world.redis.scripts();
    world.advance_ms(5);
    (0..recheck).for_each(|id| world.upstream_answers(id));
    assert_eq!(world.redis.scripts(), scripts + 1, "it has its place");
    assert_eq!(status(&world, recheck), Some(429));
}
