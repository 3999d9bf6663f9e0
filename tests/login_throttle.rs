//! The login throttle while thousands of addresses send wrong tokens.

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::login_throttle::{MAX_WRONG_TOKENS, WINDOW};
use dynamic_rate_limiter::time::whole_micros;
use harness::{FakeData, FakeRequest, SECOND, START, TOKEN, decide, limiter};

/// An address that sent the right token first.
const OPERATOR: &str = "192.0.2.1:1";

/// The status of a token from an address; 200 if it is right.
fn status(limiter: &mut Limiter, data: &FakeData, token: &str, source: &str) -> u32 {
    let request = FakeRequest::post("/system/health").with("x-admin-token", token).from(source);
    match decide(limiter, data, &request, START) {
        Decision::Replied(reply) => reply.status,
        Decision::AwaitsBody(_) => 200,
        other => panic!("{other:?}"),
    }
}

fn guesser(number: u32) -> String {
    format!("[2001:db8:0:{number:x}::1]:9")
}

/// A limiter with an operator, in which every record is full.
fn full(data: &FakeData) -> Limiter {
    let mut limiter = limiter(data, "{}");
    assert_eq!(status(&mut limiter, data, TOKEN, OPERATOR), 200);
    let answered = (0..12_000).map(|number| status(&mut limiter, data, "wrong", &guesser(number)));
    let forbidden = answered.filter(|status| *status == 403).count();
    assert_eq!(forbidden, 256 * 16, "the other tokens are not compared");
    assert!(data.size() < 256 * 16 * 64, "{} bytes", data.size());
    limiter
}

#[test]
fn no_token_of_an_unknown_address_is_compared_while_its_record_is_full() {
    let data = FakeData::at(SECOND);
    let mut limiter = full(&data);
    for number in 20_000..23_000 {
        assert_eq!(status(&mut limiter, &data, "wrong", &guesser(number)), 429);
        assert_eq!(status(&mut limiter, &data, TOKEN, &guesser(number)), 429, "with the right token too");
    }
    data.advance(whole_micros(WINDOW) - 1);
    assert_eq!(status(&mut limiter, &data, TOKEN, &guesser(20_000)), 429, "a tick early");
    data.advance(1);
    assert_eq!(status(&mut limiter, &data, TOKEN, &guesser(20_000)), 200, "on time");
}

#[test]
fn the_operator_is_accepted_from_this_machine_and_from_an_address_that_had_the_right_token() {
    let data = FakeData::at(SECOND);
    let mut limiter = full(&data);
    for source in [OPERATOR, "127.0.0.1:1", "[::1]:1"] {
        assert_eq!(status(&mut limiter, &data, TOKEN, source), 200, "{source}");
        for _ in 0..MAX_WRONG_TOKENS {
            assert_eq!(status(&mut limiter, &data, "wrong", source), 403, "{source}");
        }
        assert_eq!(status(&mut limiter, &data, TOKEN, source), 429, "{source} has the usual limit");
    }
    assert_eq!(
        status(&mut limiter, &data, TOKEN, "127.0.0.2:1"),
        429,
        "only the addresses of the operator are exempt"
    );
}

#[test]
fn the_right_token_does_not_reset_the_count_of_wrong_ones() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    for _ in 0..MAX_WRONG_TOKENS - 1 {
        assert_eq!(status(&mut limiter, &data, "wrong", OPERATOR), 403);
    }
    assert_eq!(status(&mut limiter, &data, TOKEN, OPERATOR), 200);
    assert_eq!(status(&mut limiter, &data, "wrong", OPERATOR), 403);
    assert_eq!(status(&mut limiter, &data, TOKEN, OPERATOR), 429, "six within a minute");
}

#[test]
fn the_last_sixteen_addresses_with_the_right_token_are_known() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    let operator = |number: usize| format!("192.0.2.{number}:1");
    for number in 1..=17 {
        assert_eq!(status(&mut limiter, &data, TOKEN, &operator(number)), 200);
    }
    for number in 0..12_000 {
        status(&mut limiter, &data, "wrong", &guesser(number));
    }
    assert_eq!(status(&mut limiter, &data, TOKEN, &operator(1)), 429);
    for number in 2..=17 {
        assert_eq!(status(&mut limiter, &data, TOKEN, &operator(number)), 200);
    }
}
