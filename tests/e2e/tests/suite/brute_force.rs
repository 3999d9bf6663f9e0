//! Guessing the admin token.

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::load;
use e2e::setup::Setup;

use crate::support::{TOKEN, health, set_health, two_tiers};

#[test]
fn every_concurrent_guess_is_counted() {
    let envoy = Setup::new().config(&two_tiers(100, 7)).trusted_hops(1).workers(4).start();
    for round in 1..=100 {
        let guess = Request::post("/system/health", "")
            .header("X-Admin-Token", "c4nary-wrong")
            .forwarded_for(&format!("203.0.113.{round}"));
        let counts = load::burst(envoy.address(), 24, 1, &guess);
        assert_eq!(load::count(&counts, 403), 5, "round {round}: {counts:?}");
        assert_eq!(load::count(&counts, 429), 24 - 5, "round {round}: {counts:?}");
    }
}

/// Tries to set health with this token, from a client behind one trusted proxy, or from this machine itself. There is
/// no body, so that Envoy keeps most connections open.
fn attempt(envoy: &Envoy, connection: &mut Connection, token: &str, from: Option<&str>) -> u16 {
    let request = Request::post("/system/health", "").header("X-Admin-Token", token);
    let response = connection.send(&from.map_or(request.clone(), |address| request.forwarded_for(address)));
    if response.has("connection") {
        *connection = envoy.connect();
    }
    response.status
}

#[test]
fn guesses_from_thousands_of_addresses_are_throttled_and_do_not_lock_the_operator_out() {
    let envoy = Setup::new().config(&two_tiers(100, 7)).trusted_hops(1).workers(2).quiet().start();
    let operator = Some("198.51.100.7");
    let mut connection = envoy.connect();
    assert_eq!(
        attempt(&envoy, &mut connection, TOKEN, operator),
        400,
        "the right token, and nothing to change"
    );
    let address = |number: usize| format!("10.{}.{}.1", number >> 8, number & 255);
    let mut refused = [0_u32; 2];
    let mut count = |status: u16| match status {
        403 => refused[0] += 1,
        429 => refused[1] += 1,
        other => panic!("{other}"),
    };
    for number in 0..12_000 {
        count(attempt(&envoy, &mut connection, "c4nary-wrong", Some(&address(number))));
    }
    for number in 20_000..20_300 {
        for token in ["c4nary-wrong", "c4nary-wrong", TOKEN] {
            let status = attempt(&envoy, &mut connection, token, Some(&address(number)));
            assert_eq!(status, 429, "guess of newcomer {number}");
            count(status);
        }
    }
    assert_eq!(refused, [256 * 16, 12_000 - 256 * 16 + 900]);
    for from in [operator, None] {
        assert_eq!(attempt(&envoy, &mut connection, TOKEN, from), 400, "{from:?}");
    }
    set_health(&envoy, "DEGRADED");
    assert_eq!(health(&envoy), "DEGRADED");
    let admin_requests = "rate_limiter_admin_requests_total";
    envoy.await_metric(admin_requests, &[("result", "throttled")], f64::from(refused[1]));
    envoy.await_metric(admin_requests, &[("result", "forbidden")], f64::from(refused[0]));
}
