//! A plugin configuration that is wrong stops Envoy at the start, with a line that says what and
//! where. Every rule has its test in `tests/`; here is that Envoy acts on it.

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

/// A good configuration with one thing put in its place.
fn with(pointer: &str, value: Value) -> String {
    let mut config = two_tiers(5, 7);
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let parent = config.pointer_mut(parent).expect("the place is there");
    parent[field] = value;
    config.to_string()
}

#[test]
fn what_is_no_json_is_refused() {
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
fn a_wrong_number_is_refused_with_its_place() {
    assert_refused(&with("/tiers/free/base/refill_rate", json!(-1)), &["free", "refill_rate", "-1"]);
    assert_refused(&with("/tiers/free/base/capacity", json!(1.5)), &["free", "capacity", "1.5"]);
}

#[test]
fn a_name_that_leads_nowhere_is_refused() {
    // Where key and tier have been swapped, what should name a tier is a key: it is not shown.
    assert_refused(&with("/api_keys/k", json!("platinum")), &["api_keys[1]", "no tier"]);
    assert_refused(&with("/default_tier", json!("platinum")), &["default_tier", "platinum"]);
    assert_refused(
        &with("/api_keys/k", json!({"tier": "free", "id": "127.0.0.1"})),
        &["api_keys[1].id", "address"],
    );
    assert_refused(&with("/api_keys/k", json!({"tier": "free", "id": "pro"})), &["pro"]);
}
