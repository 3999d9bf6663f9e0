//! When health changes.

use super::*;

/// The time until this health, at most ten minutes, with callers that send these requests and errors a second.
fn seconds_until(
    wanted: Health,
    detector: &mut HealthDetector,
    now_ms: &mut u64,
    callers: &[(f64, f64)],
) -> Option<f64> {
    let began_ms = *now_ms;
    for _ in 0..600 {
        *now_ms += 1_000;
        let mut observed = CallerObservations::default();
        for (caller, (requests, errors)) in (0..).zip(callers) {
            let (requests, errors) = (*requests, *errors);
            observed.count(caller, CallerCounts { requests, errors, ..CallerCounts::default() });
        }
        detector.update(&observed, &HealthThresholds::default(), at(*now_ms));
        if detector.reason.is_some() == (wanted == Health::Degraded) {
            return Some((*now_ms - began_ms) as f64 / 1e3);
        }
    }
    None
}

fn detector() -> HealthDetector {
    HealthDetector::new(at(0))
}

#[test]
fn errors_of_all_callers_turn_health_degraded_and_it_recovers() {
    let (mut detector, mut now_ms) = (detector(), 0);
    let failing = seconds_until(Health::Degraded, &mut detector, &mut now_ms, &[(10.0, 10.0); 20]);
    assert!(failing.is_some_and(|seconds| (3.0..=5.0).contains(&seconds)), "{failing:?}");
    assert_eq!(detector.reason, Some(DegradeReason::ErrorRatio));
    let healthy = seconds_until(Health::Normal, &mut detector, &mut now_ms, &[(10.0, 0.0); 20]);
    assert!(healthy.is_some_and(|seconds| (10.0..=15.0).contains(&seconds)), "{healthy:?}");
}

#[test]
fn one_caller_among_others_cannot_turn_health_degraded() {
    for (others, requests) in [(1, 5.0), (2, 5.0), (3, 5.0), (20, 5.0), (20, 0.25)] {
        for bad in [
            CallerCounts { requests: 1_000.0, errors: 1_000.0, ..CallerCounts::default() },
            CallerCounts { requests: 1_000.0, slow: 1_000.0, ..CallerCounts::default() },
            CallerCounts { shed: 1_000.0, ..CallerCounts::default() },
        ] {
            let mut detector = detector();
            for second in 1..60 {
                let mut observed = CallerObservations::default();
                observed.count(0, bad);
                for caller in 1..=others {
                    observed.count(caller, CallerCounts { requests, ..CallerCounts::default() });
                }
                detector.update(&observed, &HealthThresholds::default(), at(second * 1_000));
                assert_eq!(detector.reason, None, "{others} others with {requests}, {bad:?}");
            }
        }
    }
}

#[test]
fn callers_who_are_slower_than_a_large_one_do_not_turn_health_degraded() {
    let mut detector = detector();
    for second in 1..60 {
        let mut observed = CallerObservations::default();
        observed.count(0, CallerCounts { requests: 950.0, ..CallerCounts::default() });
        for caller in 1..=20 {
            observed.count(caller, CallerCounts { requests: 2.5, slow: 2.5, ..CallerCounts::default() });
        }
        detector.update(&observed, &HealthThresholds::default(), at(second * 1_000));
        assert_eq!(detector.reason, None, "five in a hundred requests are slow");
    }
}

#[test]
fn health_is_judged_anew_after_a_time_without_a_measurement() {
    let (mut detector, mut now_ms) = (detector(), 0);
    seconds_until(Health::Degraded, &mut detector, &mut now_ms, &[(10.0, 10.0); 20]);
    detector.update(&CallerObservations::default(), &HealthThresholds::default(), at(now_ms + 10_001));
    assert!(detector.is_calm(), "{detector:?}");
}

#[test]
fn too_few_requests_decide_nothing() {
    let few = [(4.0, 4.0)];
    assert_eq!(seconds_until(Health::Degraded, &mut detector(), &mut 0, &few), None);
}

#[test]
fn more_than_a_tenth_of_requests_shed_turns_health_degraded() {
    for (shed, is_degraded) in [(9.9, false), (10.1, true)] {
        let mut detector = detector();
        for second in 1..60 {
            let mut observed = CallerObservations::default();
            for caller in 0..20 {
                let requests = 100.0 - shed;
                observed.count(caller, CallerCounts { requests, shed, ..CallerCounts::default() });
            }
            detector.update(&observed, &HealthThresholds::default(), at(second * 1_000));
        }
        assert_eq!(detector.reason.is_some(), is_degraded, "{shed} %");
    }
}
