//! Callers that Redis has rejected are rejected by the worker, without a command to Redis.

use std::time::Duration;

use dynamic_rate_limiter::admission::Screening;
use dynamic_rate_limiter::bucket::{Outcome, Verdict};
use dynamic_rate_limiter::documents::Fetched;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::metrics::StatUpdate;
use dynamic_rate_limiter::request::DecisionStart;
use dynamic_rate_limiter::store::SharedData;

use super::*;

/// A world in which Redis has rejected the first worker's caller.
fn rejected(envoys: usize, workers: usize, json: &str) -> World {
    let mut world = World::new(envoys, workers, json);
    assert_eq!(kind(&world.decide_with_redis(WORKER, &get())), "Admitted");
    assert_eq!(kind(&world.decide_with_redis(WORKER, &get())), "Rejected");
    world
}

#[test]
fn the_reset_header_follows_the_clock_of_the_envoy_and_not_that_of_redis() {
    for redis_us in [UNIX_START - 3_600 * SECOND, UNIX_START + 3_600 * SECOND] {
        let mut world = World::new(1, 1, SLOW);
        world.redis.now_us = redis_us;
        // By Redis, and then by the deny cache.
        for wanted in ["Admitted", "Rejected", "Rejected"] {
            let decision = world.decide_with_redis(WORKER, &get());
            assert_eq!(kind(&decision), wanted);
            let headers = world.headers(WORKER, &decision);
            assert!(headers.contains(&"x-ratelimit-reset: 1700000010".to_owned()), "{headers:?}");
        }
    }
}

#[test]
fn the_deny_cache_rejects_a_caller_for_a_second_at_most() {
    let mut world = rejected(1, 2, SLOW);
    let sent = world.redis.commands.len();
    let assert_rejected = |world: &mut World, decision: &Decision, wait_us, retry_after| {
        let wanted = Verdict { outcome: Outcome::Rejected, capacity: 1, remaining: 0, wait_us };
        assert_eq!(answer(decision).verdict, Some(wanted));
        let headers = world.headers(WORKER, decision);
        let limits = ["x-ratelimit-limit: 1", "x-ratelimit-remaining: 0", "x-ratelimit-reset: 1700000010"];
        assert_eq!(headers[..3], limits);
        assert_eq!(headers[3], format!("retry-after: {retry_after}"));
    };
    for (later_us, wait_us) in [(0, 10 * SECOND), (1, 9_999_999), (999_998, 9_000_001)] {
        world.advance(later_us);
        let (_, decision) = world.decide(WORKER, &get());
        assert_rejected(&mut world, &decision, wait_us, 10);
    }
    assert_eq!(world.redis.commands.len(), sent, "no command was sent");
    let limited = "rate_limiter_requests_total.tier.slow.status.limited".to_owned();
    world.assert_update(WORKER, StatUpdate::Count(limited, 4));

    world.advance(1);
    // After a second one request waits for Redis.
    let id = world.start(WORKER, &get());
    for _ in 0..5 {
        assert_eq!(world.decided(WORKER, &get()), "Rejected", "and the others are rejected");
    }
    world.advance(MS);
    let decision = only(world.exchange(WORKER), id);
    assert_rejected(&mut world, &decision, 8_999_000, 9);
    assert_eq!(world.decided(WORKER, &get()), "Rejected");
    assert_eq!(world.redis.commands.len(), sent + 1);

    let other = world.decide_with_redis(WORKER, &get().from("192.0.2.99:1"));
    assert_eq!(kind(&other), "Admitted", "another caller is not rejected");
    assert_eq!(world.decided(OTHER, &get()), "AwaitsRedis", "another worker waits for Redis");
}

#[test]
fn the_deny_cache_ends_at_the_microsecond_at_which_a_token_is_due() {
    let tier = r#""default_tier": "t", "tiers": {"t": {"base": {"capacity": 1, "refill_rate": 3}}}"#;
    let mut world = rejected(1, 1, tier);
    world.advance(333_333);
    assert_eq!(world.decided(WORKER, &get()), "Rejected", "a tick early");
    world.advance(1);
    for _ in 0..2 {
        assert_eq!(world.decided(WORKER, &get()), "AwaitsRedis", "all wait for Redis again");
    }
    let decisions = world.exchange(WORKER);
    let kinds: Vec<_> = decisions.iter().map(|(_, decision)| kind(decision)).collect();
    assert_eq!(kinds, ["Admitted", "Rejected"]);
}

#[test]
fn the_deny_cache_forgets_a_caller_whose_reply_does_not_come() {
    let mut world = rejected(1, 1, SLOW);
    world.advance(SECOND);
    let id = world.start(WORKER, &get());
    assert_eq!(world.decided(WORKER, &get()), "Rejected");
    world.is_frozen = true;
    let decision = only(world.run(TIMEOUT + 5 * MS), id);
    assert_eq!(kind(&decision), "Admitted", "by this Envoy's own bucket");
    assert_eq!(world.decided(WORKER, &get()), "AwaitsRedis", "the next request waits for Redis");
}

#[test]
fn a_reply_to_a_command_before_a_change_is_not_cached_after_it() {
    let mut world = World::new(1, 2, SLOW);
    world.decide_with_redis(WORKER, &get());
    world.is_frozen = true;
    let id = world.start(WORKER, &get());
    world.exchange(WORKER);
    world.is_frozen = false;
    world.post(OTHER, "DEGRADED");
    // Its next request sees the change.
    world.assert_health(WORKER, Health::Degraded);
    assert_eq!(kind(&only(world.exchange(WORKER), id)), "Rejected");
    // The rejection before the change is not cached.
    assert_eq!(world.decided(WORKER, &get()), "AwaitsRedis");
    world.exchange(WORKER);
    assert_eq!(world.decided(WORKER, &get()), "Rejected", "a rejection after the change is cached");
}

#[test]
fn a_rejection_by_the_limit_of_an_older_document_is_not_cached() {
    let mut world = World::new(1, 1, r#""config_source": {"cluster": "files", "tiers": "/tiers.json"}"#);
    let publish = |world: &mut World, refill_rate: &str| {
        let tiers = format!(r#"{{"free": {{"base": {{"capacity": 1, "refill_rate": {refill_rate}}}}}}}"#);
        let Worker { limiter, data, .. } = world.worker(WORKER);
        limiter.begin_publication(Fetched { tiers: Some(Ok(tiers.into())), api_keys: None }, &**data);
        while limiter.is_publishing() {
            limiter.publish(&**data);
        }
    };
    publish(&mut world, "0.1");
    world.decide_with_redis(WORKER, &get());
    let Worker { limiter, data, .. } = world.worker(WORKER);
    let screening = limiter.decider(&**data).screen(&get(), data.now(), false);
    let Screening::Undecided(waiting) = screening else { panic!("it has a bucket") };
    publish(&mut world, "10");
    let Worker { limiter, data, .. } = world.worker(WORKER);
    let start = DecisionStart { id: 101, at: data.now() };
    assert_eq!(kind(&limiter.decider(&**data).charge(&waiting, start)), "AwaitsRedis");
    assert_eq!(kind(&only(world.exchange(WORKER), 101)), "Rejected");
    assert_eq!(world.decided(WORKER, &get()), "AwaitsRedis");
}

#[test]
fn a_recheck_whose_client_leaves_is_left_to_the_next_request() {
    let mut world = rejected(1, 1, SLOW);
    world.advance(SECOND);
    let Decision::AwaitsRedis(command) = world.decide(WORKER, &get()).1 else { panic!("it is a recheck") };
    assert_eq!(world.decided(WORKER, &get()), "Rejected");
    world.worker(WORKER).limiter.cancel(command);
    assert_eq!(world.decided(WORKER, &get()), "AwaitsRedis");
}

#[test]
fn a_recheck_that_is_shed_is_left_to_the_next_request() {
    let mut world = rejected(1, 1, SLOW);
    world.advance(SECOND);
    let Worker { limiter, data, .. } = world.worker(WORKER);
    let screening = limiter.decider(&**data).screen(&get(), data.now(), false);
    let Screening::Undecided(limited) = screening else { panic!("it has a bucket") };
    let is_rejected = |limiter: &mut Limiter, id| {
        let start = DecisionStart { id, at: data.now() };
        limiter.decider(&**data).reject_if_empty(&limited, start).is_some()
    };
    assert!(!is_rejected(limiter, 101), "it waits for a place");
    assert!(is_rejected(limiter, 102));
    limiter.release(&limited, 102);
    assert!(is_rejected(limiter, 103), "the recheck is not that request's");
    limiter.release(&limited, 101);
    assert!(!is_rejected(limiter, 104));
}

#[test]
fn at_a_recheck_one_request_waits_for_a_place_and_then_for_redis() {
    let mut world = rejected(1, 1, SLOW);
    world.advance(SECOND);
    let Worker { limiter, data, .. } = world.worker(WORKER);
    let start = |id, later_us| DecisionStart { id, at: data.now().after(Duration::from_micros(later_us)) };
    let mut decider = limiter.decider(&**data);
    let Screening::Undecided(limited) = decider.screen(&get(), data.now(), false) else {
        panic!("it has a bucket")
    };
    assert!(decider.reject_if_empty(&limited, start(101, 0)).is_none(), "it waits for a place");
    for id in [102, 103] {
        let decision = decider.reject_if_empty(&limited, start(id, 1)).expect("it is rejected");
        assert_eq!(kind(&decision), "Rejected");
    }
    assert_eq!(kind(&decider.charge(&limited, start(104, MS))), "Rejected");
    assert_eq!(kind(&decider.charge(&limited, start(101, 2 * MS))), "AwaitsRedis", "it has its place");
}
