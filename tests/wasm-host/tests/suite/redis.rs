//! Requests that Redis decides, and requests during failures of Redis.

use std::net::Ipv4Addr;

use wasm_host::redis::Mode;
use wasm_host::{Request, World};

use crate::support::{change, keyed, redis_configuration, redis_setup, redis_world, statuses};
use wasm_host::secrets::{REDIS_PASSWORD, REDIS_USER};

fn client(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n as u32)
}

fn from_client(n: usize) -> Request {
    Request::get("/").from(format!("{}:1", client(n)))
}

#[test]
fn envoys_share_each_bucket_exactly_with_fragmented_bytes() {
    for piece_bytes in [usize::MAX, 1, 3, 7] {
        let mut world = World::start(redis_setup("local").envoys(2).workers(2));
        world.redis.model.password = Some((Some(REDIS_USER), REDIS_PASSWORD));
        world.redis.piece_bytes = piece_bytes;
        let admitted = (0..12).filter(|turn| world.get(turn % 4, &keyed()).status == 200).count();
        assert_eq!(admitted, 5, "pieces of {piece_bytes}");
        let left = world.get(3, &Request::get("/")).header("x-ratelimit-remaining");
        assert_eq!(left, "2");
        assert!(world.redis.model.buckets.contains_key("rate_limit:pro"));
    }
}

#[test]
fn a_caller_in_the_deny_cache_is_refused_without_a_command_until_health_changes() {
    let mut world = redis_world("local");
    assert_eq!(statuses(&mut world, 0, &keyed(), 7), [200, 200, 200, 200, 200, 429, 429]);
    let before = world.redis.model.commands.len();
    let refused = world.get(0, &keyed());
    assert_eq!((refused.status, refused.header("retry-after").as_str()), (429, "1"));
    assert_eq!(world.redis.model.commands.len(), before);
    assert_eq!(world.get(0, &change("DEGRADED")).status, 200);
    assert_eq!(world.get(0, &keyed()).header("x-system-health"), "DEGRADED");
    assert!(world.redis.model.commands.len() > before + 1, "another command");
}

#[test]
fn the_policy_decides_waiting_requests_within_the_timeout_and_a_tick() {
    for (policy, status) in [("local", 200), ("allow", 200), ("deny", 503)] {
        for mode in [Mode::Frozen, Mode::Refuses] {
            let mut world = redis_world(policy);
            world.redis.mode = mode;
            let ids: Vec<_> = (0..3).map(|_| world.send(0, &keyed())).collect();
            world.advance_ms(20 + 10);
            for id in ids {
                let found = world.response(id).map(|response| response.status);
                assert_eq!(found, Some(status), "{policy} {mode:?}");
            }
            assert!(world.undecided().is_empty());
        }
    }
}

#[test]
fn the_breaker_opens_and_recovers_within_five_seconds() {
    let mut world = redis_world("local");
    assert_eq!(world.get(0, &keyed()).status, 200);
    assert!(world.get(0, &Request::get("/health")).text().contains("\"redis\":\"connected\""));
    world.redis.mode = Mode::Frozen;
    for _ in 0..4 {
        world.send(0, &keyed());
        world.advance_ms(30);
    }
    let before = world.redis.received.len();
    assert!(matches!(world.get(0, &keyed()).status, 200 | 429), "no wait");
    assert_eq!(world.redis.received.len(), before, "no command");
    assert!(world.get(0, &Request::get("/health")).text().contains("\"redis\":\"disconnected\""));
    world.advance_ms(3_000);
    world.redis.mode = Mode::Up;
    world.advance_ms(5_000);
    world.get(0, &keyed());
    assert!(world.get(0, &Request::get("/health")).text().contains("\"redis\":\"connected\""));
}

#[test]
fn a_late_reply_decides_no_other_request() {
    let mut world = redis_world("deny");
    assert_eq!(world.get(0, &keyed()).header("x-ratelimit-remaining"), "4");
    world.redis.mode = Mode::Frozen;
    let late = world.send(0, &keyed());
    world.advance_ms(30);
    assert_eq!(world.response(late).map(|response| response.status), Some(503));
    let gone = world.send(0, &Request::get("/").from("192.0.2.7:1"));
    world.disconnect(gone);
    let waits = world.send(0, &Request::get("/").from("192.0.2.8:1"));
    world.redis_starts();
    let response = world.response(waits).expect("an answer");
    assert_eq!((response.status, response.header("x-ratelimit-tier").as_str()), (200, "free"));
    assert!(world.undecided().is_empty());
}

#[test]
fn requests_whose_clients_disconnect_in_the_queue_cost_no_tokens() {
    let mut world = redis_world("deny");
    assert_eq!(world.get(0, &keyed()).status, 200);
    world.redis.mode = Mode::Frozen;
    let ids: Vec<_> = (0..400).map(|n| world.send(0, &from_client(n))).collect();
    ids[200..399].iter().for_each(|id| world.disconnect(*id));
    world.redis_starts();
    assert!(world.undecided().is_empty());
    let has_bucket =
        |n: &usize| world.redis.model.buckets.contains_key(&format!("rate_limit:{}", client(*n)));
    assert_eq!((0..400).filter(has_bucket).collect::<Vec<_>>(), (0..200).chain([399]).collect::<Vec<_>>());
    let admitted = |id: &&usize| world.response(**id).is_some_and(|response| response.status == 200);
    assert_eq!(ids.iter().filter(admitted).count(), 201);
}

#[test]
fn thousands_of_waiting_requests_are_decided_at_the_timeout() {
    let mut world = redis_world("deny");
    assert_eq!(world.get(0, &keyed()).status, 200);
    world.redis.mode = Mode::Frozen;
    let ids: Vec<_> = (0..10_000).map(|n| world.send(0, &from_client(n))).collect();
    assert_eq!(world.undecided().len(), ids.len());
    // The host bounds the instructions and the memory of each callback.
    world.advance_ms(20 + 10);
    assert!(world.undecided().is_empty());
    assert!(ids.iter().all(|id| world.response(*id).is_some_and(|response| response.status == 503)));
}

#[test]
fn a_delivery_while_requests_wait_loses_none_of_them() {
    let mut world = redis_world("local");
    world.redis.mode = Mode::Frozen;
    let waiting = world.send(0, &keyed());
    assert!(world.configure(0, redis_configuration("deny").as_bytes()));
    world.redis_starts();
    world.advance_ms(50);
    assert_eq!(world.response(waiting).map(|response| response.status), Some(200));
    assert_eq!(world.get(0, &keyed()).header("x-ratelimit-remaining"), "3");
}

#[test]
fn an_upload_that_waits_arrives_complete() {
    let mut world = redis_world("local");
    world.redis.mode = Mode::Frozen;
    let request = keyed();
    let id = world.begin(0, &request, false);
    let body = vec![b'u'; 3 << 20];
    for piece in body.chunks(65_536) {
        world.body(id, piece, false);
    }
    world.settle();
    assert_eq!(world.response(id), None);
    world.redis_starts();
    world.trailers(id);
    world.settle();
    let got =
        world.response(id).and_then(|response| response.upstream_got.clone()).expect("a forwarded request");
    assert_eq!((got.body.len(), got.has_trailers), (body.len(), true));
    assert!(world.all_vms().iter_mut().all(|vm| vm.memory_bytes() <= 3 << 20), "no VM has buffered the body");
}

/// Invalid replies, and whether the connection is kept.
#[test]
fn errors_and_garbage_decide_by_policy() {
    let replies = [
        (&b"-LOADING Redis is loading the dataset in memory\r\n"[..], true),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", true),
        (b"-READONLY You can't write against a read only replica.\r\n", true),
        (b"-MOVED 1 127.0.0.1:7001\r\n", true),
        (b":1\r\n", false),
        (b"$3\r\nabc\r\n", false),
        (b"*1\r\n:1\r\n", false),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", false),
        (b"$99999\r\n", false),
        (&[0xff; 5000], false),
    ];
    for (reply, is_kept) in replies {
        let mut world = World::start(crate::support::setup_without_password("deny"));
        assert_eq!(world.get(0, &keyed()).status, 200);
        world.redis.mode = Mode::ByHand;
        let id = world.send(0, &keyed());
        world.redis_sends(0, reply);
        world.settle();
        let shown = String::from_utf8_lossy(reply);
        assert_eq!(world.response(id).map(|response| response.status), Some(503), "{shown}");
        let next = world.send(0, &keyed());
        assert_eq!(world.connections(), if is_kept { 1 } else { 2 }, "{shown}");
        world.advance_ms(30);
        assert_eq!(world.response(next).map(|response| response.status), Some(503), "{shown}");
    }
}
