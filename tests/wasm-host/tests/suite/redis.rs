//! Requests that Redis decides, and requests during failures of Redis.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use scenarios::Request;
use wasm_host::failures::{Act, Failure, status};
use wasm_host::redis::Mode;
use wasm_host::secrets::{API_KEY, REDIS_PASSWORD, REDIS_USER};
use wasm_host::{Setup, World};

use crate::support::{
    HEALTH, change, configuration, keyed, plain_redis_setup, redis_configuration, redis_setup, redis_world,
};

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
fn after_a_rollback_health_reports_a_connected_redis() {
    let old = redis_configuration("local");
    let new = old.replace(r#""cluster": "redis""#, r#""cluster": "unreachable""#);
    let mut setup = Setup::new(&old).workers(2);
    setup.clusters.push("unreachable");
    setup.refusing.push("unreachable");
    let mut world = World::start(setup);
    // The second worker serves no request and cannot connect, as the main thread.
    let refused = Act::Status(status::INTERNAL_FAILURE);
    world.vm(1).script([Failure { call: "proxy_grpc_stream", after: 0, times: u32::MAX, act: refused }]);
    let redis = |world: &mut World| {
        world.get(0, &keyed());
        world.advance_ms(1_000);
        world.get(0, &Request::get("/health")).json()["redis"].clone()
    };
    assert_eq!(redis(&mut world), "connected");
    world.upstream.waits = true;
    let root = world.root(0);
    world.send(0, &Request::get("/websocket"));
    world.upstream.waits = false;
    assert!((0..2).all(|worker| world.configure(worker, new.as_bytes())));
    world.advance_ms(2_000);
    assert_eq!(redis(&mut world), "disconnected");

    world.configure_again(0, root);
    assert!(world.configure(1, old.as_bytes()));
    world.advance_ms(2_000);
    assert_eq!(redis(&mut world), "connected");
}

#[test]
fn a_request_that_waits_just_before_a_poll_does_not_put_it_off() {
    let mut world = redis_world("deny");
    let polls = |world: &World| {
        let is_get = |command: &&Vec<Vec<u8>>| command[0] == b"GET";
        world.redis.model.commands.iter().filter(is_get).count()
    };
    world.advance_ms(1_000);
    let before = polls(&world);
    while polls(&world) == before {
        world.advance_ms(1);
    }
    world.advance_ms(240);
    world.redis.mode = Mode::Frozen;
    // While it waits, deadlines are checked each millisecond.
    world.send(0, &keyed());
    world.advance_ms(8);
    world.redis_starts();
    assert_eq!(polls(&world), before + 1);
    world.advance_ms(10);
    assert_eq!(polls(&world), before + 2);
}

#[test]
fn the_log_says_when_the_circuit_breaker_of_each_worker_opens_and_closes() {
    let mut world = World::start(redis_setup("local").workers(2));
    world.redis.model.password = Some((Some(REDIS_USER), REDIS_PASSWORD));
    let log = |world: &World| {
        let is_status = |line: &&str| {
            ["Redis connected", "Redis lost", "one worker's"].iter().any(|start| line.starts_with(start))
        };
        let log = world.processes[0].log.borrow();
        let lines = log.iter().filter(|(level, _)| *level >= 2).map(|(_, line)| line.as_str());
        let start = |line: &str| line.split([',', ':']).next().unwrap_or_default().to_owned();
        lines.filter(is_status).map(start).collect::<Vec<_>>()
    };
    (0..2).for_each(|worker| drop(world.get(worker, &keyed())));
    world.redis.mode = Mode::Refuses;
    world.redis_disconnects();
    for worker in [0, 0, 0, 1, 1, 1] {
        world.get(worker, &keyed());
    }
    world.redis_starts();
    world.advance_ms(2_000);
    let wanted = [
        "Redis connected",
        "Redis lost",
        "one worker's circuit breaker is open",
        "Redis connected",
        "one worker's circuit breaker is closed",
    ];
    assert_eq!(log(&world), wanted);
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

#[test]
fn the_command_names_bucket_limit_and_expiry() {
    let mut world = World::start(plain_redis_setup(
        r#", "api_keys": {"plain": "pro", "named": {"tier": "late", "id": "acme"}}, "default_tier": "free",
        "tiers": {"free": {"base": {"capacity": 5, "refill_rate": 0.25}, "ttl": 1},
                  "pro": {"base": {"capacity": 15, "refill_rate": 2}, "burst": {"capacity": 25},
                          "degraded": {"capacity": 3, "refill_rate": 0.01}, "ttl": 60},
                  "late": {"base": {"capacity": 10, "refill_rate": 1.000001}, "ttl": 120}}"#,
    ));
    world.redis.model.knows_script = true;
    let get = Request::get("/");
    let cases = [
        (get.clone().key("named"), "rate_limit:acme 10 1000001 120000 1 10 1000001"),
        (get.clone().key("plain"), "rate_limit:a116c9ed46d62077 25 2000000 60000 2 3 10000"),
        (get.clone().from("192.0.2.7:4711"), "rate_limit:192.0.2.7 5 250000 1000 3 5 250000"),
        (get.clone().key("?").from("192.0.2.7"), "rate_limit:192.0.2.7 5 250000 1000 4 5 250000"),
        (get.clone().from("[::ffff:192.0.2.8]:1"), "rate_limit:192.0.2.8 5 250000 1000 5 5 250000"),
        (get.clone().from("[2001:db8::1]:80"), "rate_limit:2001:db8::/64 5 250000 1000 6 5 250000"),
        (get.from("@"), "rate_limit:unknown 5 250000 1000 7 5 250000"),
    ];
    for (request, wanted) in cases {
        world.redis.model.commands.clear();
        world.get(0, &request);
        assert_eq!(world.redis.model.take_commands(), [format!("EVALSHA <sha1> 1 {wanted}")]);
    }
}

#[test]
fn namespace_and_prefix_keep_limiters_on_one_redis_apart() {
    // (fields of the store, other fields, prefix of buckets, key of the health)
    let cases = [
        ("", "", "rate_limit:", HEALTH),
        ("", r#", "namespace": "default""#, "rate_limit:", HEALTH),
        ("", r#", "namespace": "other""#, "rate_limit:other/", "system:health:other:status"),
        (r#", "key_prefix": "rl/""#, r#", "namespace": "default""#, "rl/", HEALTH),
        (r#", "key_prefix": "rl/""#, r#", "namespace": "a-b_C""#, "rl/a-b_C/", "system:health:a-b_C:status"),
    ];
    for (store, fields, prefix, health_key) in cases {
        let store = format!(r#""store": {{"kind": "redis", "cluster": "redis"{store}}}"#);
        let keys = r#""api_keys": {"k": {"tier": "pro", "id": "pro"}}"#;
        let mut world = World::start(Setup::new(format!("{{{store}, {keys}{fields}}}")));
        world.get(0, &Request::get("/").key("k"));
        assert_eq!(world.get(0, &change("DEGRADED")).status, 200);
        world.advance_ms(300);
        let key = format!("{prefix}pro");
        assert_eq!(world.redis.model.buckets.keys().collect::<Vec<_>>(), [&key]);
        assert_eq!(world.redis.model.strings[health_key], b"DEGRADED");
        let commands = world.redis.model.take_commands();
        assert!(commands.contains(&format!("GET {health_key}")), "{commands:?}");
        // Probes have their own bucket.
        world.redis.mode = Mode::Refuses;
        world.redis_disconnects();
        world.advance_ms(2_000);
        world.redis_starts();
        world.advance_ms(3_000);
        let mut keys: Vec<_> = world.redis.model.buckets.keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, [format!("{prefix}#probe"), key]);
    }
}
