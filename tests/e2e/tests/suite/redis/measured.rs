//! Each Envoy judges its own upstream; what an operator says holds for all of them.

use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::{load, upstream, wait};

use super::{HEALTH_TRAVELS, patient};
use crate::overload::measured;
use crate::support::{health, switch};

/// What a busy machine may add to a second.
const SLACK: Duration = Duration::from_millis(500);

/// Waits until both Envoys tell these healths, and not longer than a change may travel.
#[track_caller]
fn await_healths(envoys: [&Envoy; 2], wanted: [&str; 2]) {
    let mut last = [String::new(), String::new()];
    let reached = wait::poll(HEALTH_TRAVELS + SLACK, || {
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
fn a_sick_upstream_degrades_its_own_envoy_and_an_operator_all_of_them() {
    let redis = Redis::start();
    let sick = patient(measured(), &redis).upstream(upstream::refusing()).start();
    let well = patient(measured(), &redis).start();
    let (both, addresses) = ([&sick, &well], [sick.address(), well.address()]);
    load::observe(
        &addresses,
        8,
        Duration::from_millis(20),
        |_, _| Request::get("/"),
        || {
            let own = ["DEGRADED", "NORMAL"];
            wait::until("the sick upstream is noticed", || (health(&sick) == "DEGRADED").then_some(()));
            assert_healths_stay(both, own);
            for (from, status) in
                [(&well, "DEGRADED"), (&sick, "NORMAL"), (&sick, "DEGRADED"), (&well, "NORMAL")]
            {
                switch(from, status);
                await_healths(both, [status; 2]);
            }
            assert_healths_stay(both, ["NORMAL"; 2]);
            switch(&well, "AUTO");
            await_healths(both, own);
            assert_healths_stay(both, own);
        },
    );
}
