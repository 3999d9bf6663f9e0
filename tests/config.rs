//! Configuration: its values and its errors. `tests/config/bad/` has one bad file for each rule.

use std::collections::BTreeMap;

use dynamic_rate_limiter::config::{Config, Documents, Environment, PluginConfig};
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::identity::KeyHash;
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::overload::rotating_order;
use dynamic_rate_limiter::tier::Allowance;
use dynamic_rate_limiter::time::StoreTime;

fn parse(json: &str) -> Result<PluginConfig, String> {
    PluginConfig::parse(json.as_bytes(), &Environment::default())
}

fn config(json: &str) -> Config {
    let plugin = parse(json).expect("a good configuration");
    Config::new(&plugin, &Documents::default()).expect("a good configuration")
}

fn limited(capacity: u32, refill_micro_per_sec: u64) -> Allowance {
    Allowance::Limited(Limit::new(capacity, refill_micro_per_sec).expect("in range"))
}

fn allowances(config: &Config, tier: &str) -> (Allowance, Allowance) {
    let tier = config.tiers.iter().find(|known| known.name == tier).expect("a known tier");
    (tier.allowance(Health::Normal), tier.allowance(Health::Degraded))
}

#[test]
fn the_error_of_each_bad_file_names_the_field_the_found_and_the_wanted_value() {
    let messages = include_str!("config/bad/messages.txt");
    let expected: BTreeMap<_, _> =
        messages.lines().map(|line| line.split_once(": ").expect("file: message")).collect();
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config/bad");
    let mut seen = 0;
    for file in std::fs::read_dir(directory).expect("the directory of bad files") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
            let bytes = std::fs::read(&path).expect("a readable file");
            let error = PluginConfig::parse(&bytes, &Environment::default()).err().unwrap_or_default();
            assert!(!error.contains("secret-canary"), "{name}: the error shows a secret: {error}");
            assert_eq!(Some(error.as_str()), expected.get(name).copied(), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, expected.len(), "every message has its file");
}

#[test]
fn without_configuration_the_built_in_tiers_apply_and_no_key_is_known() {
    for empty in ["", " \n", "{}"] {
        let config = config(empty);
        assert_eq!(config.default_tier.name, "free");
        assert_eq!(config.keys(), 0);
        assert!(config.settings.admin.token.is_none() && config.settings.config_source.is_none());
        assert_eq!(config.settings.max_buckets, 65_536);
        assert_eq!(allowances(&config, "free"), (limited(10, 1_000_000), limited(2, 500_000)));
        assert_eq!(allowances(&config, "pro"), (limited(25, 2_000_000), limited(15, 2_000_000)));
        assert_eq!(allowances(&config, "enterprise"), (limited(50, 5_000_000), limited(30, 5_000_000)));
    }
}

#[test]
fn the_shipped_files_match_the_built_in_configuration() {
    let files = format!(
        r#"{{"tiers": {}, "api_keys": {}}}"#,
        include_str!("../config/tiers.json"),
        include_str!("../config/api_keys.json")
    );
    let (shipped, built_in) = (config(&files), config(""));
    assert_eq!(shipped.tiers, built_in.tiers);
    for key in ["free", "pro", "enterprise"] {
        let caller = shipped.caller(KeyHash::of(key.as_bytes())).expect("a known key");
        assert_eq!((caller.tier.name.as_str(), caller.bucket.as_str()), (key, key));
    }
}

#[test]
fn burst_and_degraded_fall_back_to_base() {
    let config = config(
        r#"{"default_tier": "plain", "tiers": {
            "plain": {"base": {"capacity": 5, "refill_rate": 0.1}},
            "burst": {"base": {"capacity": 5, "refill_rate": 1}, "burst": {"capacity": 9}},
            "slower": {"base": {"capacity": 5, "refill_rate": 1}, "degraded": {"refill_rate": 0.25}},
            "smaller": {"base": {"capacity": 5, "refill_rate": 1}, "degraded": {"capacity": 1}},
            "shed": {"base": {"capacity": 5.0, "refill_rate": 1}, "degraded": {"capacity": 0, "refill_rate": 0}},
            "blocked": {"base": {"capacity": -0, "refill_rate": -0.0}},
            "open": {"unlimited": true}}}"#,
    );
    let cases = [
        ("plain", limited(5, 100_000), limited(5, 100_000)),
        ("burst", limited(9, 1_000_000), limited(5, 1_000_000)),
        ("slower", limited(5, 1_000_000), limited(5, 250_000)),
        ("smaller", limited(5, 1_000_000), limited(1, 1_000_000)),
        ("shed", limited(5, 1_000_000), Allowance::Blocked),
        ("blocked", Allowance::Blocked, Allowance::Blocked),
        ("open", Allowance::Unlimited, Allowance::Unlimited),
    ];
    for (tier, normal, degraded) in cases {
        assert_eq!(allowances(&config, tier), (normal, degraded), "{tier}");
    }
}

#[test]
fn the_largest_and_smallest_numbers_are_in_range() {
    let config = config(
        r#"{"default_tier": "a", "tiers": {
            "a": {"base": {"capacity": 10000000, "refill_rate": 1e6}, "ttl": 31536000},
            "b": {"base": {"capacity": 1, "refill_rate": 0.000001}, "ttl": 1},
            "c": {"base": {"capacity": 1, "refill_rate": 0.000277777}}}}"#,
    );
    assert_eq!(allowances(&config, "a").0, limited(10_000_000, 1_000_000_000_000));
    assert_eq!(allowances(&config, "b").0, limited(1, 1));
    assert_eq!(allowances(&config, "c").0, limited(1, 278), "rounded to the nearest millionth");
}

#[test]
fn keys_are_given_in_plain_text_or_as_hashes_and_name_their_bucket() {
    let config = config(
        r#"{"api_keys": {
            "plain": {"tier": "pro", "id": "acme"},
            "sha256:BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD": {"tier": "enterprise"},
            "legacy-key": "free"}}"#,
    );
    let caller = |key: &str| {
        let caller = config.caller(KeyHash::of(key.as_bytes()))?;
        Some((caller.tier.name.clone(), caller.bucket.clone()))
    };
    let known = |tier: &str, bucket: &str| Some((tier.to_owned(), bucket.to_owned()));
    assert_eq!(caller("plain"), known("pro", "acme"));
    assert_eq!(caller("abc"), known("enterprise", "ba7816bf8f01cfea"));
    assert_eq!(caller("legacy-key"), known("free", &KeyHash::of(b"legacy-key").short_hex()));
    assert_eq!(caller("Plain"), None);
    let shown = format!("{config:?}");
    for key in ["\"plain\"", "legacy-key", "BA7816", "5dae2223"] {
        assert!(!shown.contains(key), "{key} is kept");
    }
}

#[test]
fn a_bad_environment_variable_is_an_error_that_names_it() {
    let source = r#"{"config_source": {"cluster": "files", "tiers": "/t"}}"#;
    let bad_source = r#"{"config_source": {"cluster": "files", "tiers": "/t", "ttl_seconds": -5}}"#;
    let gold = "DEFAULT_TIER: found \"gold\", wanted one of the tiers free, pro, enterprise";
    let bytes = "DEFAULT_TIER: found bytes that are not UTF-8, wanted the name of a tier";
    let zero = "CONFIG_TTL: found \"0\", wanted a whole number of seconds from 1 to 86400";
    let soon = "CONFIG_TTL: found \"soon\", wanted a whole number of seconds from 1 to 86400";
    // (configuration, default tier and ttl in the environment, error)
    let cases = [
        (source, None, Some("0"), zero),
        (source, None, Some("soon"), soon),
        (source, Some(&b"\xff"[..]), None, bytes),
        ("{}", Some(b"gold"), None, gold),
        // A variable does not hide a bad field.
        (r#"{"default_tier": 7}"#, Some(b"free"), Some("5"), "default_tier: found 7, wanted a string"),
        (
            bad_source,
            Some(b"free"),
            Some("5"),
            "config_source.ttl_seconds: found -5, wanted a whole number from 1 to 86400",
        ),
    ];
    for (json, tier, ttl, wanted) in cases {
        let environment = Environment {
            default_tier: tier.map(<[u8]>::to_vec),
            config_ttl: ttl.map(Vec::from),
            ..Environment::default()
        };
        let error = PluginConfig::parse(json.as_bytes(), &environment).err();
        assert_eq!(error.as_deref(), Some(wanted), "{json}");
    }
}

#[test]
fn a_token_that_no_header_can_contain_is_an_error() {
    let with = |token: &[u8]| {
        let environment = Environment { admin_token: Some(token.to_vec()), ..Environment::default() };
        PluginConfig::parse(b"{}", &environment)
    };
    for token in [&b"s"[..], b"with spaces inside", &[0xff; 1024]] {
        assert!(with(token).is_ok(), "{token:?}");
    }
    for token in [&b"secret\n"[..], b" secret", b"secret ", b"se\0cret", &[b's'; 1025]] {
        let error = with(token).expect_err("a bad token");
        assert!(error.starts_with("ADMIN_TOKEN: found ") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn tier_names_are_not_checked_before_the_tier_document_arrives() {
    let plugin = parse(
        r#"{"default_tier": "bronze", "api_keys": {"k": "gold"},
            "config_source": {"cluster": "files", "tiers": "/tiers.json"}}"#,
    )
    .expect("the names may be in the document");
    let before = Config::new(&plugin, &Documents::default()).expect("a start");
    assert_eq!(before.default_tier.name, "free");
    assert_eq!(
        before.caller(KeyHash::of(b"k")).map(|caller| caller.tier.name.clone()),
        Some("free".to_owned())
    );
    assert!(
        parse(r#"{"default_tier": "bronze", "config_source": {"cluster": "files", "api_keys": "/k"}}"#)
            .is_err()
    );
}

#[test]
fn every_configuration_in_the_docs_is_valid() {
    let pages = [include_str!("../README.md"), include_str!("../docs/limits.md")];
    let blocks: Vec<_> = pages.iter().flat_map(|page| configurations(page)).collect();
    assert_eq!(blocks.len(), 2);
    for json in blocks {
        assert_eq!(parse(json).err(), None, "{json}");
    }
}

/// The plugin configurations on a page: blocks of JSON, and values in blocks of Envoy's configuration.
fn configurations(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| {
        block
            .strip_prefix("json\n")
            .or_else(|| Some(block.strip_prefix("yaml\n")?.split_once("value: |\n")?.1))
    })
}

#[test]
fn a_leading_byte_order_mark_is_accepted() {
    assert!(parse("\u{feff}{\"default_tier\": \"pro\"}").is_ok());
    assert_eq!(
        parse("\u{feff}{").err().as_deref(),
        Some("not valid JSON: EOF while parsing an object at line 1 column 1")
    );
}

#[test]
fn a_min_share_of_callers_has_the_priority_of_the_most_important_tier() {
    let tiers = r#"{"free": {"unlimited": true, "priority": 1, "min_share": 0.1},
        "pro": {"unlimited": true, "priority": 4}, "gold": {"unlimited": true, "priority": 8}}"#;
    let config = config(&format!(r#"{{"tiers": {tiers}}}"#));
    let priorities = |tier: &str| {
        let tier = config.tiers.iter().find(|known| known.name == tier).expect("a known tier");
        let orders = (0..10_000).map(|caller| rotating_order(&caller, StoreTime::default()));
        let mut callers = BTreeMap::<u8, u32>::new();
        orders.for_each(|order| *callers.entry(config.priority(tier, order)).or_default() += 1);
        callers
    };
    assert_eq!(priorities("pro"), [(4, 10_000)].into());
    let free = priorities("free");
    assert!((900..1_100).contains(&free[&8]), "{free:?}");
    assert_eq!(free[&1] + free[&8], 10_000, "{free:?}");
}
