//! When a command times out, also in a worker that is too busy to read its replies.

use super::*;

/// The number of turns of this duration until something has happened.
fn turns_until(test: &mut FakeSession, turn_us: u64, has_happened: fn(&mut FakeSession) -> bool) -> u32 {
    let next = |_: &u32| {
        test.stall(turn_us);
        has_happened(test)
    };
    (1..=1_000).find(next).expect("it happens")
}

fn has_timed_out(test: &mut FakeSession) -> bool {
    test.outcomes() == failed(FailureKind::Timeout, [1])
}

#[test]
fn a_command_fails_at_the_microsecond_of_its_deadline() {
    let mut test = session();
    test.start(1, take(1));
    test.pass(5 * MS);
    test.start(2, take(2));
    assert_timeout(&mut test, 15 * MS, [1]);
    test.pass(5 * MS);
    assert_eq!(test.outcomes(), failed(FailureKind::Timeout, [2]));
    test.pass(TIMEOUT);
    assert_eq!(test.outcomes(), [], "each command fails once");
    assert!(test.session.is_accepting(), "two timeouts without a reply between them are too few");
}

#[test]
fn the_timeout_of_a_command_begins_when_it_is_sent() {
    let mut test = session();
    test.send(1, take(1));
    test.pass(10 * TIMEOUT);
    assert_eq!(test.outcomes(), [], "the command is not sent yet");
    test.flush();
    assert_timeout(&mut test, TIMEOUT, [1]);
}

#[test]
fn a_busy_worker_reads_its_socket_before_commands_time_out() {
    let tick_us = ReplyClock::new(Duration::from_micros(TIMEOUT)).interval().as_micros() as u64;
    let late_us = tick_us + TIMER_RESOLUTION.as_micros() as u64;
    // (time of the first tick, whether the time until then is counted against Redis)
    let cases = [(tick_us, true), (late_us, true), (late_us + 1, false), (TIMEOUT, false), (SECOND, false)];
    for (first_tick_us, is_counted) in cases {
        let mut test = session();
        test.start(1, take(1));
        test.stall(first_tick_us);
        assert_eq!(test.outcomes(), [], "{first_tick_us} µs: no reply could be read");
        let counted_us = if is_counted { first_tick_us } else { TIMEOUT / u64::from(MAX_TURNS) };
        assert_timeout(&mut test, TIMEOUT - counted_us, [1]);
    }
    let mut test = session();
    for id in 1..=5 {
        test.start(id, take(id));
        test.stall(10 * TIMEOUT);
        test.deliver();
        assert_eq!(test.outcomes(), ok([id]));
    }
    assert!(test.session.is_accepting());
}

#[test]
fn in_a_worker_that_stays_busy_commands_time_out_after_a_number_of_turns() {
    for (timeout_us, late_us) in [(TIMEOUT, 50 * MS), (TIMEOUT, 7 * MS), (SECOND, 600 * MS)] {
        let mut test = FakeSession::new(Credentials::default(), timeout_us, 7);
        test.start(1, take(1));
        let turns = turns_until(&mut test, late_us, has_timed_out);
        assert_eq!(turns, MAX_TURNS, "{timeout_us} µs, {late_us} µs late");
    }
}

#[test]
fn in_a_busy_worker_long_timeouts_are_exceeded_only_by_the_turns_of_a_request() {
    // (duration of each turn, turns until the timeout)
    for (late_us, turns) in [(50 * MS, 20), (7 * MS, 143), (2 * SECOND, MAX_TURNS)] {
        let mut test = session();
        break_the_connection(&mut test);
        wait_for_probe(&mut test);
        assert_eq!(turns_until(&mut test, late_us, FakeSession::wants_turn), turns, "a probe, {late_us} µs");
        assert!(test.take_turn().has_closed, "{late_us} µs late: the probe times out");

        let mut test = session();
        test.send_within(1, set(1), SECOND).expect("sent");
        test.flush();
        assert_eq!(turns_until(&mut test, late_us, has_timed_out), turns, "a change of health, {late_us} µs");
    }
}

#[test]
fn a_probe_does_not_fail_because_its_worker_is_busy() {
    let mut test = session();
    break_the_connection(&mut test);
    wait_for_probe(&mut test);
    for _ in 0..2 {
        test.stall(2 * CONNECT_TIMEOUT);
        test.deliver();
        test.flush();
    }
    test.deliver();
    assert!(test.session.is_accepting());
}

#[test]
fn an_idle_session_does_nothing() {
    let mut test = session();
    for _ in 0..100 {
        test.pass(SECOND);
    }
    assert!(!test.wants_turn() && !test.is_waiting());
    assert_eq!(test.next_event(), None);
}
