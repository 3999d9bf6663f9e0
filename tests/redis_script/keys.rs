//! What the script does to keys in Redis, by the limiter's own command and on the clock of Redis.

use std::time::UNIX_EPOCH;

use dynamic_rate_limiter::store::redis::script::{Script, TAKE, TAKE_SHA1};
use redis::{ErrorKind, ServerErrorKind};

use super::*;

#[test]
fn the_hash_is_the_one_that_redis_computes() {
    assert_eq!(Client::start().redis.command(&["SCRIPT", "LOAD", TAKE]).text(), TAKE_SHA1);
}

#[test]
fn the_key_is_kept_until_it_is_full_again_at_either_health_and_no_longer() {
    let mut lua = LuaBucket::start();
    let per_day = limit(1_000, 11_574);
    // (limit, the other limit, ttl, requests before, how long it is kept after one more)
    let cases = [
        (per_day, per_day, 1_000, 0, 86_401),
        (per_day, per_day, 1_000, 1, 172_801),
        (per_day, per_day, 100_000, 0, 100_000),
        (limit(25, 2_000_000), limit(15, 2_000_000), 1, 0, 500),
        (limit(25, 2_000_000), limit(26, 1_000_000), 1, 0, 2_000),
        (limit(3, 10_000), limit(25, 2_000_000), 1, 0, 100_000),
        (limit(3, 1_000_000), limit(0, 0), 1, 0, 1_000),
    ];
    for (number, (limit, other_limit, ttl_ms, before, wanted_ms)) in cases.into_iter().enumerate() {
        let take = Take { key: format!("kept:{number}"), limit, other_limit, ttl_ms };
        let seen = (0..=before).map(|_| lua.run(&take, YEAR_2024)).last().expect("one request at least");
        let kept_ms = seen.kept_ms.expect("a key");
        let wanted = wanted_ms - wanted_ms.min(100)..=wanted_ms + 1;
        assert!(wanted.contains(&kept_ms), "{kept_ms} ms: {take:?}");
    }
}

#[test]
fn the_key_expires_after_its_ttl_and_every_request_renews_it() {
    let mut client = Client::start();
    let slow = limit(1, 100_000);
    let take = Take { key: "kept".to_owned(), limit: slow, other_limit: slow, ttl_ms: 50_000 };
    // A new bucket is kept, and each refusal keeps it longer.
    for (script, admitted) in [(Script::Text, true), (Script::Hash, false), (Script::Text, false)] {
        let taken = client.take(&take, 7, script).expect("a reply");
        assert_eq!((taken.sequence, taken.admitted), (7, admitted));
        let clock_us = UNIX_EPOCH.elapsed().expect("a clock after 1970").as_micros() as u64;
        assert!(clock_us.abs_diff(taken.now_us) < 20 * SECOND, "it is Redis' clock");
        let ttl_ms = client.redis.command(&["PTTL", "kept"]).integer();
        // The reply to the second command may come later than the first one.
        assert!((30_000..=50_000).contains(&ttl_ms), "{ttl_ms} ms");
        client.redis.command(&["PEXPIRE", "kept", "20000"]);
    }
    let stored = client.redis.command(&["HGET", "kept", "last_refill"]).text();
    // A clock that is behind the stored time.
    client.redis.command(&["HSET", "kept", "last_refill", "9999999999"]);
    assert!(!client.take(&take, 8, Script::Hash).expect("a reply").admitted);
    assert!(client.redis.command(&["PTTL", "kept"]).integer() > 30_000, "a refusal after a step back");
    let again = client.redis.command(&["HGET", "kept", "last_refill"]).text();
    assert!(again >= stored && again.as_str() < "9999999999", "continues from the present clock");

    let longest =
        Take { key: "longest".to_owned(), limit: limit(MAX_CAPACITY, 1), other_limit: slow, ttl_ms: 1_000 };
    let taken = client.take(&longest, u32::MAX, Script::Hash).expect("a reply");
    assert_eq!((taken.sequence, taken.admitted), (u32::MAX, true));
    client.redis.command(&["HSET", "longest", "tokens", "0"]);
    assert!(!client.take(&longest, 1, Script::Hash).expect("a reply").admitted);
    assert!(client.redis.command(&["PTTL", "longest"]).integer() > 9_000_000_000_000_000);
}

#[test]
fn a_key_that_is_no_bucket_is_an_error_and_stays_unchanged() {
    let mut client = Client::start();
    client.redis.command(&["SET", "string", "mine"]);
    let error = client.take(&take_of("string", limit(1, 1)), 1, Script::Text).expect_err("no bucket");
    assert_eq!(error.code(), Some("WRONGTYPE"), "the session recognises it by its first word: {error}");
    assert_eq!(client.redis.command(&["GET", "string"]).text(), "mine");
    assert_eq!(client.redis.command(&["PTTL", "string"]).integer(), -1, "and does not expire");
}

#[test]
fn a_missing_script_is_an_error() {
    let mut client = Client::start();
    let take = take_of("key", limit(1, 1));
    let error = client.take(&take, 1, Script::Hash).expect_err("no script");
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::NoScript), "{error}");
    for (sequence, script, admitted) in [(2, Script::Text, true), (3, Script::Hash, false)] {
        let taken = client.take(&take, sequence, script).expect("a reply");
        assert_eq!((taken.sequence, taken.admitted), (sequence, admitted), "EVAL makes the hash known");
    }
}
