//! Responses of a limiter on shared data that only this host can test: forged lines of the log, codes of gRPC, bodies
//! that do not come. Other tests of responses are in the scenarios.

use scenarios::Request;
use wasm_host::{Setup, World};

use crate::support::{change, configuration, world};

#[test]
fn one_worker_fetches_a_document() {
    let source =
        r#", "config_source": {"cluster": "config_files", "api_keys": "/keys.json", "ttl_seconds": 5}"#;
    let mut world = World::start(Setup::new(configuration(source)).workers(2));
    world.advance_ms(1_500);
    assert_eq!(world.calls.len(), 1);
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
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        world.upstream.answer.headers =
            vec![header("content-type", "application/grpc"), header("grpc-status", status)];
        world.upstream.answer.body.clear();
        let mut reported = String::new();
        for number in 0..400 {
            let address = format!("192.0.{}.{}", number / 200, number % 200);
            let call = Request::post("/demo.Greeter/Hello", [0; 5]).from(&address);
            reported = world.get(0, &call).one("x-system-health");
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
    world.advance_ms(9_000);
    assert_eq!((with(&world, 429), with(&world, 408)), (6, 0));
    world.advance_ms(3_000);
    assert_eq!((with(&world, 429), with(&world, 408)), (6, 64));
    let later = world.begin(0, &change("DEGRADED"), false);
    assert_eq!(world.undecided(), [later], "the worker waits for bodies again");
    let counted =
        |result: &str| world.processes[0].stat(&format!("rate_limiter_admin_requests_total.result.{result}"));
    assert_eq!((counted("throttled"), counted("invalid"), counted("ok")), (6, 64, 0));
}
