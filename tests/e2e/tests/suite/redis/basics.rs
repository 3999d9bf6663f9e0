//! The contents of Redis, and how an operator can change them.

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::wait::{self, unix_now};
use e2e::{http2, load};
use serde_json::Value;

use super::{assert_no_failures, client_request, clients, health_report, long_timeout_setup, whole_tokens};
use crate::support::{ONE_PER_HOUR, assert_headers_complete, two_tiers};

/// The delay that a slow machine may add.
const SLACK_SECONDS: f64 = 5.0;

fn start(config: Value) -> (Redis, Envoy) {
    let redis = Redis::start();
    let envoy = long_timeout_setup(config, &redis).start();
    (redis, envoy)
}

/// The number in this text, which must have this many decimals.
#[track_caller]
fn decimal(text: &str, decimals: usize) -> f64 {
    let number: f64 = text.parse().expect("a decimal");
    assert_eq!(text, format!("{number:.decimals$}"));
    number
}

#[test]
fn hgetall_shows_the_bucket_of_a_key_which_expires_when_it_is_full_again() {
    let (redis, envoy) = start(two_tiers(5, 10));
    for remaining in [9, 8, 7] {
        let before = unix_now();
        let reply = envoy.send(&Request::get("/").key("pro"));
        assert_eq!((reply.status, reply.remaining()), (200, remaining));
        let (tokens, last_refill) = redis.bucket("rate_limit:pro").expect("the bucket");
        let tokens = decimal(&tokens, 12);
        assert!((remaining as f64..remaining as f64 + 0.1).contains(&tokens), "{tokens} of {remaining}");
        let last_refill = decimal(&last_refill, 6);
        assert!((before - 0.001..=unix_now() + 0.001).contains(&last_refill), "{last_refill} is now");
        let full_in = (10 - remaining) as f64 / ONE_PER_HOUR;
        let kept = full_in.max(3_600.0);
        let left = redis.command(&["PTTL", "rate_limit:pro"]).integer() as f64 / 1_000.0;
        assert!((kept - SLACK_SECONDS..=kept + 0.01).contains(&left), "{left} s of {kept} s");
    }
}

#[test]
fn a_bucket_of_another_type_affects_only_its_own_caller() {
    let (redis, envoy) = start(two_tiers(100, 10));
    let mut connection = envoy.connect();
    let keyed = Request::get("/").key("pro");
    assert_eq!(connection.send(&keyed).remaining(), 9);
    // An error of that key alone: the worker decides for its caller, the breaker stays closed.
    redis.command(&["SET", "rate_limit:pro", "no hash"]);
    for remaining in (0..10).rev() {
        let reply = connection.send(&keyed);
        assert_eq!((reply.status, reply.remaining()), (200, remaining));
    }
    assert_eq!(connection.send(&keyed).status, 429, "the local bucket has the same limit");
    assert_eq!(health_report(&envoy)["redis"], "connected");
    envoy.await_log(&["[warning][wasm]", "WRONGTYPE"]);
    assert_eq!(envoy.log_lines(&["WRONGTYPE"]).len(), 1, "it is logged once a minute");
    assert_eq!(connection.send(&Request::get("/")).remaining(), 99);
    assert!(redis.bucket("rate_limit:127.0.0.1").is_some(), "Redis decides for all other callers");
    redis.command(&["DEL", "rate_limit:pro"]);
    wait::until("Redis decides for the caller again", || {
        connection.send(&keyed);
        redis.bucket("rate_limit:pro")
    });
}

#[test]
fn headers_are_complete_over_http1_http2_and_grpc() {
    let redis = Redis::start();
    let envoy = long_timeout_setup(two_tiers(2, 10), &redis).http2_upstream(http2::grpc_server()).start();
    let call = http2::grpc_call("/demo.Greeter/Hello");
    for remaining in [1, 0] {
        let reply = http2::send(envoy.address(), &call);
        assert_eq!((reply.status, reply.one("grpc-status").as_str()), (200, "0"));
        assert_headers_complete(&reply, "free", 2, "NORMAL");
        assert_eq!(reply.remaining(), remaining);
    }
    // The first is refused by Redis, the second by the worker's deny cache.
    for _ in 0..2 {
        let refused = http2::send(envoy.address(), &call);
        assert_eq!((refused.status, refused.one("grpc-status").as_str()), (200, "8"));
        assert_eq!((refused.limit(), refused.remaining()), (2, 0));
        assert!(refused.number("retry-after") >= 1);
        for reply in [envoy.send(&Request::get("/")), http2::send(envoy.address(), &Request::get("/"))] {
            assert_eq!(reply.status, 429);
            assert_headers_complete(&reply, "free", 2, "NORMAL");
            assert_eq!(reply.text(), "Too Many Requests");
            assert_eq!(reply.one("content-type"), "text/plain");
        }
    }
    let admitted = envoy.send(&Request::post("/", "x").key("pro").header("content-type", "application/grpc"));
    assert_headers_complete(&admitted, "pro", 10, "NORMAL");
}

#[test]
fn each_of_many_streams_of_an_http2_connection_gets_its_own_response() {
    let (redis, envoy) = start(clients(8));
    let requests: Vec<_> = (0..80).map(|n| client_request(n % 8)).collect();
    for round in 1..=5 {
        let replies = http2::send_all(envoy.address(), &requests);
        for client in 0..8 {
            let mine: Vec<_> = replies.iter().skip(client).step_by(8).collect();
            let capacity = super::client_capacity(client);
            let mut remaining: Vec<_> = mine.iter().map(|reply| reply.remaining()).collect();
            remaining.sort_unstable();
            let last = capacity - round * 10;
            assert_eq!(remaining, (last..last + 10).collect::<Vec<_>>(), "client {client}, round {round}");
            for reply in mine {
                assert_headers_complete(reply, &format!("client-{client}"), capacity, "NORMAL");
            }
        }
    }
    assert_eq!(whole_tokens(&redis, "client-3"), 399_950);
}

#[test]
fn clients_that_disconnect_while_they_wait_do_not_affect_others() {
    let redis = Redis::start();
    let envoy = long_timeout_setup(clients(4), &redis).start();
    let first = load::burst(envoy.address(), 6, 4, &client_request(0));
    assert_eq!(load::count(&first, 200), 24);
    redis.freeze();
    let mut staying: Vec<_> = (0..6).map(|_| envoy.connect()).collect();
    for round in 0..3 {
        let mut leaving: Vec<_> = (0..10).map(|_| envoy.connect()).collect();
        for connection in &mut leaving {
            connection.write(&client_request(1).encode()).expect("written");
        }
        for connection in staying.iter_mut().skip(round * 2).take(2) {
            connection.write(&client_request(2).encode()).expect("written");
        }
        for (n, connection) in leaving.into_iter().enumerate() {
            if n % 2 == 0 { connection.reset() } else { drop(connection) }
        }
    }
    redis.thaw();
    let mut remaining: Vec<_> = staying
        .iter_mut()
        .map(|connection| {
            let reply = connection.read("GET").expect("an answer");
            assert_eq!((reply.status, reply.tier().as_str()), (200, "client-2"));
            reply.remaining()
        })
        .collect();
    remaining.sort_unstable();
    let capacity = super::client_capacity(2);
    assert_eq!(remaining, (capacity - 6..capacity).collect::<Vec<_>>(), "each got a token of its own");
    for connection in &mut staying {
        assert_eq!(connection.send(&client_request(3)).tier(), "client-3");
    }
    assert_eq!(whole_tokens(&redis, "client-3"), 399_994);
    wait::until("counted", || (super::total(&envoy, super::REQUESTS) >= 36.0).then_some(()));
    assert_no_failures(&envoy);
}
