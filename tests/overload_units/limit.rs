//! How many requests may be in flight.

use super::*;

/// What one worker observes in 50 ms: five responses with this latency, while this percentage of requests waits.
fn responses(latency_ms: f64, waiting_percent: f64) -> Observations {
    let latency_s = 5.0 * latency_ms / 1e3;
    Observations {
        arrivals: 5.0,
        waited: 5.0 * waiting_percent / 100.0,
        ended: 5.0,
        answered: 5.0,
        responses: 5.0,
        samples: 5.0,
        latency_s,
        in_flight_s: latency_s,
        ..Observations::default()
    }
}

fn flush(limit: &mut ConcurrencyLimit, now_ms: &mut u64, observed: &Observations) {
    *now_ms += 50;
    limit.update(observed, limit.limit(), at(*now_ms));
}

fn second(limit: &mut ConcurrencyLimit, now_ms: &mut u64, latency_ms: f64, waiting_percent: f64) {
    (0..20).for_each(|_| flush(limit, now_ms, &responses(latency_ms, waiting_percent)));
}

fn learned() -> (ConcurrencyLimit, u64) {
    let (mut limit, mut now_ms) = (ConcurrencyLimit::new(at(0)), 1_000);
    (0..60).for_each(|_| second(&mut limit, &mut now_ms, 100.0, 0.0));
    let baseline_ms = limit.baseline().unwrap().as_millis();
    assert!(limit.state == LimitState::Open && (95..105).contains(&baseline_ms), "{limit:?}");
    (limit, now_ms)
}

#[test]
fn it_grows_while_requests_wait_and_latency_is_at_the_baseline() {
    for (percent, grows) in [(10.0, false), (35.0, true)] {
        let (mut limit, mut now_ms) = learned();
        let before = limit.limit();
        second(&mut limit, &mut now_ms, 100.0, percent);
        let has_grown = limit.limit() > 1.5 * before;
        assert_eq!(has_grown, grows, "{percent} % wait, {limit:?}");
    }
}

#[test]
fn a_pause_does_not_lower_the_limit() {
    let (mut limit, mut now_ms) = (ConcurrencyLimit::new(at(0)), 0);
    // Two workers with 2,000 requests a second of 50 ms each.
    let mut flush = |limit: &mut ConcurrencyLimit, requests: f64, elapsed_ms: u64| {
        now_ms += elapsed_ms;
        let observed = Observations {
            arrivals: requests,
            ended: requests,
            answered: requests,
            responses: requests,
            samples: requests,
            latency_s: 0.05 * requests,
            in_flight_s: 0.05 * requests,
            ..Observations::default()
        };
        limit.update(&observed, requests + 1.0, at(now_ms));
    };
    (0..2_000).for_each(|_| flush(&mut limit, 50.0, 25));
    let before = limit.limit();
    assert!(before > 400.0, "{limit:?}");
    // Some requests stay in flight.
    (0..60).for_each(|_| flush(&mut limit, 0.0, 500));
    (0..8).for_each(|_| flush(&mut limit, 50.0, 25));
    assert!(limit.limit() > 0.8 * before, "{before}, {limit:?}");
}

fn errors_while_requests_wait() -> Observations {
    Observations { arrivals: 5.0, waited: 4.0, ended: 1.0, answered: 1.0, ..Observations::default() }
}

#[test]
fn an_error_among_responses_does_not_raise_the_limit() {
    let (mut limit, mut now_ms) = learned();
    for response in [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] {
        now_ms += 200;
        let observed = Observations {
            responses: response,
            samples: response,
            latency_s: response,
            in_flight_s: response,
            ..errors_while_requests_wait()
        };
        let before = limit.limit();
        limit.update(&observed, before, at(now_ms));
        assert_eq!(limit.limit(), before, "{limit:?}");
    }
}

#[test]
fn errors_alone_end_a_trial() {
    let (mut limit, mut now_ms) = learned();
    let before = limit.limit();
    while !matches!(limit.state, LimitState::Trial(_)) {
        flush(&mut limit, &mut now_ms, &responses(400.0, 90.0));
    }
    let errors = errors_while_requests_wait();
    for _ in 0..45 {
        now_ms += 50;
        limit.update(&errors, 1.0, at(now_ms));
    }
    assert!(limit.state == LimitState::Limiting && limit.limit() >= before, "{limit:?}");
}

#[test]
fn errors_alone_raise_the_limit_while_requests_wait() {
    let (mut limit, mut now_ms) = learned();
    let before = limit.limit();
    let errors = errors_while_requests_wait();
    for _ in 0..45 {
        now_ms += 50;
        limit.update(&errors, before, at(now_ms));
    }
    assert!(limit.limit() >= before + 8.0, "{limit:?}");
}

#[test]
fn neither_the_baseline_nor_the_limit_follows_a_queue_that_builds_up() {
    for waiting_percent in [0.0, 5.0] {
        let (mut limit, mut now_ms) = learned();
        let before = limit.limit();
        for latency_ms in (150..650).step_by(50) {
            second(&mut limit, &mut now_ms, latency_ms.into(), waiting_percent);
        }
        assert!(limit.baseline() < Some(Duration::from_millis(300)), "{waiting_percent}: {limit:?}");
        assert!(limit.limit() < 1.3 * before, "{waiting_percent}: {limit:?}");
    }
}

#[test]
fn the_baseline_of_a_cold_start_does_not_follow_a_queue_that_builds_up() {
    let (mut limit, mut now_ms) = (ConcurrencyLimit::new(at(0)), 1_000);
    assert_eq!(limit.limit(), INITIAL_LIMIT / 2.0);
    for latency_ms in (100..600).step_by(50) {
        second(&mut limit, &mut now_ms, latency_ms.into(), 0.0);
    }
    assert!(limit.baseline() < Some(Duration::from_millis(250)), "{limit:?}");
    assert!(limit.limit() < 2.0 * INITIAL_LIMIT, "{limit:?}");
}

#[test]
fn a_cut_that_lowers_latency_stays() {
    let (mut limit, mut now_ms) = learned();
    let before = limit.limit();
    while !matches!(limit.state, LimitState::Trial(_)) {
        second(&mut limit, &mut now_ms, 400.0, 90.0);
    }
    assert!(limit.queue_limit() >= before, "an unproved cut is no reason to shed");
    (0..4).for_each(|_| second(&mut limit, &mut now_ms, 140.0, 90.0));
    assert!(limit.limit() < before, "{limit:?}");
    assert!(limit.baseline() < Some(Duration::from_millis(115)), "{limit:?}");
}

#[test]
fn a_cut_that_does_not_lower_latency_is_reverted_and_the_baseline_follows_the_measurement() {
    let (mut limit, mut now_ms) = learned();
    (0..30).for_each(|_| second(&mut limit, &mut now_ms, 400.0, 90.0));
    assert!(limit.baseline() > Some(Duration::from_millis(390)), "{limit:?}");
    assert!(limit.limit() > 1.0, "{limit:?}");
}

#[test]
fn while_requests_time_out_a_cut_stays_even_if_latency_does_not_fall() {
    let (mut limit, mut now_ms) = learned();
    let observed = Observations { ended: 6.5, ..responses(400.0, 90.0) };
    (0..600).for_each(|_| flush(&mut limit, &mut now_ms, &observed));
    assert!(limit.baseline() < Some(Duration::from_millis(115)), "{limit:?}");
}

#[test]
fn while_the_upstream_responds_with_errors_a_cut_that_does_not_help_is_reverted() {
    let (mut limit, mut now_ms) = learned();
    let observed = Observations { ended: 6.5, answered: 6.5, ..responses(400.0, 90.0) };
    (0..600).for_each(|_| flush(&mut limit, &mut now_ms, &observed));
    assert!(limit.baseline() > Some(Duration::from_millis(390)), "{limit:?}");
}

#[test]
fn where_all_requests_time_out_the_limit_falls_although_none_waits() {
    let (mut limit, mut now_ms) = learned();
    let timeouts = Observations { arrivals: 5.0, ended: 5.0, ..Observations::default() };
    let before = limit.limit();
    for _ in 0..22 {
        now_ms += 50;
        limit.update(&timeouts, before, at(now_ms));
    }
    assert!(matches!(limit.state, LimitState::Silent { .. }), "{limit:?}");
    assert!(limit.limit() < 0.6 * before, "{limit:?}");
}

#[test]
fn where_requests_hang_and_none_is_given_up_others_are_tried() {
    let (mut limit, mut now_ms) = learned();
    let waiting = Observations { arrivals: 5.0, waited: 5.0, ..Observations::default() };
    let in_flight = limit.limit();
    for _ in 0..22 {
        now_ms += 50;
        limit.update(&waiting, in_flight, at(now_ms));
    }
    assert!(limit.limit() >= in_flight + 8.0, "{limit:?}");
}

#[test]
fn without_a_response_the_limit_falls_and_recovers_with_the_first_good_ones() {
    let (mut limit, mut now_ms) = learned();
    let waits = Observations { arrivals: 5.0, waited: 5.0, ..Observations::default() };
    let mut until_silent_ms = 0;
    while !matches!(limit.state, LimitState::Silent { .. }) {
        (now_ms, until_silent_ms) = (now_ms + 50, until_silent_ms + 50);
        limit.update(&waits, 15.0, at(now_ms));
    }
    assert_eq!(until_silent_ms, 1_050, "silence is more than a second");
    second(&mut limit, &mut now_ms, 100.0, 90.0);
    assert!(limit.limit() >= INITIAL_LIMIT, "{limit:?}");
}

#[test]
fn a_burst_after_an_idle_time_is_no_silence_of_the_upstream() {
    let (mut limit, mut now_ms) = learned();
    for _ in 0..10 {
        now_ms += 1_000;
        limit.update(&Observations::default(), 0.0, at(now_ms));
    }
    let burst = Observations { arrivals: 40.0, waited: 20.0, ..Observations::default() };
    limit.update(&burst, 20.0, at(now_ms + 50));
    assert_eq!(limit.state, LimitState::Open);
}

#[test]
fn with_any_observations_the_limit_stays_at_least_one() {
    let wild = [0.0, 1e-6, 0.5, 1.0, 8.0, 1e3, 1e9];
    let mut limit = ConcurrencyLimit::new(at(0));
    for (step, samples) in (0..).zip(wild.iter().cycle().take(200)) {
        let latency_s = wild[step as usize * 3 % wild.len()];
        let observed = Observations {
            arrivals: 1.0,
            waited: wild[step as usize * 5 % wild.len()],
            samples: *samples,
            latency_s,
            // What an earlier flush counted of a request that got no response is taken back in a later one.
            in_flight_s: wild[step as usize * 2 % wild.len()] - 1.0,
            ended: *samples,
            responses: 1.0,
            ..Observations::default()
        };
        // A clock that steps back, too.
        let now = at(step * 997 % 1_500);
        limit.learn_usual(&observed, now);
        limit.update(&observed, *samples, now);
        let (lowest, baseline) = (limit.limit().min(limit.queue_limit()), limit.baseline());
        assert!(lowest >= 1.0 && limit.target.is_finite(), "{limit:?}");
        assert!(limit.state == LimitState::Starting || baseline.is_some(), "{limit:?}");
    }
}
