//! A change of health applies to every worker at once, and buckets keep their tokens.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, two_tiers};
use crate::{Gateway, Host, Request, Setup};

fn config() -> Value {
    let mut config = two_tiers(10, 10);
    config["tiers"]["free"] = json!({
        "base": {"capacity": 6_000, "refill_rate": ONE_PER_HOUR},
        "burst": {"capacity": 9_000},
        "degraded": {"capacity": 4_000},
        "ttl": 3600,
    });
    config["tiers"]["pro"] = json!({
        "base": {"capacity": 5, "refill_rate": ONE_PER_HOUR},
        "burst": {"capacity": 10},
        "degraded": {"capacity": 4, "refill_rate": 2.0},
        "ttl": 3600,
    });
    config
}

/// Changes health repeatedly, and checks every worker after each change.
#[track_caller]
fn assert_changes_apply_to_every_worker(gateway: &mut dyn Gateway) {
    gateway.send_to_every_worker(&Request::get("/"));
    for round in 0..20 {
        let (status, limit) = if round % 2 == 0 { ("DEGRADED", 4_000) } else { ("NORMAL", 9_000) };
        gateway.set_health(status);
        for reply in gateway.send_to_every_worker(&Request::get("/")) {
            assert_eq!(reply.one("x-system-health"), status, "round {round}");
            assert_eq!(reply.limit(), limit, "round {round}");
        }
    }
}

pub fn a_change_applies_to_the_next_request_on_every_worker(host: &dyn Host) {
    assert_changes_apply_to_every_worker(&mut *host.start(&Setup::new().config(&config()).workers(4)));
}

pub fn a_change_applies_if_envoy_keeps_no_stats_of_the_filter(host: &dyn Host) {
    let mut gateway = host.start(&Setup { keeps_stats: false, ..Setup::new().config(&config()).workers(4) });
    assert_changes_apply_to_every_worker(&mut *gateway);
    // Workers report once a second.
    gateway.advance(Duration::from_secs(2));
    assert_eq!(gateway.stats(), [""; 0]);
}

pub fn buckets_keep_their_tokens_up_to_the_new_capacity(host: &dyn Host) {
    let mut config = config();
    config["tiers"]["pro"]["degraded"]["refill_rate"] = json!(ONE_PER_HOUR);
    let mut gateway = host.start(&Setup::new().config(&config));
    for (health, status, remaining, why) in [
        ("NORMAL", 200, 9, "the bucket is full"),
        ("DEGRADED", 200, 3, "tokens above four are lost"),
        ("NORMAL", 200, 2, "and stay lost"),
        ("DEGRADED", 200, 1, "the bucket keeps its tokens"),
        ("DEGRADED", 200, 0, "the last token"),
        ("NORMAL", 429, 0, "the bucket is empty"),
    ] {
        gateway.set_health(health);
        let reply = gateway.send(&Request::get("/").key("pro"));
        assert_eq!((reply.status, reply.remaining()), (status, remaining), "{health}: {why}");
    }
}

pub fn the_degraded_rate_applies_while_degraded(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&config()));
    let request = Request::get("/").key("pro");
    while gateway.send(&request).status == 200 {}
    gateway.set_health("DEGRADED");
    let refused = gateway.send(&request);
    assert_eq!((refused.status, refused.number("retry-after")), (429, 1), "two a second");
    gateway.until("a token", |gateway| gateway.send(&request).status == 200);
}

pub fn namespaces_keep_two_limiters_apart(host: &dyn Host) {
    let named = |namespace: &str| {
        let mut config = two_tiers(10, 10);
        config["namespace"] = json!(namespace);
        config
    };
    let setup = Setup::new().config(&named("first"));
    let mut gateway =
        host.start(&setup.listener("same", &named("first")).listener("other", &named("second")));
    let request = Request::get("/").key("pro");
    assert_eq!(gateway.send(&request).remaining(), 9);
    assert_eq!(gateway.send_to_listener("same", &request).remaining(), 8, "one namespace, one bucket");
    let other = gateway.send_to_listener("other", &request);
    assert_eq!(other.remaining(), 9, "another namespace, another bucket");

    gateway.set_health("DEGRADED");
    assert_eq!(gateway.send_to_listener("same", &request).one("x-system-health"), "DEGRADED");
    assert_eq!(gateway.send_to_listener("other", &request).one("x-system-health"), "NORMAL");
}
