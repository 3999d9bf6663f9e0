//! Envoy delivers a new plugin configuration while it serves, by ECDS from a file.

use e2e::envoy::Envoy;
use e2e::setup::Setup;
use serde_json::json;

use crate::support::two_tiers;

#[test]
fn every_delivery_is_counted_by_its_result() {
    let mut envoy = Setup::new().config(&two_tiers(1_000, 10)).by_ecds().start();
    let counted = |envoy: &Envoy, result: &str, count: f64| {
        envoy.await_metric("rate_limiter_config_reloads_total", &[("result", result)], count);
    };
    counted(&envoy, "applied", 1.0);
    envoy.deliver(&two_tiers(1_001, 10));
    counted(&envoy, "applied", 2.0);
    envoy.deliver(&json!({"unheard_of": 1}));
    counted(&envoy, "rejected", 1.0);
    counted(&envoy, "applied", 2.0);
}
