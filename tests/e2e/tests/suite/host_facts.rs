//! The facts about Envoy that the limiter relies on, checked by the probe filter: `tests/probe-filter/facts.json`.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use e2e::probe::Probe;
use scenarios::facts;
use serde_json::Value;

fn facts_of(table: &Value) -> impl Iterator<Item = &Value> {
    table["facts"].as_array().into_iter().flatten()
}

/// Checks every fact of a group, and lists the false ones.
#[track_caller]
fn assert_group(group: &str) {
    static TABLE: OnceLock<Value> = OnceLock::new();
    let table = TABLE.get_or_init(facts::table);
    let probe = Probe::start(table);
    let mut checked = 0;
    let mut found = Vec::new();
    for fact in facts_of(table).filter(|fact| fact["group"] == group) {
        checked += 1;
        let name = fact["name"].as_str().unwrap_or_default();
        let mismatches = probe.mismatches(fact);
        println!("fact {group}/{name}: {}", if mismatches.is_empty() { "yes" } else { "no" });
        found.extend(mismatches.into_iter().map(|mismatch| format!("{group}/{name}: {mismatch}")));
    }
    assert!(checked > 0, "no such group: {group}");
    assert!(found.is_empty(), "{} facts are false:\n{}", found.len(), found.join("\n"));
}

/// One test for each group, and one that every group of the table has a test.
macro_rules! groups {
    ($($group:ident)*) => {
        $(#[test] fn $group() { assert_group(stringify!($group)); })*

        #[test]
        fn every_group_of_the_table_has_a_test() {
            let table = facts::table();
            let tested = BTreeSet::from([$(stringify!($group)),*]);
            let listed: BTreeSet<_> = facts_of(&table).filter_map(|fact| fact["group"].as_str()).collect();
            assert_eq!(tested, listed);
        }
    };
}

groups! { shared_data clocks plugin metrics headers replies pauses bodies queues timers http_calls grpc contexts }

/// A wrong fact is detected: in the answer, the status, a header, and for an unknown path.
#[test]
fn a_wrong_fact_is_detected() {
    let table = facts::table();
    let probe = Probe::start(&table);
    let right = facts_of(&table).find(|fact| fact["name"] == "insert_if_absent").expect("a fact");
    assert_eq!(probe.mismatches(right), [""; 0]);
    for (field, wrong) in [
        ("answer", serde_json::json!("anything else")),
        ("status", serde_json::json!(201)),
        ("answer_headers", serde_json::json!({"content-type": []})),
        ("path", serde_json::json!("/shared_data/nonsense")),
    ] {
        let mut fact = right.clone();
        fact["steps"][0][field] = wrong;
        assert_ne!(probe.mismatches(&fact), [""; 0], "{field}");
    }
}
