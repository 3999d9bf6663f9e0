//! The contents of Redis, and how an operator can change them.

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::wait::{self, unix_now};
use e2e::{http2, load};
use serde_json::{Value, json};

use super::{assert_no_failures, clients, health_report, long_timeout_setup};
use crate::support::{assert_headers_complete, tier, two_tiers};

/// The delay that a slow machine may add.
const SLACK_SECONDS: f64 = 5.0;

fn start(config: Value) -> (Redis, Envoy) {
    let redis = Redis::start();
    let envoy = long_timeout_setup(config, &redis).start();
    (redis, envoy)
}

#[track_caller]
fn assert_shape(text: &str, decimals: usize) -> f64 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    assert!(!whole.is_empty() && digits(whole) && digits(fraction), "{text:?} is a decimal");
    assert_eq!(fraction.len(), decimals, "decimals of {text:?}");
    text.parse().expect("a decimal")
}

#[test]
fn hgetall_shows_the_bucket_of_a_key() {
    let (redis, envoy) = start(two_tiers(5, 10));
    for remaining in [9, 8, 7] {
        let before = unix_now();
        let reply = envoy.send(&Request::get("/").key("pro"));
        assert_eq!((reply.status, reply.remaining()), (200, remaining));
        let (tokens, last_refill) = redis.bucket("rate_limit:pro").expect("the bucket");
        let tokens = assert_shape(&tokens, 12);
        assert!((remaining as f64..remaining as f64 + 0.1).contains(&tokens), "{tokens} of {remaining}");
        let last_refill = assert_shape(&last_refill, 6);
        assert!((before - 0.001..=unix_now() + 0.001).contains(&last_refill), "{last_refill} is now");
    }
    assert_eq!(redis.bucket("rate_limit:pro").expect("the bucket").0.len(), "7.000000000000".len());
}

#[test]
fn a_bucket_expires_exactly_when_it_is_full_again_and_its_ttl_is_over() {
    let limited = |capacity: u64, refill_rate: f64, ttl: u64| json!({"base": {"capacity": capacity, "refill_rate": refill_rate}, "ttl": ttl});

    let cases = [
        ("kept-for-ttl", limited(5, 1.0, 30)),
        ("full-before-ttl", limited(100, 1.0, 10)),
        ("a-thousand-a-day", limited(1_000, 0.011574, 10)),
        ("slow", limited(10, 0.01, 1)),
        ("fast", limited(1_000, 1_000.0, 60)),
    ];
    let mut config = json!({"tiers": {"free": tier(10, 1.0)}, "api_keys": {}});
    for (name, tier) in &cases {
        config["tiers"][name] = tier.clone();
        config["api_keys"][name] = json!({"tier": name, "id": name});
    }
    let (redis, envoy) = start(config);
    for (name, tier) in &cases {
        for request in 1..=2 {
            envoy.send(&Request::get("/").key(name));
            let left = redis.command(&["PTTL", &format!("rate_limit:{name}")]).integer() as f64 / 1_000.0;
            let rate = tier["base"]["refill_rate"].as_f64().expect("a rate");
            let full_in = f64::from(request) / rate;
            let kept = full_in.max(tier["ttl"].as_f64().expect("a ttl"));
            assert!((kept - SLACK_SECONDS..=kept + 0.01).contains(&left), "{name}: {left} s of {kept} s");
        }
    }
    envoy.send(&Request::get("/"));
    for key in redis.keys() {
        assert!(redis.command(&["PTTL", &key]).integer() > 0, "{key} expires");
    }
}

#[test]
fn a_bucket_that_an_operator_writes_is_used() {
    let (redis, envoy) = start(two_tiers(3, 10));
    let request = Request::get("/").key("pro");
    assert_eq!(envoy.send(&request).remaining(), 9);
    for (tokens, remaining) in [("4", 3), ("2.5", 1), ("8.000000000000", 7)] {
        redis.command(&["HSET", "rate_limit:pro", "tokens", tokens]);
        assert_eq!(envoy.send(&request).remaining(), remaining, "{tokens} tokens");
    }
    redis.command(&["HSET", "rate_limit:pro", "tokens", "0"]);
    assert_eq!(envoy.send(&request).status, 429);
}

#[test]
fn an_invalid_bucket_affects_only_its_own_caller() {
    let (redis, envoy) = start(two_tiers(100, 10));
    let mut connection = envoy.connect();
    let keyed = Request::get("/").key("pro");
    // Invalid fields count as a full bucket.
    for (tokens, last_refill) in [("many", "0"), ("", ""), ("-5", "1e9"), ("1e300", "nan"), ("7", "x")] {
        redis.command(&["DEL", "rate_limit:pro"]);
        redis.command(&["HSET", "rate_limit:pro", "tokens", tokens, "last_refill", last_refill]);
        let reply = connection.send(&keyed);
        assert_eq!((reply.status, reply.remaining()), (200, 9), "{tokens:?} {last_refill:?}");
    }
    // Another type is an error of that key alone: the worker decides for its caller, the breaker stays closed.
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
    let requests: Vec<_> = (0..80).map(|n| Request::get("/").key(format!("client-{}", n % 8))).collect();
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
    assert_eq!(redis.bucket("rate_limit:client-3").expect("a bucket").0.split('.').next(), Some("399950"));
}

#[test]
fn clients_that_disconnect_while_they_wait_do_not_affect_others() {
    let redis = Redis::start();
    let envoy = long_timeout_setup(clients(4), &redis).start();
    let request = |client: usize| Request::get("/").key(format!("client-{client}"));
    let first = load::burst(envoy.address(), 6, 4, &request(0));
    assert_eq!(load::count(&first, 200), 24);
    redis.freeze();
    let mut staying: Vec<_> = (0..6).map(|_| envoy.connect()).collect();
    for round in 0..3 {
        let mut leaving: Vec<_> = (0..10).map(|_| envoy.connect()).collect();
        for connection in &mut leaving {
            connection.write(&request(1).encode()).expect("written");
        }
        for connection in staying.iter_mut().skip(round * 2).take(2) {
            connection.write(&request(2).encode()).expect("written");
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
        assert_eq!(connection.send(&request(3)).tier(), "client-3");
    }
    let left = redis.bucket("rate_limit:client-3").expect("a bucket").0;
    assert_eq!(left.split('.').next(), Some("399994"));
    wait::until("counted", || (super::total(&envoy, super::REQUESTS) >= 36.0).then_some(()));
    assert_no_failures(&envoy);
}
