//! The metrics agree with the responses that clients received.

use e2e::client::Request;
use e2e::load;
use e2e::setup::Setup;
use e2e::wait;

use crate::support::two_tiers;

#[test]
fn decisions_are_timed() {
    let envoy = Setup::new().config(&two_tiers(100, 300)).start();
    load::burst(envoy.address(), 4, 200, &Request::get("/"));
    let name = "rate_limiter_decision_duration_microseconds";
    let (count, sum) = wait::until("the histogram", || {
        let scrape = envoy.scrape();
        let count = scrape.value(&format!("{name}_count"), &[])?;
        let sum = scrape.value(&format!("{name}_sum"), &[])?;
        // One decision in sixteen.
        (count >= 800.0 / 16.0).then_some((count, sum))
    });
    assert!(count <= 800.0 / 16.0 + 1.0, "{count} of 800, two workers");
    let mean = sum / count;
    assert!((0.0..100_000.0).contains(&mean), "{mean} µs on average");
}

#[test]
fn contention_is_counted() {
    let envoy = Setup::new().config(&two_tiers(10_000, 1)).workers(4).start();
    // A lost race cannot be forced, but with enough requests one is counted.
    wait::until("the retry counter", || {
        load::burst(envoy.address(), 16, 20, &Request::get("/"));
        envoy.metric("rate_limiter_cas_retries_total", &[]).filter(|count| *count > 0.0)
    });
}
