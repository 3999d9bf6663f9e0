//! Envoy delivers a new plugin configuration while it serves.

use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, tier, two_tiers};
use crate::{Gateway, Host, Request, Setup, documents};

#[track_caller]
fn start(host: &dyn Host, config: &Value, workers: u32) -> Box<dyn Gateway> {
    let setup = Setup { takes_deliveries: true, ..Setup::new().config(config).workers(workers) };
    let mut gateway = host.start(&setup);
    gateway.await_limit(1_000);
    gateway
}

pub fn a_delivered_configuration_applies_and_keeps_buckets_and_health(host: &dyn Host) {
    let mut gateway = start(host, &two_tiers(1_000, 10), 4);
    let send = |gateway: &mut dyn Gateway| gateway.send(&Request::get("/").key("pro"));
    assert_eq!([(); 3].map(|()| send(&mut *gateway).remaining()), [9, 8, 7]);
    gateway.set_health("DEGRADED");

    assert!(gateway.deliver(&two_tiers(1_001, 20)));
    gateway.await_limit(1_001);
    assert_eq!(send(&mut *gateway).remaining(), 6);
    let reply = send(&mut *gateway);
    assert_eq!(reply.one("x-system-health"), "DEGRADED");
    assert_eq!((reply.limit(), reply.remaining()), (20, 5));
}

pub fn an_invalid_configuration_is_rejected_and_the_old_one_stays_active(host: &dyn Host) {
    let mut gateway = start(host, &two_tiers(1_000, 10), 4);
    let bad = [
        (json!({"tiers": {"free": tier(5, -0.25)}}), "-0.25"),
        (json!({"default_tier": "platinum"}), "platinum"),
        (json!({"unheard_of": 1}), "unheard_of"),
        (json!([]), ""),
    ];
    for (config, reason) in bad {
        assert!(!gateway.deliver(&config), "{config} is rejected");
        gateway.await_warning(reason);
        gateway.await_limit(1_000);
        assert_eq!(gateway.send(&Request::get("/").key("pro")).tier(), "pro");
    }
    assert!(gateway.deliver(&two_tiers(1_001, 10)));
    gateway.await_limit(1_001);
}

pub fn keys_and_groups_of_headers_follow_a_delivery(host: &dyn Host) {
    let mut gateway = start(host, &two_tiers(1_000, 10), 2);
    let mut next = two_tiers(1_001, 10);
    next["api_keys"] = json!({"other": {"tier": "pro", "id": "other"}});
    next["tiers"]["pro"] = tier(30, ONE_PER_HOUR);
    next["headers"] = json!({"processing_time": false});
    assert!(gateway.deliver(&next));
    gateway.await_limit(1_001);
    let other = gateway.send(&Request::get("/").key("other"));
    assert_eq!((other.tier().as_str(), other.limit()), ("pro", 30));
    assert!(!other.has("x-processing-time"));
    assert_eq!(gateway.send(&Request::get("/").key("pro")).tier(), "free");
}

pub fn after_a_delivery_without_a_source_its_documents_do_not_apply(host: &dyn Host) {
    let setup = documents::setup(&documents::tiers(1_001, 20), &documents::api_keys("pro"));
    let mut gateway = host.start(&Setup { takes_deliveries: true, ..setup });
    gateway.await_limit(1_001);
    assert!(gateway.deliver(&two_tiers(1_002, 10)));
    gateway.await_limit(1_002);
}
