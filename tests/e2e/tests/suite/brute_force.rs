//! Guessing the admin token.

use std::thread::sleep;
use std::time::Duration;

use e2e::client::{Connection, Request, Response};
use e2e::envoy::Envoy;
use e2e::load;
use e2e::setup::Setup;

use crate::support::{TOKEN, health, two_tiers};

fn attempt(envoy: &Envoy, token: &str, forwarded_for: &str) -> Response {
    // A connection of its own each time, so that every worker gets its share of the guesses.
    Connection::open(envoy.address()).send(
        &Request::post("/system/health", r#"{"status":"DEGRADED"}"#)
            .header("X-Admin-Token", token)
            .forwarded_for(forwarded_for),
    )
}

#[track_caller]
fn assert_throttled(reply: &Response) {
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!((1..=60).contains(&reply.number("retry-after")));
    assert_eq!(reply.one("content-type"), "application/json");
}

#[test]
fn five_wrong_tokens_a_minute_close_the_endpoint_to_that_address_on_every_worker() {
    let envoy = Setup::new().config(&two_tiers(100, 7)).trusted_hops(1).workers(4).start();
    let guesser = "203.0.113.1";
    for n in 0..5 {
        assert_eq!(attempt(&envoy, &format!("guess-{n}"), guesser).status, 403);
    }
    for n in 5..25 {
        assert_throttled(&attempt(&envoy, &format!("guess-{n}"), guesser));
    }
    let closed = attempt(&envoy, TOKEN, guesser);
    assert_throttled(&closed);
    assert_eq!(health(&envoy), "NORMAL", "even the right token is not compared");

    let read = Request::get("/system/health").forwarded_for(guesser);
    assert_eq!(envoy.send(&read).status, 200, "reading stays open");
    assert_eq!(attempt(&envoy, TOKEN, "203.0.113.2").status, 200, "another address");

    // What is refused meanwhile must not push the end further away.
    sleep(Duration::from_secs(closed.number("retry-after")));
    assert_eq!(attempt(&envoy, TOKEN, guesser).status, 200);
}

#[test]
fn right_tokens_never_close_the_endpoint() {
    let envoy = Setup::new().config(&two_tiers(100, 7)).start();
    for _ in 0..4 {
        let wrong = Request::post("/system/health", "").header("X-Admin-Token", "c4nary-wrong");
        assert_eq!(envoy.send(&wrong).status, 403);
    }
    for _ in 0..30 {
        crate::support::switch(&envoy, "DEGRADED");
    }
}

#[test]
fn ipv6_guessers_are_grouped_as_callers_are() {
    let envoy = Setup::new().config(&two_tiers(100, 7)).trusted_hops(1).start();
    for host in 1..=5 {
        assert_eq!(attempt(&envoy, "c4nary-wrong", &format!("2001:db8::{host}")).status, 403);
    }
    assert_throttled(&attempt(&envoy, "c4nary-wrong", "2001:db8::6"));
    assert_eq!(attempt(&envoy, "c4nary-wrong", "2001:db8:0:1::1").status, 403);
}

#[test]
fn guesses_that_come_at_once_are_not_counted_short() {
    let envoy = Setup::new().config(&two_tiers(100, 7)).trusted_hops(1).workers(4).start();
    for round in 1..=100 {
        let guess = Request::post("/system/health", "")
            .header("X-Admin-Token", "c4nary-wrong")
            .forwarded_for(&format!("203.0.113.{round}"));
        let tally = load::burst(envoy.address(), 24, 1, &guess);
        assert_eq!(load::count(&tally, 403), 5, "round {round}: {tally:?}");
        assert_eq!(load::count(&tally, 429), 24 - 5, "round {round}: {tally:?}");
    }
}
