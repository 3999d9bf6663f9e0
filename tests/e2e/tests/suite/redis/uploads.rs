//! A request with a body waits for Redis like any other, and its body arrives complete.

use std::thread;
use std::time::Duration;

use e2e::client::{Request, Response};
use e2e::envoy::Envoy;
use e2e::http2;
use e2e::redis::Redis;
use e2e::upstream::{Answer, Received, Upstream};
use serde_json::json;

use super::{LONG_TIMEOUT_MS, long_timeout_setup, redis_setup};
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
        ("over HTTP/2", |envoy| http2::send(envoy.address(), &Request::post("/http2", body()).key("pro"))),
    ]
}

#[track_caller]
fn assert_arrived(received: &[Received]) {
    assert_eq!(received.len(), uploads().len());
    for request in received {
        assert_eq!(request.body.len(), LENGTH, "bytes for {}", request.target);
        assert!(request.body == body(), "{} arrived as it was sent", request.target);
    }
}

/// Calls `send` with Redis frozen for this long. Checks that the response waits for Redis.
#[track_caller]
fn while_frozen(redis: &Redis, frozen: Duration, send: impl FnOnce() -> Response + Send) -> Response {
    redis.freeze();
    thread::scope(|scope| {
        let waiting = scope.spawn(send);
        thread::sleep(frozen);
        assert!(!waiting.is_finished(), "it waits for Redis");
        redis.thaw();
        waiting.join().expect("an answer")
    })
}

/// Checks that every upload is admitted and arrives complete, after the request `first` if there is one. `respond` gets
/// the function that sends an upload.
#[track_caller]
fn assert_uploads_arrive(
    first: Option<&Request>,
    respond: fn(&Redis, &(dyn Fn() -> Response + Sync)) -> Response,
) {
    let (redis, upstream) = (Redis::start(), Upstream::start(|_| Answer::ok("taken")));
    let envoy = long_timeout_setup(two_tiers(5, 10), &redis).upstream(upstream.address()).start();
    first.iter().for_each(|first| drop(envoy.send(first)));
    let before = usize::from(first.is_some());
    for (nth, (name, upload)) in uploads().iter().enumerate() {
        eprintln!("{name}");
        let reply = respond(&redis, &|| upload(&envoy));
        assert_eq!((reply.status, reply.text().as_str()), (200, "taken"), "{name}");
        assert_eq!(reply.remaining(), 9 - (before + nth) as u64, "{name}");
    }
    assert_arrived(&upstream.received()[before..]);
}

#[test]
fn a_large_upload_arrives_complete_if_redis_answers_at_once() {
    assert_uploads_arrive(None, |_, send| send());
}

#[test]
fn a_large_upload_that_waits_for_redis_arrives_complete() {
    // Long enough for the body to fill all buffers.
    let first = Request::get("/first").key("pro");
    assert_uploads_arrive(Some(&first), |redis, send| while_frozen(redis, Duration::from_millis(500), send));
}

#[test]
fn if_redis_times_out_the_policy_decides_a_large_upload() {
    for (policy, status) in [("local", 200), ("allow", 200), ("deny", 503)] {
        let (redis, upstream) = (Redis::start(), Upstream::start(|_| Answer::ok("taken")));
        let setup = redis_setup(two_tiers(5, 10), LONG_TIMEOUT_MS / 10, policy, redis.address());
        let envoy = setup.upstream(upstream.address()).start();
        redis.freeze();
        for (name, upload) in uploads() {
            assert_eq!(upload(&envoy).status, status, "{name}, {policy}");
        }
        if status == 200 {
            assert_arrived(&upstream.received());
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
    let body = json!({"status": "DEGRADED"}).to_string().into_bytes();
    let request = Request::new("POST", "/system/health")
        .header("X-Admin-Token", crate::support::TOKEN)
        .chunks(body.iter().map(|byte| vec![*byte]).collect());
    let reply = while_frozen(&redis, Duration::from_millis(300), || envoy.send(&request));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(redis.command(&["GET", super::health::KEY]).text(), "DEGRADED");
}
