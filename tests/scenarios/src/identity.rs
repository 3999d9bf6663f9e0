//! Identification of callers by key: spec section 2, points 1 and 2.

use serde_json::json;

use crate::support::{ONE_PER_HOUR, sha256_hex, tier, two_tiers};
use crate::{Host, Request, Setup};

pub fn a_known_key_has_its_own_tier_and_bucket(host: &dyn Host) {
    let mut config = two_tiers(5, 20);
    config["api_keys"] = json!({
        "pro": {"tier": "pro", "id": "pro"},
        "colleague": {"tier": "pro", "id": "colleague"},
        "legacy-key": "free",
    });
    let mut gateway = host.start(&Setup::new().config(&config));
    let mut send = |request: Request| {
        let reply = gateway.send(&request);
        assert_eq!(reply.status, 200);
        (reply.tier(), reply.limit(), reply.remaining())
    };
    let pro = |remaining| ("pro".to_owned(), 20, remaining);
    let free = |remaining| ("free".to_owned(), 5, remaining);
    assert_eq!(send(Request::get("/").key("pro")), pro(19));
    assert_eq!(send(Request::get("/").key("pro")), pro(18));
    assert_eq!(send(Request::get("/").key("colleague")), pro(19));
    assert_eq!(send(Request::get("/").key("legacy-key")), free(4));
    assert_eq!(send(Request::get("/")), free(4));
    assert_eq!(send(Request::get("/").key("pro")), pro(17));
}

pub fn a_key_may_be_configured_by_its_hash(host: &dyn Host) {
    let mut config = two_tiers(5, 20);
    let hash = sha256_hex("c4nary-of-acme");
    config["api_keys"] = json!({ format!("sha256:{hash}"): {"tier": "pro", "id": "acme"} });
    let mut gateway = host.start(&Setup::new().config(&config));
    let mut tier_of = |key: &str| gateway.send(&Request::get("/").key(key)).tier();
    assert_eq!(tier_of("c4nary-of-acme"), "pro");
    assert_eq!(tier_of(&hash), "free", "the hash is not the key");
    assert_eq!(tier_of(&format!("sha256:{hash}")), "free");
    assert_eq!(tier_of("acme"), "free", "the id is not the key");
}

pub fn rotating_unknown_keys_share_the_address_bucket(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(10, 20)));
    let admitted = (0..200)
        .map(|n| gateway.send(&Request::get("/").key(sha256_hex(&n.to_string()))))
        .inspect(|reply| assert_eq!(reply.tier(), "free"))
        .filter(|reply| reply.status == 200)
        .count();
    assert_eq!(admitted, 10);
    assert_eq!(gateway.send(&Request::get("/")).status, 429, "no key at all");
    assert_eq!(gateway.send(&Request::get("/").key("pro")).status, 200);
}

pub fn the_first_of_two_keys_is_used(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(10, 20)));
    let mut tier_of =
        |first: &str, second: &str| gateway.send(&Request::get("/").key(first).key(second)).tier();
    assert_eq!(tier_of("pro", "unknown"), "pro");
    assert_eq!(tier_of("unknown", "pro"), "free");
    assert_eq!(tier_of("", "pro"), "free");
}

pub fn the_header_name_is_case_insensitive(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(10, 20)));
    for name in ["x-api-key", "X-API-KEY", "x-ApI-kEy"] {
        let reply = gateway.send(&Request::get("/").header(name, "pro"));
        assert_eq!(reply.tier(), "pro", "{name}");
    }
}

pub fn the_key_is_case_sensitive_and_may_be_256_bytes_long(host: &dyn Host) {
    let long = "k".repeat(256);
    let mut config = two_tiers(100, 20);
    config["api_keys"][&long] = json!({"tier": "pro", "id": "long"});
    let mut gateway = host.start(&Setup::new().config(&config));
    let mut tier_of = |key: &str| gateway.send(&Request::get("/").key(key)).tier();
    assert_eq!(tier_of(&long), "pro");
    assert_eq!(tier_of(&long[1..]), "free");
    assert_eq!(tier_of(&format!("{long}k")), "free");
    assert_eq!(tier_of("PRO"), "free");
}

pub fn unusual_keys_are_served_and_counted_by_address(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&json!({
        "tiers": {"free": tier(5_000, ONE_PER_HOUR), "pro": tier(20, ONE_PER_HOUR)},
        "api_keys": {"pro": {"tier": "pro", "id": "acme"}},
    })));
    let odd: [&[u8]; 14] = [
        b"",
        b"   ",
        b"\xff",
        b"pro\xff",
        b"\x80\x81\xfe\xff",
        b"\xc3\x28",
        &[b'k'; 10_000],
        &[0xff; 10_000],
        &[b'k'; 257],
        b"pro, pro",
        b"127.0.0.9",
        b"acme",
        b"a\tb",
        b"*1\\r\\n$8\\r\\nFLUSHALL\\r\\n",
    ];
    let mut expected = 5_000;
    for key in odd {
        expected -= 1;
        let reply = gateway.send(&Request::get("/").key(key));
        let shown = String::from_utf8_lossy(&key[..key.len().min(20)]).into_owned();
        assert_eq!((reply.status, reply.tier().as_str()), (200, "free"), "{shown:?}");
        assert_eq!(reply.remaining(), expected, "{shown:?}");
    }
    let after = gateway.statuses(&Request::get("/"), 1_000);
    assert!(after.iter().all(|status| *status == 200));
    assert_eq!(gateway.send(&Request::get("/")).remaining(), expected - 1_001);
}
