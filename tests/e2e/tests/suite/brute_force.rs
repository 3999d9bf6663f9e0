//! Guessing the admin token.

use e2e::client::Request;
use e2e::load;
use e2e::setup::Setup;

use crate::support::two_tiers;

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
