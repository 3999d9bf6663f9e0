//! How an open breaker finds out that Redis works again.

use super::*;

#[test]
fn an_open_breaker_probes_with_jittered_pauses_of_at_most_a_second() {
    let mut first_pauses = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let mut test = FakeSession::new(Credentials::default(), TIMEOUT, seed);
        break_the_connection(&mut test);
        for attempt in 0..8_u32 {
            let longest_ms = (100 << attempt).min(1_000);
            let pause_ms = wait_for_probe(&mut test);
            let is_in_bounds = (longest_ms * 3 / 4..=longest_ms).contains(&pause_ms);
            assert!(is_in_bounds, "pause {attempt}: {pause_ms} ms of {longest_ms} ms");
            if attempt == 0 {
                first_pauses.insert(pause_ms);
            }
            assert_eq!(declined(&mut test), Some(Declined::BreakerOpen), "no command waits for a probe");
            test.hang_up();
            assert_eq!(declined(&mut test), Some(Declined::BreakerOpen));
        }
        assert_eq!(test.outcomes(), []);
        assert!(matches!(test.next_event(), Some(Event::Lost(_))));
        assert_eq!(test.next_event(), None, "a repeated loss is no event");
    }
    assert!(first_pauses.len() > 10, "workers probe at different times: {first_pauses:?}");
}

#[test]
fn a_probe_has_a_long_timeout_to_connect_and_then_a_short_one() {
    // (time of the first and of the second reply, whether Redis is then healthy)
    let cases = [
        (0, 0, true),
        (CONNECT_TIMEOUT - 1, TIMEOUT - 1, true),
        (CONNECT_TIMEOUT, 0, false),
        (0, TIMEOUT, false),
        (CONNECT_TIMEOUT - 1, TIMEOUT, false),
    ];
    for (connect_us, answer_us, is_healthy) in cases {
        let what = format!("{connect_us} and {answer_us} µs");
        let mut test = session();
        break_the_connection(&mut test);
        test.next_event();
        wait_for_probe(&mut test);
        test.pass(connect_us);
        test.deliver();
        if !test.flush().has_closed {
            assert!(!test.session.is_accepting(), "{what}: one reply is not enough");
            test.pass(answer_us);
            test.deliver();
        }
        assert_eq!(test.session.is_accepting(), is_healthy, "{what}");
        assert_eq!(test.next_event(), is_healthy.then_some(Event::Connected), "{what}");
        assert_eq!(test.outcomes(), [], "{what}: no command was sent");
        if is_healthy {
            let turn = test.start(50, take(50));
            assert!(!turn.has_opened && !turn.has_closed, "{what}: the probe's stream is used");
            test.deliver();
            assert_eq!(test.outcomes(), ok([50]), "{what}");
        }
    }
}

#[test]
fn a_probe_takes_a_token_from_its_own_bucket_and_loads_the_script() {
    let mut test = session();
    break_the_connection(&mut test);
    test.redis.take_commands();
    test.redis.knows_script = false;
    recover(&mut test);
    // The sequence number and the other limit follow.
    let commands = test.redis.take_commands();
    let starts: Vec<_> = commands.iter().filter_map(|command| command.rsplitn(4, ' ').last()).collect();
    let wanted = ["EVALSHA <sha1>", "EVAL <take>", "EVALSHA <sha1>"];
    assert_eq!(starts, wanted.map(|script| format!("{script} 1 #probe 10 1000000000000 1000")));
}

#[test]
fn an_error_reply_to_a_probe_keeps_the_breaker_open() {
    for error in ["READONLY replica", "LOADING", "OOM", "MOVED 1 a:1", "WRONGTYPE bucket", "ERR"] {
        let mut test = session();
        break_the_connection(&mut test);
        test.redis.error = Some(error);
        wait_for_probe(&mut test);
        test.exchange();
        assert!(!test.session.is_accepting(), "{error}");
        test.redis.error = None;
        recover(&mut test);
    }
}

#[test]
fn an_error_reply_to_a_read_makes_the_session_probe_again() {
    for (error, probes) in [("upstream failure", true), ("ERR", true), ("NOPERM", false)] {
        let mut test = session();
        assert_eq!(test.round_trip(1, take(1)), ok([1]));
        assert!(test.session.probe().is_none());
        test.redis.error = Some(error);
        test.round_trip(2, get(2));
        assert_eq!(test.session.probe().is_some(), probes, "{error}");
    }
}

#[test]
fn pauses_are_short_again_after_ten_seconds_without_failures() {
    for (quiet_us, is_short) in [(SECOND, false), (10 * SECOND, false), (10 * SECOND + 1, true)] {
        let mut test = session();
        break_the_connection(&mut test);
        for _ in 0..5 {
            wait_for_probe(&mut test);
            test.hang_up();
        }
        recover(&mut test);
        test.pass(quiet_us);
        break_the_connection(&mut test);
        assert_eq!(wait_for_probe(&mut test) <= 100, is_short, "after {quiet_us} µs");
    }
}

#[test]
fn pauses_grow_also_where_commands_take_the_place_of_probes() {
    let mut test = session();
    test.pass(20 * SECOND);
    break_the_connection(&mut test);
    for longest_ms in [100, 200, 400, 800, 1_000, 1_000] {
        let mut pause_ms = 0;
        while !test.session.is_accepting() {
            test.now_us += MS;
            test.session.release_if_idle(test.now());
            test.stall(0);
            pause_ms += 1;
        }
        let is_in_bounds = (longest_ms * 3 / 4..=longest_ms).contains(&pause_ms);
        assert!(is_in_bounds, "{pause_ms} ms of {longest_ms} ms");
        test.start(50, take(50));
        test.hang_up();
        assert!(!test.session.is_accepting(), "one failure is enough");
    }
}
