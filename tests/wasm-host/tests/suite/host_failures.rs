//! Every host call fails in every way, at its first and at later calls.
//!
//! | failure | expected |
//! |---|---|
//! | any status that Envoy can return ([`ENVOY_FAILURES`]) | no trap; every request gets exactly one outcome, within timeouts; afterwards the limiter limits as before |
//! | too few or wrong bytes | the same |
//! | a status that Envoy never returns | the same, or the SDK's own check ("unexpected status"), which our code cannot catch |
//! | a refused local reply, which never occurs in Envoy | no trap; that request waits for Envoy's own timeout |
//!
//! The host itself asserts that no request is answered twice, or continues after its response.

use harness::catch_panic;

use scenarios::Request;
use wasm_host::failures::{self, Act, ENVOY_FAILURES, Failure, status};
use wasm_host::redis::Mode;
use wasm_host::secrets::{API_KEY, REDIS_PASSWORD, REDIS_USER};
use wasm_host::{Setup, World};

use crate::support::{change, configuration, keyed, redis_setup};

const SOURCE: &str =
    r#", "config_source": {"cluster": "config_files", "api_keys": "/k.json", "ttl_seconds": 1}"#;

fn setups() -> [Setup; 2] {
    let quiet = |setup| Setup { is_quiet: true, ..setup };
    [quiet(Setup::new(configuration(SOURCE))), quiet(redis_setup("local"))]
}

/// Sends requests of every kind, with a reload, a change of health, ticks, fetched documents and an outage of Redis.
/// The failure is scripted before the first configuration if `is_early`, else after it. Returns whether it occurred.
fn drive(setup: &Setup, failure: Failure, is_early: bool) -> bool {
    let mut world = World::boot(setup.clone());
    world.redis.model.password = Some((Some(REDIS_USER), REDIS_PASSWORD));
    let keys = format!(r#"{{"{API_KEY}": {{"tier": "pro", "id": "pro"}}, "c4nary-shut": "shut"}}"#);
    world.documents.insert("/k.json".into(), (200, keys.into_bytes()));
    if is_early {
        world.vm(0).script([failure]);
    }
    if !world.configure(0, &setup.configuration) {
        assert!(is_early, "rejected without a failure");
        // Envoy keeps the previous configuration, or has no filter. It accepts the next delivery.
        assert!(world.configure(0, &setup.configuration), "rejected again");
    }
    world.vm(0).script([failure]);
    let wrong = Request::post("/system/health", "{}").header("x-admin-token", "c4nary-wrong");
    let requests =
        [keyed(), Request::get("/"), Request::get("/").key("c4nary-shut"), Request::get("/metrics")];
    let endpoints = [Request::get("/health"), change("DEGRADED"), wrong, Request::get("/system/health")];
    for request in requests.iter().chain(&endpoints).chain(&requests) {
        world.send(0, request);
        world.advance_ms(5);
    }
    world.configure(0, &setup.configuration);
    world.advance_ms(1_500);
    world.redis.mode = Mode::Frozen;
    world.send(0, &keyed());
    world.send(0, &Request::get("/").from("192.0.2.77"));
    world.advance_ms(40);
    world.redis_disconnects();
    world.redis_starts();
    world.advance_ms(12_000);
    assert!(world.undecided().is_empty(), "waits forever");
    let occurred = world.vm(0).has_failed_a_call();
    world.vm(0).script([]);
    if failure.call == "proxy_get_buffer_bytes" {
        // The configuration may have been empty, which means the built-in one. The next delivery corrects that.
        world.configure(0, &setup.configuration);
    }
    world.advance_ms(6_000);
    for (request, tier) in [(keyed(), "pro"), (Request::get("/"), "free")] {
        let response = world.get(0, &request);
        assert_eq!((response.status, response.tier().as_str()), (200, tier), "afterwards");
    }
    occurred
}

#[test]
fn failures_of_envoy_never_trap_and_every_request_is_answered() {
    let mut runs = 0;
    let mut occurred = 0;
    for setup in setups() {
        for (call, statuses) in ENVOY_FAILURES {
            for act in failures::acts(call, statuses) {
                for (after, times) in [(0, 1), (1, 1), (2, 1), (0, u32::MAX)] {
                    let failure = Failure { call, after, times, act };
                    let is_early = after == 0 && times == 1;
                    match catch_panic(|| drive(&setup, failure, is_early)) {
                        Ok(has_occurred) => occurred += u32::from(has_occurred),
                        Err(text) => panic!("{failure:?}: {text}"),
                    }
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} runs, the failure occurred in {occurred}");
    assert!(occurred * 2 > runs, "{occurred} of {runs}: the sequence does not reach the calls");
}

#[test]
fn other_failures_are_handled_or_stopped_by_the_sdk() {
    let mut handled = 0;
    let mut stopped = 0;
    let mut unanswered = 0;
    for setup in setups() {
        for (call, statuses) in ENVOY_FAILURES {
            for status in status::FAILURES.filter(|status| !statuses.contains(status)) {
                let failure = Failure { call, after: 0, times: 1, act: Act::Status(status) };
                match catch_panic(|| drive(&setup, failure, false)) {
                    Ok(_) => handled += 1,
                    Err(text) if is_sdks_own(&text, status) => stopped += 1,
                    // If Envoy refuses the reply, the filter cannot answer.
                    Err(text) if *call == "proxy_send_local_response" && text == "waits forever" => {
                        unanswered += 1;
                    }
                    Err(text) => panic!("{failure:?}: {text}"),
                }
            }
        }
    }
    println!("{handled} handled, {stopped} stopped by the SDK, {unanswered} replies refused");
    assert!(handled > 0 && stopped > 0 && unanswered > 0);
}

/// Whether the SDK itself has stopped the filter: by its check of statuses, or because its root context does not exist.
fn is_sdks_own(text: &str, status: u32) -> bool {
    text.contains(&format!("unexpected status: {status}"))
        || status == status::BAD_ARGUMENT
            && text.contains("`Result::unwrap()` on an `Err` value: BadArgument")
}
