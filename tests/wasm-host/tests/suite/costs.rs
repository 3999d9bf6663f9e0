//! No request becomes dearer unseen, and the host calls are those that ARCHITECTURE.md names.

use wasm_host::costs;

#[test]
fn every_kind_of_request_costs_what_is_recorded() {
    let recorded = std::fs::read_to_string(costs::recorded_path()).expect("the recorded table");
    let found = costs::differences(&costs::measure(), &recorded);
    assert!(
        found.is_empty(),
        "costs differ from costs.txt:\n{}\nIf that is meant: cargo run -p wasm-host -- costs --record, and say why in the commit",
        found.join("\n")
    );
}

#[test]
fn a_dearer_request_would_be_noticed() {
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
    assert_eq!(costs::differences(&table[1..], &recorded).len(), table.len(), "one kind less");
}

#[test]
fn a_known_key_costs_the_host_calls_that_the_architecture_names() {
    let table = costs::measure();
    let find = |name: &str| &table.iter().find(|(known, _)| known == name).expect("a row").1.calls;
    let shown =
        |name: &str| find(name).iter().map(|(call, count)| format!("{call} {count}")).collect::<Vec<_>>();
    assert_eq!(
        shown("admitted, known key: request"),
        [
            "clock_time_get 2",
            "get_header_map_value 2",
            "get_metric 1",
            "get_shared_data 1",
            "set_shared_data 1"
        ]
    );
    assert_eq!(shown("admitted, known key: response"), ["clock_time_get 1", "replace_header_map_value 6"]);
}

/// The cluster, its gauge twice, the status, and the gauge once more: while no queue is in use.
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
    let told = calls("admitted, known key");
    assert_eq!(calls("measured, known key"), told + 5);
    assert_eq!(calls("measured, headers alone"), told + 5);
    // The end of a body is timed, and a 200 without a body to a request with one may be gRPC's, which has a status.
    assert_eq!(calls("measured, body, headers alone"), told + 5 + 1 + 1);
    // Without `X-Processing-Time` a header and its clock are not needed, but for the latency that is measured.
    assert_eq!(calls("measured, untimed"), told - 2 + 6);
    assert_eq!(calls("measured, untimed, headers alone"), told - 2 + 6);
}
