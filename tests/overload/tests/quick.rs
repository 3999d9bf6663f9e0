//! A few scenarios, in which all holds; and proof that a controller that is wrong would be noticed.

use overload::judge::judge;
use overload::scenario::{all, quick};
use overload::world::{run, run_told};

#[test]
fn in_a_few_scenarios_all_holds_that_has_to() {
    let scenarios = quick();
    assert_eq!(scenarios.len(), 24, "each name in the list is a scenario's");
    for scenario in scenarios {
        let verdict = judge(&scenario, &run(&scenario, 1), &run_told(&scenario, 1));
        assert!(verdict.violations.is_empty(), "{}: {:?}", scenario.name, verdict.violations);
    }
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
    let mut scenario =
        all().into_iter().find(|scenario| scenario.name == "deep-free90-step3").expect("there is one");
    let told = run_told(&scenario, 1);
    let can_be_had = judge(&scenario, &told, &told).goodput;
    assert!(can_be_had.is_some_and(|goodput| goodput > 0.95), "{can_be_had:?}");
    scenario.bounds.shed = false;
    let verdict = judge(&scenario, &run(&scenario, 1), &told);
    assert!(verdict.goodput.is_some_and(|goodput| goodput < 0.5), "{:?}", verdict.goodput);
    assert!(!verdict.violations.is_empty());
}
