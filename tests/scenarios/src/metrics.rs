//! The metrics agree with the responses that clients received.

use crate::support::{REQUESTS, post_to_system_health, two_tiers};
use crate::{Host, Request, Setup};

const ADMIN: &str = "rate_limiter_admin_requests_total";

pub fn requests_are_counted_by_tier_and_status(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(100, 300)).workers(4));
    for (request, tier) in [(Request::get("/"), "free"), (Request::get("/").key("pro"), "pro")] {
        let seen = gateway.statuses(&request, 400);
        for (status, counted) in [(200, "allowed"), (429, "limited")] {
            gateway.await_requests(tier, counted, seen.iter().filter(|seen| **seen == status).count());
        }
    }
    // No other requests are counted.
    for status in ["exempt", "blocked"] {
        let other = gateway.metric(REQUESTS, &[("tier", "free"), ("status", status)]);
        assert_eq!(other.unwrap_or(0.0), 0.0, "{status}");
    }
}

pub fn tokens_remaining_is_the_last_seen(host: &dyn Host) {
    // Each worker reports its own last value, so there is one worker.
    let mut gateway = host.start(&Setup::new().config(&two_tiers(20, 30)).workers(1));
    for key in ["pro", "unknown"] {
        let mut last = 0;
        for _ in 0..7 {
            let reply = gateway.send(&Request::get("/").key(key));
            last = reply.remaining();
        }
        let tier = if key == "pro" { "pro" } else { "free" };
        gateway.await_metric("rate_limiter_tokens_remaining", &[("tier", tier)], last as f64);
    }
}

pub fn the_degraded_gauge_follows_the_health(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(20, 30)).workers(4));
    let gauge = "rate_limiter_system_degraded";
    gateway.send(&Request::get("/"));
    gateway.await_metric(gauge, &[], 0.0);
    for (health, value) in [("DEGRADED", 1.0), ("NORMAL", 0.0)].repeat(2) {
        gateway.set_health(health);
        gateway.await_metric(gauge, &[], value);
    }
}

pub fn admin_requests_are_counted_by_result(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(20, 30)));
    for health in ["DEGRADED", "NORMAL"] {
        gateway.set_health(health);
    }
    assert_eq!(gateway.send(&post_to_system_health("nonsense")).status, 400);
    assert_eq!(gateway.send(&post_to_system_health("x".repeat(2_000))).status, 413);
    assert_eq!(gateway.send(&Request::new("PUT", "/system/health")).status, 405);
    let wrong = Request::post("/system/health", "").header("X-Admin-Token", "c4nary-wrong");
    let refused = gateway.statuses(&wrong, 8);
    assert_eq!(refused, [403, 403, 403, 403, 403, 429, 429, 429]);
    for (result, value) in [("forbidden", 5.0), ("throttled", 3.0), ("invalid", 2.0), ("too_large", 1.0)] {
        gateway.await_metric(ADMIN, &[("result", result)], value);
    }
    let ok = gateway.metric(ADMIN, &[("result", "ok")]);
    assert!(ok.is_some_and(|ok| ok >= 2.0), "{ok:?}");
}
