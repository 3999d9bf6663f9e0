//! Guessing the admin token.

use std::time::Duration;

use crate::support::{TOKEN, two_tiers};
use crate::{Gateway, Host, Request, Response, Setup};

fn attempt(gateway: &mut dyn Gateway, token: &str, address: &str) -> Response {
    let request = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    gateway.send(&request.header("X-Admin-Token", token).from(address))
}

#[track_caller]
fn assert_throttled(reply: &Response) {
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!((1..=60).contains(&reply.number("retry-after")));
    assert_eq!(reply.one("content-type"), "application/json");
}

pub fn after_five_wrong_tokens_a_minute_every_worker_refuses_that_address(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(100, 7)).addresses().workers(4));
    let guesser = "203.0.113.1";
    for n in 0..5 {
        assert_eq!(attempt(&mut *gateway, &format!("guess-{n}"), guesser).status, 403);
    }
    for n in 5..25 {
        assert_throttled(&attempt(&mut *gateway, &format!("guess-{n}"), guesser));
    }
    let throttled = attempt(&mut *gateway, TOKEN, guesser);
    assert_throttled(&throttled);
    assert_eq!(gateway.health(), "NORMAL", "a valid token is not compared either");

    let read = Request::get("/system/health").from(guesser);
    assert_eq!(gateway.send(&read).status, 200, "reading is not throttled");
    assert_eq!(attempt(&mut *gateway, TOKEN, "203.0.113.2").status, 200, "another address");

    // The refused attempts meanwhile must not extend the time.
    gateway.advance(Duration::from_secs(throttled.number("retry-after")));
    assert_eq!(attempt(&mut *gateway, TOKEN, guesser).status, 200);
}

pub fn valid_tokens_are_never_throttled(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(100, 7)));
    for _ in 0..4 {
        let wrong = Request::post("/system/health", "").header("X-Admin-Token", "c4nary-wrong");
        assert_eq!(gateway.send(&wrong).status, 403);
    }
    for _ in 0..30 {
        gateway.set_health("DEGRADED");
    }
}

pub fn ipv6_addresses_of_guesses_are_grouped_like_callers(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(100, 7)).addresses());
    for host in 1..=5 {
        assert_eq!(attempt(&mut *gateway, "c4nary-wrong", &format!("2001:db8::{host}")).status, 403);
    }
    assert_throttled(&attempt(&mut *gateway, "c4nary-wrong", "2001:db8::6"));
    assert_eq!(attempt(&mut *gateway, "c4nary-wrong", "2001:db8:0:1::1").status, 403);
}
