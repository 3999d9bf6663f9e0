//! Envoy does not start with an invalid plugin configuration, and logs which field is wrong. Every rule has its test in
//! `tests/`; these tests show that Envoy rejects the configuration.

use e2e::setup::Setup;
use serde_json::{Value, json};

use crate::support::two_tiers;

#[track_caller]
fn assert_refused(text: &str, words: &[&str]) {
    let log = Setup::new().config_text(text).start_refused();
    let named = log.lines().any(|line| {
        let at_error_level = line.contains("[error]") || line.contains("[critical]");
        at_error_level && words.iter().all(|word| line.contains(word))
    });
    assert!(named, "an error line with {words:?} in\n{log}");
}

/// A valid configuration with one field replaced.
fn with(pointer: &str, value: Value) -> String {
    let mut config = two_tiers(5, 7);
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let parent = config.pointer_mut(parent).expect("the parent exists");
    parent[field] = value;
    config.to_string()
}

#[test]
fn invalid_json_is_refused() {
    assert_refused("{", &[]);
    assert_refused("[]", &[]);
    assert_refused("tiers: {}", &[]);
}

#[test]
fn an_unknown_field_is_refused_by_name() {
    assert_refused(&with("/tires", json!({})), &["tires"]);
    assert_refused(&with("/tiers/free/bust", json!({})), &["free", "bust"]);
}

#[test]
fn an_invalid_number_is_refused_with_its_field() {
    assert_refused(&with("/tiers/free/base/refill_rate", json!(-1)), &["free", "refill_rate", "-1"]);
    assert_refused(&with("/tiers/free/base/capacity", json!(1.5)), &["free", "capacity", "1.5"]);
}

#[test]
fn an_undefined_name_is_refused() {
    // If key and tier are swapped, the tier's name is a key, which must not be shown.
    assert_refused(&with("/api_keys/k", json!("platinum")), &["api_keys[1]", "no tier"]);
    assert_refused(&with("/default_tier", json!("platinum")), &["default_tier", "platinum"]);
    assert_refused(
        &with("/api_keys/k", json!({"tier": "free", "id": "127.0.0.1"})),
        &["api_keys[1].id", "address"],
    );
    assert_refused(&with("/api_keys/k", json!({"tier": "free", "id": "pro"})), &["pro"]);
}
