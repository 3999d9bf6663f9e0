//! Each Envoy measures the health of its own upstream; the health that an operator sets applies to all Envoys.

use std::time::Duration;

use e2e::client::Request;
use e2e::redis::Redis;
use e2e::{load, upstream};

use super::{assert_healths_stay, await_healths, long_timeout_setup};
use crate::overload::{await_health, measured};
use crate::support::set_health;

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
