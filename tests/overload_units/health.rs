//! When health changes.

use super::*;

fn answered(requests: f64, errors: f64) -> CallerCounts {
    CallerCounts { requests, errors, ..CallerCounts::default() }
}

fn observed(callers: &[CallerCounts]) -> CallerObservations {
    let mut observed = CallerObservations::default();
    (0..).zip(callers).for_each(|(caller, counts)| count(&mut observed, caller, *counts));
    observed
}

/// The time until this health, at most ten minutes, with callers that are observed so in each second.
fn seconds_until(
    wanted: Health,
    detector: &mut HealthDetector,
    now_ms: &mut u64,
    callers: &[CallerCounts],
) -> Option<u32> {
    (1..=600).find(|_| {
        *now_ms += 1_000;
        detector.update(&observed(callers), &HealthThresholds::default(), at(*now_ms));
        detector.reason.is_some() == (wanted == Health::Degraded)
    })
}

fn turns_degraded(callers: &[CallerCounts]) -> bool {
    seconds_until(Health::Degraded, &mut HealthDetector::default(), &mut 0, callers).is_some()
}

#[test]
fn errors_of_all_callers_turn_health_degraded_and_it_recovers() {
    let (mut detector, mut now_ms) = (HealthDetector::default(), 0);
    let failing = seconds_until(Health::Degraded, &mut detector, &mut now_ms, &[answered(10.0, 10.0); 20]);
    assert!(failing.is_some_and(|seconds| (3..=5).contains(&seconds)), "{failing:?}");
    assert_eq!(detector.reason, Some(DegradeReason::ErrorRatio));
    let healthy = seconds_until(Health::Normal, &mut detector, &mut now_ms, &[answered(10.0, 0.0); 20]);
    assert!(healthy.is_some_and(|seconds| (10..=15).contains(&seconds)), "{healthy:?}");
}

#[test]
fn one_caller_among_others_cannot_turn_health_degraded() {
    for (others, requests) in [(1, 5.0), (2, 5.0), (3, 5.0), (20, 5.0), (20, 0.25)] {
        for bad in [
            CallerCounts { requests: 1_000.0, errors: 1_000.0, ..CallerCounts::default() },
            CallerCounts { requests: 1_000.0, slow: 1_000.0, ..CallerCounts::default() },
            CallerCounts { shed: 1_000.0, ..CallerCounts::default() },
        ] {
            let callers = [vec![bad], vec![answered(requests, 0.0); others]].concat();
            assert!(!turns_degraded(&callers), "{others} others with {requests}, {bad:?}");
        }
    }
}

#[test]
fn one_caller_that_takes_the_places_of_others_does_not_turn_health_degraded() {
    // It sends three times what the upstream can do, before the others or among them.
    for (served, shed_of_others) in [(500.0, 10.0), (440.0, 7.0)] {
        let large = CallerCounts { shed: 1_500.0 - served, ..answered(served, 0.0) };
        let small = CallerCounts { shed: shed_of_others, ..answered(10.0 - shed_of_others, 0.0) };
        for others in [1, 2, 20] {
            let callers = [vec![large], vec![small; others]].concat();
            assert!(!turns_degraded(&callers), "{others} others, {served} served");
        }
    }
}

#[test]
fn callers_who_are_slower_than_a_large_one_do_not_turn_health_degraded() {
    let slower = CallerCounts { slow: 2.5, ..answered(2.5, 0.0) };
    let callers = [vec![answered(950.0, 0.0)], vec![slower; 20]].concat();
    assert!(!turns_degraded(&callers), "five in a hundred requests are slow");
}

#[test]
fn health_is_judged_anew_after_a_time_without_a_measurement() {
    let (mut detector, mut now_ms) = (HealthDetector::default(), 0);
    seconds_until(Health::Degraded, &mut detector, &mut now_ms, &[answered(10.0, 10.0); 20]);
    detector.update(&CallerObservations::default(), &HealthThresholds::default(), at(now_ms + 10_001));
    assert!(detector.is_calm(), "{detector:?}");
}

#[test]
fn too_few_requests_decide_nothing() {
    assert!(!turns_degraded(&[answered(4.0, 4.0)]));
}

#[test]
fn more_than_a_tenth_of_requests_shed_turns_health_degraded() {
    for (shed, is_degraded) in [(9.9, false), (10.1, true)] {
        let callers = [CallerCounts { shed, ..answered(100.0 - shed, 0.0) }; 20];
        assert_eq!(turns_degraded(&callers), is_degraded, "{shed} %");
    }
}
