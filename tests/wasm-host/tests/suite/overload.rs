//! Requests that wait for a place in flight, with arrivals, responses and ticks in any order.

use harness::random::Random;
use scenarios::Request;
use wasm_host::{Setup, World};

const CONFIGURATION: &str = r#"{
    "tiers": {"free": {"base": {"capacity": 100000, "refill_rate": 1}, "priority": 1},
              "pro": {"base": {"capacity": 100000, "refill_rate": 1}, "priority": 5}},
    "api_keys": {"one": "pro", "two": "pro", "three": "pro", "four": "pro"},
    "health": {"mode": "auto"}}"#;

/// More than the longest wait for a place.
const LATER_MS: u64 = 1_100;

#[test]
fn each_request_of_an_overload_is_sent_on_or_answered() {
    for seed in 0..50 {
        let mut random = Random::new(seed);
        let mut world = World::start(Setup::new(CONFIGURATION).workers(2));
        world.upstream.waits = true;
        let mut sent = Vec::new();
        for _ in 0..300 {
            match random.below(8) {
                0..5 => {
                    let request = Request::get("/");
                    let request = match random.one_in(2) {
                        true => request.key(random.choose(&["one", "two", "three", "four"])),
                        false => request.from(&format!("192.0.2.{}", random.below(4))),
                    };
                    sent.push(world.send(random.choose(&[0, 1]), &request));
                }
                5..7 => {
                    let undecided = world.undecided();
                    sent.retain(|id| world.response(*id).is_none());
                    let is_in_flight = |id: &usize| !undecided.contains(id);
                    let in_flight: Vec<_> = sent.iter().copied().filter(is_in_flight).collect();
                    if !in_flight.is_empty() {
                        world.upstream_answers(random.choose(&in_flight));
                    }
                }
                _ => world.advance_ms(random.below(4)),
            }
        }
        world.advance_ms(LATER_MS);
        let undecided = world.undecided();
        assert!(undecided.is_empty(), "seed {seed}: {undecided:?} are neither sent on nor answered");
    }
}

/// Thirty-two clusters have series of their own.
#[test]
fn requests_of_further_clusters_are_shed_under_the_name_of_their_common_limit() {
    let mut world = World::start(Setup::new(CONFIGURATION));
    world.upstream.waits = true;
    for n in (0..40).chain([31, 32, 39].repeat(60)) {
        world.upstream.cluster = format!("cluster-{n}");
        world.send(0, &Request::get("/"));
    }
    world.advance_ms(LATER_MS + 1_000);
    let shed = "rate_limiter_cluster_shed_total.cluster.";
    let names = world.processes[0].stat_names();
    let mut series: Vec<_> = names.iter().filter_map(|name| name.strip_prefix(shed)).collect();
    assert_eq!(series.len(), 33, "each begins at 0");
    series.retain(|name| world.processes[0].stat(&format!("{shed}{name}")) > 0);
    series.sort_unstable();
    assert_eq!(series, ["_others", "cluster-31"]);
}
