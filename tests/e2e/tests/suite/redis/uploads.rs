//! A request with a body waits for Redis like any other, and its body arrives complete.

use std::thread;
use std::time::Duration;

use e2e::client::{Request, Response};
use e2e::envoy::Envoy;
use e2e::http2;
use e2e::redis::Redis;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use serde_json::json;

use super::{LONG_TIMEOUT_MS, in_redis, long_timeout_setup};
use crate::support::two_tiers;

/// Several times Envoy's buffer limit, above which it answers 413.
const LENGTH: usize = 5 << 20;

/// A body in which a lost, doubled or moved part is detected.
fn body() -> Vec<u8> {
    (0..LENGTH as u32 / 4).flat_map(u32::to_be_bytes).collect()
}

type Upload = fn(&Envoy) -> Response;

/// The ways to send it, by name.
fn uploads() -> [(&'static str, Upload); 3] {
    [
        ("with a length", |envoy| envoy.send(&Request::post("/sized", body()).key("pro"))),
        ("in chunks", |envoy| {
            let chunks = body().chunks(100_000).map(<[u8]>::to_vec).collect();
            envoy.send(&Request::new("POST", "/chunked").key("pro").chunks(chunks))
        }),
        ("over HTTP/2", |envoy| {
            http2::send(envoy.address(), &Request::post("/http2", body()).header("x-api-key", "pro"))
        }),
    ]
}

#[track_caller]
fn assert_arrived(upstream: &Upstream, uploads: usize) {
    let received = upstream.received();
    assert_eq!(received.len(), uploads);
    for request in received {
        assert_eq!(request.body.len(), LENGTH, "bytes for {}", request.target);
        assert!(request.body == body(), "{} arrived as it was sent", request.target);
    }
}

#[test]
fn a_large_upload_arrives_complete_if_redis_answers_at_once() {
    let (redis, upstream) = (Redis::start(), Upstream::start(|_| Answer::ok("taken")));
    let envoy = long_timeout_setup(two_tiers(5, 10), &redis).upstream(upstream.address()).start();
    for (nth, (name, upload)) in uploads().iter().enumerate() {
        let reply = upload(&envoy);
        assert_eq!((reply.status, reply.text().as_str()), (200, "taken"), "{name}");
        assert_eq!(reply.remaining(), 9 - nth as u64, "{name}");
    }
    assert_arrived(&upstream, 3);
}

#[test]
fn a_large_upload_that_waits_for_redis_arrives_complete() {
    let (redis, upstream) = (Redis::start(), Upstream::start(|_| Answer::ok("taken")));
    let envoy = long_timeout_setup(two_tiers(5, 10), &redis).upstream(upstream.address()).start();
    envoy.send(&Request::get("/first").key("pro"));
    for (nth, (name, upload)) in uploads().iter().enumerate() {
        redis.freeze();
        let reply = thread::scope(|scope| {
            let waiting = scope.spawn(|| upload(&envoy));
            // Long enough for the body to fill all buffers.
            thread::sleep(Duration::from_millis(500));
            assert!(!waiting.is_finished(), "{name}: it waits for Redis");
            redis.thaw();
            waiting.join().expect("an answer")
        });
        assert_eq!((reply.status, reply.text().as_str()), (200, "taken"), "{name}");
        assert_eq!(reply.remaining(), 8 - nth as u64, "{name}");
    }
    let first = upstream.received().remove(0);
    assert_eq!(first.target, "/first");
    let rest: Vec<_> = upstream.received().into_iter().skip(1).collect();
    assert_eq!(rest.len(), 3);
    for request in rest {
        assert!(request.body == body(), "{} arrived as it was sent", request.target);
    }
}

#[test]
fn if_redis_times_out_the_policy_decides_a_large_upload() {
    for (policy, status) in [("local", 200), ("allow", 200), ("deny", 503)] {
        let (redis, upstream) = (Redis::start(), Upstream::start(|_| Answer::ok("taken")));
        let config = in_redis(two_tiers(5, 10), LONG_TIMEOUT_MS / 10, policy);
        let envoy = Setup::new().config(&config).redis(redis.address()).upstream(upstream.address()).start();
        redis.freeze();
        for (name, upload) in uploads() {
            assert_eq!(upload(&envoy).status, status, "{name}, {policy}");
        }
        if status == 200 {
            assert_arrived(&upstream, 3);
        } else {
            assert_eq!(upstream.targets(), [""; 0]);
        }
    }
}

#[test]
fn a_large_upload_of_a_refused_caller_is_refused_without_reading_its_body() {
    let (redis, upstream) = (Redis::start(), Upstream::start(|_| Answer::ok("taken")));
    let envoy = long_timeout_setup(two_tiers(5, 1), &redis).upstream(upstream.address()).start();
    assert_eq!(envoy.send(&Request::get("/first").key("pro")).status, 200);
    for (name, upload) in uploads().into_iter().take(2) {
        assert_eq!(upload(&envoy).status, 429, "{name}");
    }
    assert_eq!(upstream.targets(), ["/first"]);
}

#[test]
fn an_admin_request_changes_health_with_a_slow_redis() {
    let redis = Redis::start();
    let envoy = long_timeout_setup(two_tiers(5, 10), &redis).start();
    crate::support::set_health(&envoy, "NORMAL");
    redis.freeze();
    let body = json!({"status": "DEGRADED"}).to_string().into_bytes();
    let request = Request::new("POST", "/system/health")
        .header("X-Admin-Token", crate::support::TOKEN)
        .chunks(body.iter().map(|byte| vec![*byte]).collect());
    let reply = thread::scope(|scope| {
        let waiting = scope.spawn(|| envoy.send(&request));
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "it waits for Redis");
        redis.thaw();
        waiting.join().expect("an answer")
    });
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(redis.command(&["GET", super::health::KEY]).text(), "DEGRADED");
}
