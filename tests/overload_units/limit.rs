//! How many requests may be in flight.

use super::*;

/// What is observed of requests with this latency, none of which waits.
fn served(requests: f64, latency_s: f64) -> Observations {
    Observations {
        arrivals: requests,
        ended: requests,
        answered: requests,
        responses: requests,
        samples: requests,
        latency_s: requests * latency_s,
        in_flight_s: requests * latency_s,
        ..Observations::default()
    }
}

/// What one worker observes in 50 ms: five responses with this latency, while this percentage of requests waits.
fn responses(latency_ms: f64, waiting_percent: f64) -> Observations {
    Observations { waited: 5.0 * waiting_percent / 100.0, ..served(5.0, latency_ms / 1e3) }
}

fn errors_while_requests_wait() -> Observations {
    Observations { arrivals: 5.0, waited: 4.0, ended: 1.0, answered: 1.0, ..Observations::default() }
}

fn all_wait() -> Observations {
    Observations { arrivals: 5.0, waited: 5.0, ..Observations::default() }
}

/// The limit, and the time of its last update.
#[derive(Debug)]
struct Test {
    limit: ConcurrencyLimit,
    now_ms: u64,
}

impl Test {
    fn new() -> Self {
        Self { limit: ConcurrencyLimit::default(), now_ms: 0 }
    }

    /// After a minute with a latency of 100 ms.
    fn learned() -> Self {
        let mut test = Self::new();
        test.serve(60, 100.0, 0.0);
        assert!((95..105).contains(&test.baseline().as_millis()), "{test:?}");
        assert_eq!(test.limit.state, LimitState::Open, "{test:?}");
        test
    }

    fn limit(&self) -> f64 {
        self.limit.limit()
    }

    fn baseline(&self) -> Duration {
        self.limit.baseline().unwrap()
    }

    fn update(&mut self, after_ms: u64, observed: &Observations, in_flight: f64) {
        self.now_ms += after_ms;
        self.limit.update(observed, in_flight, at(self.now_ms));
    }

    /// Updates every 50 ms, with a constant number of requests in flight.
    fn repeat(&mut self, times: u32, observed: &Observations, in_flight: f64) {
        (0..times).for_each(|_| self.update(50, observed, in_flight));
    }

    /// Updates every 50 ms, with as many requests in flight as the limit allows.
    fn fill(&mut self, times: u32, observed: &Observations) {
        (0..times).for_each(|_| self.update(50, observed, self.limit()));
    }

    fn serve(&mut self, seconds: u32, latency_ms: f64, waiting_percent: f64) {
        self.fill(20 * seconds, &responses(latency_ms, waiting_percent));
    }

    fn await_trial(&mut self) {
        while !matches!(self.limit.state, LimitState::Trial(_)) {
            self.fill(1, &responses(400.0, 90.0));
        }
    }
}

#[test]
fn it_grows_while_requests_wait_and_latency_is_at_the_baseline() {
    for (percent, grows) in [(10.0, false), (35.0, true)] {
        let mut test = Test::learned();
        let before = test.limit();
        test.serve(1, 100.0, percent);
        assert_eq!(test.limit() > 1.5 * before, grows, "{percent} % wait, {test:?}");
    }
}

#[test]
fn a_pause_does_not_lower_the_limit() {
    let mut test = Test::new();
    // Two workers with 2,000 requests a second of 50 ms each.
    let (busy, idle) = (served(50.0, 0.05), Observations::default());
    (0..2_000).for_each(|_| test.update(25, &busy, 51.0));
    let before = test.limit();
    assert!(before > 400.0, "{test:?}");
    // Some requests stay in flight.
    (0..60).for_each(|_| test.update(500, &idle, 1.0));
    (0..8).for_each(|_| test.update(25, &busy, 51.0));
    assert!(test.limit() > 0.8 * before, "{before}, {test:?}");
}

#[test]
fn an_error_among_responses_does_not_raise_the_limit() {
    let mut test = Test::learned();
    for response in [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] {
        let observed = Observations {
            responses: response,
            samples: response,
            latency_s: response,
            in_flight_s: response,
            ..errors_while_requests_wait()
        };
        let before = test.limit();
        test.update(200, &observed, before);
        assert_eq!(test.limit(), before, "{test:?}");
    }
}

#[test]
fn errors_alone_end_a_trial() {
    let mut test = Test::learned();
    let before = test.limit();
    test.await_trial();
    test.repeat(45, &errors_while_requests_wait(), 1.0);
    assert!(test.limit.state == LimitState::Limiting && test.limit() >= before, "{test:?}");
}

#[test]
fn errors_alone_raise_the_limit_while_requests_wait() {
    let mut test = Test::learned();
    let before = test.limit();
    test.repeat(45, &errors_while_requests_wait(), before);
    assert!(test.limit() >= before + 8.0, "{test:?}");
}

#[test]
fn neither_the_baseline_nor_the_limit_follows_a_queue_that_builds_up() {
    for waiting_percent in [0.0, 5.0] {
        let mut test = Test::learned();
        let before = test.limit();
        for latency_ms in (150..650).step_by(50) {
            test.serve(1, latency_ms.into(), waiting_percent);
        }
        assert!(test.baseline() < Duration::from_millis(300), "{waiting_percent}: {test:?}");
        assert!(test.limit() < 1.3 * before, "{waiting_percent}: {test:?}");
    }
}

#[test]
fn the_baseline_of_a_cold_start_does_not_follow_a_queue_that_builds_up() {
    let mut test = Test::new();
    assert_eq!(test.limit(), INITIAL_LIMIT / 2.0);
    for latency_ms in (100..600).step_by(50) {
        test.serve(1, latency_ms.into(), 0.0);
    }
    assert!(test.baseline() < Duration::from_millis(250), "{test:?}");
    assert!(test.limit() < 2.0 * INITIAL_LIMIT, "{test:?}");
}

#[test]
fn a_cut_that_lowers_latency_stays() {
    let mut test = Test::learned();
    let before = test.limit();
    test.await_trial();
    assert!(test.limit.queue_limit() >= before, "an unproved cut is no reason to shed");
    test.serve(4, 140.0, 90.0);
    assert!(test.limit() < before, "{test:?}");
    assert!(test.baseline() < Duration::from_millis(115), "{test:?}");
}

#[test]
fn a_cut_that_does_not_lower_latency_is_reverted_and_the_baseline_follows_the_measurement() {
    let mut test = Test::learned();
    test.serve(30, 400.0, 90.0);
    assert!(test.baseline() > Duration::from_millis(390), "{test:?}");
    assert!(test.limit() > 1.0, "{test:?}");
}

#[test]
fn a_cut_that_does_not_help_is_reverted_also_while_requests_time_out() {
    for answered in [5.0, 6.5] {
        let mut test = Test::learned();
        test.limit.target = 100.0;
        let observed = Observations { ended: 6.5, answered, ..responses(400.0, 90.0) };
        let mut lowest = test.limit();
        for _ in 0..400 {
            test.fill(1, &observed);
            if test.limit.state == LimitState::Limiting {
                lowest = lowest.min(test.limit());
            }
        }
        let (limit, baseline) = (test.limit(), test.baseline());
        let is_reverted = lowest >= 20.0 && limit > 100.0 && baseline > Duration::from_millis(390);
        assert!(is_reverted, "{lowest}, {answered} answered: {test:?}");
    }
}

#[test]
fn where_all_requests_time_out_the_limit_falls_although_none_waits() {
    let mut test = Test::learned();
    let before = test.limit();
    test.repeat(22, &Observations { arrivals: 5.0, ended: 5.0, ..Observations::default() }, before);
    assert!(matches!(test.limit.state, LimitState::Silent { .. }), "{test:?}");
    assert!(test.limit() < 0.6 * before, "{test:?}");
}

#[test]
fn in_a_silence_after_a_calm_time_the_queue_is_short() {
    let mut test = Test::learned();
    assert_eq!(test.limit.queue_limit(), f64::INFINITY, "a burst waits");
    test.repeat(40, &all_wait(), 20.0);
    assert!(matches!(test.limit.state, LimitState::Silent { .. }), "{test:?}");
    assert!(test.limit.queue_limit() < 100.0, "{test:?}");
}

#[test]
fn where_requests_hang_and_none_is_given_up_others_are_tried() {
    let mut test = Test::learned();
    let in_flight = test.limit();
    test.repeat(22, &all_wait(), in_flight);
    assert!(test.limit() >= in_flight + 8.0, "{test:?}");
}

#[test]
fn without_a_response_the_limit_falls_and_recovers_with_the_first_good_ones() {
    let mut test = Test::learned();
    let began_ms = test.now_ms;
    while !matches!(test.limit.state, LimitState::Silent { .. }) {
        test.repeat(1, &all_wait(), 15.0);
    }
    assert_eq!(test.now_ms - began_ms, 1_050, "silence is more than a second");
    test.serve(1, 100.0, 90.0);
    assert!(test.limit() >= INITIAL_LIMIT, "{test:?}");
}

#[test]
fn a_burst_after_an_idle_time_is_no_silence_of_the_upstream() {
    let mut test = Test::learned();
    (0..10).for_each(|_| test.update(1_000, &Observations::default(), 0.0));
    let burst = Observations { arrivals: 40.0, waited: 20.0, ..Observations::default() };
    test.update(50, &burst, 20.0);
    assert_eq!(test.limit.state, LimitState::Open);
}

#[test]
fn with_any_observations_the_limit_stays_at_least_one() {
    let wild = [0.0, 1e-6, 0.5, 1.0, 8.0, 1e3, 1e9];
    let mut limit = ConcurrencyLimit::default();
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
