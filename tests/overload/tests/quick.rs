//! A few scenarios, in which all holds; and proof that a controller that is wrong would be noticed.

use overload::judge::judge;
use overload::scenario::{Scenario, all, quick};
use overload::world::{run, run_told};

#[test]
fn in_a_few_scenarios_all_holds_that_has_to() {
    let scenarios = quick();
    assert_eq!(scenarios.len(), 25, "each name in the list is a scenario's");
    for scenario in scenarios {
        let verdict = judge(&scenario, &run(&scenario, 1), &run_told(&scenario, 1));
        assert!(verdict.violations.is_empty(), "{}: {:?}", scenario.name, verdict.violations);
    }
}

#[test]
fn what_was_borne_before_is_let_through_once_a_slow_upstream_is_as_quick_again() {
    for name in ["small-even-slow0.5", "backlog-pro80-slow0.85", "endless-free90-slow0.15"] {
        for seed in 1..=3 {
            let (scenario, shortfalls) = shortfalls(name, seed);
            let calm = scenario.phases.last().expect("the calm after it").to_string();
            assert!(!shortfalls.contains(&calm), "{name}, seed {seed}: {shortfalls}");
            assert!(!shortfalls.contains("NORMAL"), "{name}, seed {seed}: {shortfalls}");
        }
    }
}

#[test]
fn what_is_chance_is_not_shed_for_while_a_slow_upstream_can_do_all_that_is_asked() {
    let names =
        ["free80", "free90", "even", "pro80", "ent60", "ent90"].map(|mix| format!("endless-{mix}-slow0.15"));
    let short = names.iter().filter(|name| !shortfalls(name, 1).1.is_empty()).count();
    assert!(short <= 2, "{short} of {}", names.len());
}

#[test]
fn a_world_is_its_scenario_and_its_seed() {
    let scenario = all().swap_remove(7);
    let counted = |seed| run(&scenario, seed).bins.iter().map(|bin| (bin.sent, bin.good)).collect::<Vec<_>>();
    assert_eq!(counted(1), counted(1));
    assert_ne!(counted(1), counted(2));
}

#[test]
fn without_shedding_an_overloaded_upstream_serves_almost_nobody() {
    let mut scenario = named("deep-free90-step3");
    let told = run_told(&scenario, 1);
    let can_be_had = judge(&scenario, &told, &told).goodput;
    assert!(can_be_had.is_some_and(|goodput| goodput > 0.95), "{can_be_had:?}");
    scenario.bounds.shed = false;
    let verdict = judge(&scenario, &run(&scenario, 1), &told);
    assert!(verdict.goodput.is_some_and(|goodput| goodput < 0.5), "{:?}", verdict.goodput);
    assert!(!verdict.violations.is_empty());
}

fn named(name: &str) -> Scenario {
    all().into_iter().find(|scenario| scenario.name == name).expect("there is one")
}

/// What does not hold in a run with an upstream that is ill.
fn shortfalls(name: &str, seed: u64) -> (Scenario, String) {
    let scenario = named(name);
    let verdict = judge(&scenario, &run(&scenario, seed), &run_told(&scenario, seed));
    assert!(verdict.violations.is_empty(), "{name}: {:?}", verdict.violations);
    (scenario, verdict.shortfalls.join("; "))
}
