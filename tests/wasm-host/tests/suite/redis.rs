//! Requests that Redis decides, and requests during failures of Redis.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use scenarios::Request;
use wasm_host::redis::Mode;
use wasm_host::secrets::{API_KEY, REDIS_PASSWORD, REDIS_USER};
use wasm_host::{Setup, World};

use crate::support::{configuration, keyed, redis_configuration, redis_setup, redis_world};

fn client(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n as u32)
}

fn from_client(n: usize) -> Request {
    Request::get("/").from(&client(n).to_string())
}

#[test]
fn envoys_share_each_bucket_exactly_with_fragmented_bytes() {
    for piece_bytes in [usize::MAX, 1, 3, 7] {
        let mut world = World::start(redis_setup("local").envoys(2).workers(2));
        world.redis.model.password = Some((Some(REDIS_USER), REDIS_PASSWORD));
        world.redis.piece_bytes = piece_bytes;
        let admitted = (0..12).filter(|turn| world.get(turn % 4, &keyed()).status == 200).count();
        assert_eq!(admitted, 5, "pieces of {piece_bytes}");
        assert_eq!(world.get(3, &Request::get("/")).remaining(), 2);
        assert!(world.redis.model.buckets.contains_key("rate_limit:pro"));
    }
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
    assert_eq!(world.get(0, &keyed()).remaining(), 3);
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
    assert!(world.response(id).is_none());
    world.redis_starts();
    world.trailers(id);
    world.settle();
    let got = world.forwarded(id).expect("a forwarded request");
    assert_eq!((got.body.len(), got.has_trailers), (body.len(), true));
    assert!(world.vms.iter_mut().all(|vm| vm.memory_bytes() <= 3 << 20), "no VM has buffered the body");
}

/// The world searches all commands for secrets when it is dropped.
#[test]
fn nothing_of_a_request_is_sent_to_redis() {
    let mut world = redis_world("local");
    for key in [API_KEY, "c4nary-unknown", "c4nary c4nary"] {
        world.get(0, &Request::get("/c4nary?c4nary=c4nary").key(key));
    }
    let received = String::from_utf8_lossy(&world.redis.received).into_owned();
    assert!(received.matches("EVALSHA").count() >= 2, "{received}");
}

/// A period starts Envoy's timer anew.
#[test]
fn a_queue_that_comes_and_goes_does_not_put_the_next_tick_off() {
    let store =
        r#", "store": {"kind": "redis", "cluster": "redis", "timeout_ms": 1000}, "health": {"mode": "auto"}"#;
    let mut world = World::start(Setup::new(configuration(store)));
    world.upstream.waits = true;
    let mut sent = 0;
    let mut send = |world: &mut World| {
        sent += 1;
        world.send(0, &from_client(sent))
    };
    let mut ids: VecDeque<_> = (0..20).map(|_| send(&mut world)).collect();
    world.advance_ms(1);
    let cost = world.cost(0, |world| {
        for _ in 0..10 {
            while let Some(id) = ids.pop_front().filter(|_| !world.undecided().is_empty()) {
                world.upstream_answers(id);
                world.settle();
            }
            while world.undecided().is_empty() {
                ids.push_back(send(world));
            }
        }
    });
    let periods = cost.calls.get("set_tick_period_milliseconds").copied().unwrap_or_default();
    assert!(periods <= 1, "{:?}", cost.calls);
}
