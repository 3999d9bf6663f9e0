//! Every host call goes wrong in every way, at its first and at later calls.
//!
//! | what goes wrong | what holds |
//! |---|---|
//! | any status that Envoy can answer ([`ENVOY_ANSWERS`]) | no trap; every request gets exactly one outcome, within timeouts; afterwards the limiter limits as before |
//! | bytes handed over are too few, or wrong | the same |
//! | a status that Envoy never answers | the same, or the SDK's own check ("unexpected status"), which no code of ours can catch |
//! | a local reply that Envoy refuses, which it never does | no trap; that request waits for Envoy's own timeout |
//!
//! That no request is answered twice, or goes on after its answer, is asserted by the host itself.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wasm_host::failures::{Act, ENVOY_ANSWERS, Failure, HAND_OVER, status};
use wasm_host::redis::Mode;
use wasm_host::secrets::{API_KEY, REDIS_PASSWORD, REDIS_USER};
use wasm_host::{Request, Setup, World};

use crate::support::{change, configuration, keyed, redis_setup};

const SOURCE: &str =
    r#", "config_source": {"cluster": "config_files", "api_keys": "/k.json", "ttl_seconds": 1}"#;

fn setups() -> [Setup; 2] {
    let quiet = |setup| Setup { is_quiet: true, ..setup };
    [quiet(Setup::new(configuration(SOURCE))), quiet(redis_setup("local"))]
}

/// Requests of every kind, with a reload, a switch, ticks, fetched documents and a Redis that comes and goes.
/// The failure is scripted before the first configuration, or after it.
fn drive(setup: &Setup, failure: Failure, is_early: bool) -> bool {
    let mut world = World::boot(setup.clone());
    world.redis.model.password = Some((Some(REDIS_USER), REDIS_PASSWORD));
    let keys = format!(r#"{{"{API_KEY}": {{"tier": "pro", "id": "pro"}}, "canary-shut": "shut"}}"#);
    world.documents.insert("/k.json".into(), (200, keys.into_bytes()));
    if is_early {
        world.vm(0).script([failure]);
    }
    if !world.configure(0, &setup.configuration) {
        assert!(is_early, "refused without cause");
        // Envoy keeps what it had, or has no filter. The next delivery is taken.
        assert!(world.configure(0, &setup.configuration), "refused for good");
    }
    world.vm(0).script([failure]);
    let wrong = Request::post("/system/health", "{}").with("x-admin-token", "canary-wrong");
    let requests =
        [keyed(), Request::get("/"), Request::get("/").key("canary-shut"), Request::get("/metrics")];
    let endpoints = [Request::get("/health"), change("DEGRADED"), wrong, Request::get("/system/health")];
    for request in requests.iter().chain(&endpoints).chain(&requests) {
        world.send(0, request);
        world.advance_ms(5);
    }
    world.configure(0, &setup.configuration);
    world.advance_ms(1_500);
    world.redis.mode = Mode::Frozen;
    world.send(0, &keyed());
    world.send(0, &Request::get("/").from("192.0.2.77:1"));
    world.advance_ms(40);
    world.redis_hangs_up();
    world.redis_comes_up();
    world.advance_ms(12_000);
    assert!(world.undecided().is_empty(), "waits for ever");
    let struck = world.vm(0).has_failed_a_call();
    world.vm(0).script([]);
    if failure.call == "proxy_get_buffer_bytes" {
        // It may have struck the configuration: none is the built-in one, and the next delivery mends that.
        world.configure(0, &setup.configuration);
    }
    world.advance_ms(6_000);
    for (request, tier) in [(keyed(), "pro"), (Request::get("/"), "free")] {
        let response = world.get(0, &request);
        assert_eq!(
            (response.status, response.header("x-ratelimit-tier").as_str()),
            (200, tier),
            "afterwards"
        );
    }
    struck
}

/// What became of a run: whether the failure struck, or how the filter or the test failed.
fn outcome(setup: &Setup, failure: Failure, is_early: bool) -> Result<bool, String> {
    catch_unwind(AssertUnwindSafe(|| drive(setup, failure, is_early))).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

#[test]
fn what_envoy_can_answer_never_traps_and_leaves_nobody_waiting() {
    let mut runs = 0;
    let mut struck = 0;
    for setup in setups() {
        for (call, statuses) in ENVOY_ANSWERS {
            let spoiled = if HAND_OVER.contains(call) { &[Act::Short, Act::Garbage][..] } else { &[] };
            let acts = statuses.iter().map(|status| Act::Status(*status)).chain(spoiled.iter().copied());
            for act in acts {
                for (after, times) in [(0, 1), (1, 1), (2, 1), (0, u32::MAX)] {
                    let failure = Failure { call, after, times, act };
                    let is_early = after == 0 && times == 1;
                    match outcome(&setup, failure, is_early) {
                        Ok(has_struck) => struck += u32::from(has_struck),
                        Err(text) => panic!("{failure:?}: {text}"),
                    }
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} runs, in {struck} of them the failure struck");
    assert!(struck * 2 > runs, "{struck} of {runs}: the sequence does not reach the calls");
}

#[test]
fn what_envoy_never_answers_is_survived_or_stopped_by_the_sdk_itself() {
    let mut survived = 0;
    let mut stopped = 0;
    let mut unanswered = 0;
    for setup in setups() {
        for (call, statuses) in ENVOY_ANSWERS {
            for status in status::FAILURES.filter(|status| !statuses.contains(status)) {
                let failure = Failure::status(call, status);
                match outcome(&setup, failure, false) {
                    Ok(_) => survived += 1,
                    Err(text) if is_sdks_own(&text, status) => stopped += 1,
                    // An Envoy that takes no answer leaves nothing to say to the client.
                    Err(text) if *call == "proxy_send_local_response" && text == "waits for ever" => {
                        unanswered += 1;
                    }
                    Err(text) => panic!("{failure:?}: {text}"),
                }
            }
        }
    }
    println!("{survived} survived, {stopped} stopped by the SDK, {unanswered} answers not taken");
    assert!(survived > 0 && stopped > 0 && unanswered > 0);
}

/// Whether the SDK itself has stopped the filter: by its check of statuses, or because its own root context is gone.
fn is_sdks_own(text: &str, status: u32) -> bool {
    text.contains(&format!("unexpected status: {status}"))
        || status == status::BAD_ARGUMENT
            && text.contains("`Result::unwrap()` on an `Err` value: BadArgument")
}
