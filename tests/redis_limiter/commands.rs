//! What is sent to Redis, and what is not.

use super::*;

#[test]
fn the_command_names_bucket_limit_and_expiry() {
    let json = r#""api_keys": {"plain": "pro", "named": {"tier": "late", "id": "acme"}}, "default_tier": "free",
        "tiers": {"free": {"base": {"capacity": 5, "refill_rate": 0.25}, "ttl": 1},
                  "pro": {"base": {"capacity": 15, "refill_rate": 2}, "burst": {"capacity": 25},
                          "degraded": {"capacity": 3, "refill_rate": 0.01}, "ttl": 60},
                  "late": {"base": {"capacity": 10, "refill_rate": 1.000001}, "ttl": 120}}"#;
    let mut world = World::new(1, 1, json);
    world.redis.knows_script = true;
    let cases = [
        (keyed("named"), "rate_limit:acme 10 1000001 120000 1 10 1000001"),
        (keyed("plain"), "rate_limit:a116c9ed46d62077 25 2000000 60000 2 3 10000"),
        (get().from("192.0.2.7:4711"), "rate_limit:192.0.2.7 5 250000 1000 3 5 250000"),
        (get().from("[::ffff:192.0.2.8]:1"), "rate_limit:192.0.2.8 5 250000 1000 4 5 250000"),
        (get().from("[2001:db8::1]:80"), "rate_limit:2001:db8::/64 5 250000 1000 5 5 250000"),
        (get().from("@"), "rate_limit:unknown 5 250000 1000 6 5 250000"),
    ];
    for (request, wanted) in cases {
        world.decide_with_redis(WORKER, &request);
        assert_eq!(world.redis.take_commands(), [format!("EVALSHA <sha1> 1 {wanted}")]);
    }
}

#[test]
fn namespace_and_prefix_keep_limiters_on_one_redis_apart() {
    // (key prefix, namespace, prefix of buckets, key of the health)
    let cases = [
        (None, None, "rate_limit:", HEALTH),
        (None, Some("default"), "rate_limit:", HEALTH),
        (None, Some("other"), "rate_limit:other/", "system:health:other:status"),
        (Some("rl/"), Some("default"), "rl/", HEALTH),
        (Some("rl/"), Some("a-b_C"), "rl/a-b_C/", "system:health:a-b_C:status"),
    ];
    for (key_prefix, namespace, prefix, health_key) in cases {
        let field = |name: &str, value: Option<&str>| {
            value.map_or(String::new(), |value| format!(r#", "{name}": "{value}""#))
        };
        let store = format!(r#""cluster": "redis"{}"#, field("key_prefix", key_prefix));
        let keys = r#""api_keys": {"k": {"tier": "pro", "id": "pro"}}"#;
        let mut world = World::with_store(1, 1, &store, &format!("{keys}{}", field("namespace", namespace)));
        world.redis.knows_script = true;
        world.decide_with_redis(WORKER, &keyed("k"));
        world.post(WORKER, "DEGRADED");
        world.run(POLL_US);
        let key = format!("{prefix}pro");
        assert_eq!(world.redis.buckets.keys().collect::<Vec<_>>(), [&key]);
        assert_eq!(world.redis.strings[health_key], b"DEGRADED");
        let commands = world.redis.take_commands();
        assert!(commands.contains(&format!("GET {health_key}")), "{commands:?}");
        // Probes have their own bucket.
        world.go_down();
        world.run(2 * SECOND);
        world.is_down = false;
        world.run(3 * SECOND);
        let mut keys: Vec<_> = world.redis.buckets.keys().cloned().collect();
        keys.sort();
        assert_eq!(keys, [format!("{prefix}#probe"), key]);
    }
}

#[test]
fn unlimited_and_blocked_tiers_and_exempt_paths_send_no_command() {
    let json = r#""default_tier": "blocked", "api_keys": {"open": "open"}, "exempt_paths": ["/metrics"],
        "tiers": {"blocked": {"base": {"capacity": 0, "refill_rate": 0}}, "open": {"unlimited": true}}"#;
    let mut world = World::new(1, 1, json);
    let requests = [keyed("open"), keyed("other"), FakeRequest::get("/metrics"), FakeRequest::get("/health")];
    for _ in 0..10 {
        let decided = requests.clone().map(|request| world.decided(WORKER, &request));
        assert_eq!(decided, ["Admitted", "Rejected", "Exempt", "Replied"]);
        let (_, decision) = world.decide(WORKER, &keyed("open"));
        assert_eq!(answer(&decision).verdict, None);
        world.exchange(WORKER);
    }
    assert_eq!(world.redis.take_commands(), [""; 0]);
}
