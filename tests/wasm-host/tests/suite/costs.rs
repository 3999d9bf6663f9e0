//! The cost of a request does not grow unnoticed.

use wasm_host::costs;

#[test]
fn every_kind_of_request_has_its_recorded_cost() {
    let recorded = std::fs::read_to_string(costs::recorded_path()).expect("the recorded table");
    let table = costs::measure();
    let found = costs::differences(&table, &recorded);
    assert!(
        found.is_empty(),
        "costs differ from costs.txt:\n{}\nIf this is intended: cargo run -p wasm-host -- costs --record, and explain it in the commit",
        found.join("\n")
    );
    let calls = |kind: &str| -> u64 {
        let of_kind = |name: &str| name.rsplit_once(": ").is_some_and(|(known, _)| known == kind);
        let rows = table.iter().filter(|(name, _)| of_kind(name));
        rows.flat_map(|(_, cost)| cost.calls.values()).sum()
    };
    let unmeasured = calls("admitted, known key");
    assert_eq!(calls("measured, known key"), unmeasured + 5, "host calls of measured health");
}

#[test]
fn a_more_expensive_request_is_detected() {
    let table = costs::measure();
    let recorded = costs::shown(&table);
    for (index, percent) in [(0, 89), (0, 111)] {
        let mut other = table.clone();
        other[index].1.fuel = other[index].1.fuel * percent / 100;
        assert_eq!(costs::differences(&other, &recorded).len(), 1, "{percent} %");
    }
    let mut other = table.clone();
    *other[0].1.calls.entry("get_property".to_owned()).or_default() += 1;
    assert_eq!(costs::differences(&other, &recorded).len(), 1);
    assert_eq!(costs::differences(&table[1..], &recorded).len(), table.len(), "one kind missing");
}
