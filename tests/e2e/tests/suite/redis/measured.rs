//! Each Envoy measures the health of its own upstream; the health that an operator sets applies to all Envoys.

use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::{load, upstream, wait};

use super::{HEALTH_PROPAGATION, long_timeout_setup};
use crate::overload::{await_health, measured};
use crate::support::{health, set_health};

/// The delay that a busy machine may add to a second.
const SLACK: Duration = Duration::from_millis(500);

/// Waits until the Envoys report these healths, but not longer than a change may take.
#[track_caller]
fn await_healths(envoys: [&Envoy; 2], wanted: [&str; 2]) {
    let mut last = [String::new(), String::new()];
    let reached = wait::poll(HEALTH_PROPAGATION + SLACK, || {
        last = envoys.map(health);
        (last == wanted).then_some(())
    });
    assert!(reached.is_some(), "{last:?} instead of {wanted:?}");
}

#[track_caller]
fn assert_healths_stay(envoys: [&Envoy; 2], wanted: [&str; 2]) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(envoys.map(health), wanted);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_failing_upstream_degrades_its_own_envoy_and_an_operator_degrades_all() {
    let redis = Redis::start();
    let failing = long_timeout_setup(measured(), &redis).upstream(upstream::refusing()).start();
    let healthy = long_timeout_setup(measured(), &redis).start();
    let (both, addresses) = ([&failing, &healthy], [failing.address(), healthy.address()]);
    load::observe(
        &addresses,
        8,
        Duration::from_millis(20),
        |_, _| Request::get("/"),
        || {
            let own = ["DEGRADED", "NORMAL"];
            await_health(&failing, "DEGRADED");
            assert_healths_stay(both, own);
            for (from, status) in
                [(&healthy, "DEGRADED"), (&failing, "NORMAL"), (&failing, "DEGRADED"), (&healthy, "NORMAL")]
            {
                set_health(from, status);
                await_healths(both, [status; 2]);
            }
            assert_healths_stay(both, ["NORMAL"; 2]);
            set_health(&healthy, "AUTO");
            await_healths(both, own);
            assert_healths_stay(both, own);
        },
    );
}
