//! The metrics agree with the responses that clients received.

use e2e::client::Request;

use e2e::load;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

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
fn applied_configurations_and_contention_are_counted() {
    let mut config = two_tiers(10_000, 1);
    config["config_source"] = json!({
        "cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 1,
    });
    let tiers = |free: u64| two_tiers(free, 1)["tiers"].to_string();
    let envoy = Setup::new().config(&config).config_files(&tiers(10_000), "{}").workers(4).start();
    let applied =
        || envoy.metric("rate_limiter_config_reloads_total", &[("result", "applied")]).unwrap_or(0.0);
    wait::until("the first document applied", || (applied() >= 1.0).then_some(()));
    let before = applied();
    envoy.save("tiers.json", &tiers(9_999));
    wait::until("the second document applied", || (applied() > before).then_some(()));

    // A lost race cannot be forced, but with enough requests one is counted.
    wait::until("the retry counter", || {
        load::burst(envoy.address(), 16, 20, &Request::get("/"));
        envoy.metric("rate_limiter_cas_retries_total", &[])
    });
}
