//! Responses of a limiter on shared data that only this host can test: exact times, unusual addresses, parts of bodies,
//! chosen workers. Other tests of responses are in the scenarios.

use wasm_host::secrets::API_KEY;
use wasm_host::{Request, Setup, World};

use crate::support::{change, configuration, keyed, statuses, world};

#[test]
fn every_limited_response_has_the_callers_limit_and_remaining_tokens() {
    let mut world = world();
    let admitted = world.get(0, &keyed());
    let expected = [
        ("x-ratelimit-limit", "5"),
        ("x-ratelimit-remaining", "4"),
        ("x-ratelimit-reset", "1700000001"),
        ("x-ratelimit-tier", "pro"),
        ("x-system-health", "NORMAL"),
        ("x-processing-time", "0.0000s"),
    ];
    for (name, value) in expected {
        assert_eq!((admitted.count(name), admitted.header(name).as_str()), (1, value), "{name}");
    }
    assert_eq!(statuses(&mut world, 0, &keyed(), 5), [200, 200, 200, 200, 429]);
    let refused = world.get(0, &keyed());
    assert_eq!((refused.status, refused.text().as_str()), (429, "Too Many Requests"));
    assert_eq!((refused.header("retry-after").as_str(), refused.upstream_got), (("1"), None));
}

#[test]
fn a_caller_is_its_known_key_and_else_its_address() {
    let odd: [(&str, Vec<u8>); 6] = [
        ("none", b"".to_vec()),
        ("unknown", b"unknown".to_vec()),
        ("no UTF-8", b"\xff\xfe".to_vec()),
        ("257 bytes", vec![b'x'; 257]),
        ("64 KiB", vec![b'x'; 65_536]),
        ("another case", API_KEY.to_uppercase().into_bytes()),
    ];
    for (name, key) in odd {
        let mut world = world();
        let request = Request::get("/").key(&key);
        let response = world.get(0, &request);
        assert_eq!((response.header("x-ratelimit-tier").as_str(), response.status), ("free", 200), "{name}");
        assert_eq!(statuses(&mut world, 0, &Request::get("/"), 3), [200, 200, 429], "{name}: one bucket");
        let elsewhere = world.get(0, &request.from("192.0.2.2:1"));
        assert_eq!(elsewhere.header("x-ratelimit-remaining"), "2", "{name}");
    }
}

#[test]
fn addresses_are_grouped_and_invalid_ones_share_a_bucket() {
    let pairs: [(&[u8], &[u8], bool); 5] = [
        (b"192.0.2.1:1", b"192.0.2.1:65535", true),
        (b"[::ffff:192.0.2.1]:1", b"192.0.2.1:2", true),
        (b"[2001:db8::1]:1", b"[2001:db8::2]:1", true),
        (b"[2001:db8::1]:1", b"[2001:db8:0:1::1]:1", false),
        (b"", b"\xff\xff", true),
    ];
    for (one, other, is_same) in pairs {
        let mut world = world();
        world.get(0, &Request::get("/").from(one));
        let left = world.get(0, &Request::get("/").from(other)).header("x-ratelimit-remaining");
        assert_eq!(left, if is_same { "1" } else { "2" }, "{one:?} {other:?}");
    }
}

#[test]
fn a_body_may_arrive_in_parts_and_end_with_trailers_within_ten_seconds() {
    let mut world = world();
    let request = change("DEGRADED");
    let id = world.begin(0, &request, false);
    for byte in br#"{"status":"DEGRADED"}"# {
        world.body(id, &[*byte], false);
    }
    assert_eq!(world.response(id), None);
    world.trailers(id);
    world.settle();
    assert_eq!(world.response(id).map(|response| response.status), Some(200));
    let late = world.begin(0, &request, false);
    world.body(late, b"{", false);
    world.advance_ms(9_000);
    assert_eq!(world.response(late), None);
    world.advance_ms(3_000);
    assert_eq!(world.response(late).map(|response| response.status), Some(408));
    assert_eq!(world.get(0, &keyed()).header("x-system-health"), "DEGRADED");
}

#[test]
fn four_workers_admit_exactly_what_one_bucket_holds() {
    for (request, capacity) in [(keyed(), 5), (Request::get("/"), 3)] {
        let mut world = World::start(Setup::new(configuration("")).workers(4));
        let admitted = (0..40).filter(|turn| world.get(turn % 4, &request).status == 200).count();
        assert_eq!(admitted, capacity);
    }
}

#[test]
fn a_reload_keeps_tokens_and_an_invalid_one_is_rejected() {
    let mut world = world();
    assert_eq!(statuses(&mut world, 0, &keyed(), 4), [200; 4]);
    assert!(!world.configure(0, b"{\"tiers\": {}}"));
    assert!(world.processes[0].has_logged("configuration rejected"));
    assert_eq!(world.get(0, &keyed()).header("x-ratelimit-remaining"), "0");
    assert!(world.configure(0, configuration(r#", "headers": {"ietf": true}"#).as_bytes()));
    let refused = world.get(0, &keyed());
    assert_eq!((refused.status, refused.count("ratelimit")), (429, 1));
}

#[test]
fn documents_are_fetched_and_published_to_all_workers_unless_invalid() {
    let source =
        r#", "config_source": {"cluster": "config_files", "api_keys": "/keys.json", "ttl_seconds": 5}"#;
    let mut world = World::start(Setup::new(configuration(source)).workers(2));
    world
        .documents
        .insert("/keys.json".into(), (200, br#"{"canary-new": {"tier": "pro", "id": "new"}}"#.to_vec()));
    world.advance_ms(1_500);
    for worker in 0..2 {
        assert_eq!(world.get(worker, &Request::get("/").key("canary-new")).header("x-ratelimit-tier"), "pro");
    }
    let bad: [(u32, &[u8]); 5] =
        [(200, b"{"), (200, b"[]"), (503, b"{}"), (200, b"{\"k\": \"unknown\"}"), (204, b"")];
    for answer in bad {
        world.documents.insert("/keys.json".into(), (answer.0, answer.1.to_vec()));
        world.advance_ms(6_000);
        assert_eq!(world.get(1, &Request::get("/").key("canary-new")).header("x-ratelimit-tier"), "pro");
    }
    assert!(world.processes[0].stat("rate_limiter_config_reloads_total.result.rejected") >= 4);
    world.documents.clear();
    for _ in 0..60 {
        if world.calls.is_empty() {
            world.advance_ms(100);
        }
    }
    assert_eq!(world.calls.len(), 1, "one worker fetches");
    world.answer_call(0, None);
    assert!(world.processes[0].has_logged("broke off"));
}

/// The host rejects log lines with control characters.
#[test]
fn documents_and_configurations_cannot_forge_log_lines() {
    let forged = r"gold\n[2026-01-01 00:00:00.000][1][info][wasm] forged\u2028";
    let long = "x".repeat(1 << 20);
    let source = r#", "config_source": {"cluster": "config_files", "tiers": "/t", "ttl_seconds": 5}"#;
    let mut world = World::start(Setup::new(configuration(source)));
    for (number, name) in [forged, &long].into_iter().enumerate() {
        let document = format!(r#"{{"{name}": {{"unlimited": true}}}}"#);
        world.documents.insert("/t".into(), (200, document.into_bytes()));
        world.advance_ms(6_000);
        let rejected = world.processes[0].stat("rate_limiter_config_reloads_total.result.rejected");
        assert_eq!(rejected, 2 * number as u64 + 1, "each document and each configuration once");
        let refused = world.configure(0, format!(r#"{{"default_tier": "{name}"}}"#).as_bytes());
        assert!(!refused, "no tier has that name");
    }
    assert!(world.processes[0].has_logged(r"tiers.gold\n[2026-01-01"));
    assert!(world.processes[0].has_logged("default_tier: found"));
}

/// A gRPC call that fails at once is answered with a 200 without a body. Only some gRPC codes are server errors.
#[test]
fn a_grpc_call_that_fails_at_once_is_a_failure_if_its_code_is_a_server_error() {
    for (status, health) in [("14", "DEGRADED"), ("5", "NORMAL"), ("0", "NORMAL")] {
        let mut world = World::start(Setup::new(configuration(r#", "health": {"mode": "auto"}"#)));
        let headers = [("content-type", "application/grpc"), ("grpc-status", status)];
        let call = Request::post("/demo.Greeter/Hello", [0; 5]).answered_with(200, &headers, "");
        let mut reported = String::new();
        for number in 0..400 {
            let call = call.clone().from(format!("192.0.{}.{}:40000", number / 200, number % 200));
            reported = world.get(0, &call).header("x-system-health");
            world.advance_ms(10);
        }
        assert_eq!(reported, health, "{status}");
    }
}

/// A worker waits for 64 bodies. The host bounds how many requests a callback answers.
#[test]
fn admin_requests_whose_bodies_do_not_come_are_answered_and_counted() {
    let mut world = world();
    let ids: Vec<_> = (0..70).map(|_| world.begin(0, &change("DEGRADED"), false)).collect();
    let with = |world: &World, status| {
        let is_it = |id: &&usize| world.response(**id).is_some_and(|response| response.status == status);
        ids.iter().filter(is_it).count()
    };
    assert_eq!((with(&world, 429), with(&world, 408)), (6, 0));
    world.advance_ms(12_000);
    assert_eq!((with(&world, 429), with(&world, 408)), (6, 64));
    let counted =
        |result: &str| world.processes[0].stat(&format!("rate_limiter_admin_requests_total.result.{result}"));
    assert_eq!((counted("throttled"), counted("invalid"), counted("ok")), (6, 64, 0));
}
