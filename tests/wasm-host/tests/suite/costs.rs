//! The cost of a request does not grow unnoticed.

use wasm_host::costs;

#[test]
fn every_kind_of_request_has_its_recorded_cost() {
    let recorded = std::fs::read_to_string(costs::recorded_path()).expect("the recorded table");
    let found = costs::differences(&costs::measure(), &recorded);
    assert!(
        found.is_empty(),
        "costs differ from costs.txt:\n{}\nIf this is intended: cargo run -p wasm-host -- costs --record, and explain it in the commit",
        found.join("\n")
    );
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

/// Without a queue in use: the cluster, its gauge twice, the status, and the gauge once more.
#[test]
fn measured_health_costs_a_request_five_host_calls_more() {
    let table = costs::measure();
    let calls = |name: &str| -> u64 {
        let rows =
            table.iter().filter(|(known, _)| known.rsplit_once(": ").is_some_and(|(kind, _)| kind == name));
        let counts: Vec<u64> = rows.map(|(_, cost)| cost.calls.values().sum()).collect();
        assert_eq!(counts.len(), 2, "{name}: request and response");
        counts.iter().sum()
    };
    let manual = calls("admitted, known key");
    assert_eq!(calls("measured, known key"), manual + 5);
    assert_eq!(calls("measured, headers alone"), manual + 5);
    // The end of a body is timed. A 200 without a body, to a request with one, may be gRPC, whose status is read.
    assert_eq!(calls("measured, body, headers alone"), manual + 5 + 1 + 1);
    // Without `X-Processing-Time` one header and one clock read are omitted; the latency is still measured.
    assert_eq!(calls("measured, untimed"), manual - 2 + 6);
    assert_eq!(calls("measured, untimed, headers alone"), manual - 2 + 6);
}
