//! Which failures open the breaker, and what happens to commands then.

use super::*;

enum Fault {
    NoReply,
    ConnectionLost,
    Garbage,
    /// An error reply.
    Error(&'static str),
}

/// The outcomes of a command that fails.
fn fail(test: &mut FakeSession, id: u32, fault: &Fault) -> Vec<Outcome> {
    if let Fault::Error(error) = fault {
        test.redis.error = Some(error);
    }
    test.start(id, take(id));
    match fault {
        Fault::NoReply => test.pass(TIMEOUT),
        Fault::ConnectionLost => test.hang_up(),
        Fault::Garbage => test.receive(b"HTTP/1.1 200 OK\r\n\r\n"),
        Fault::Error(_) => test.deliver(),
    }
    test.redis.error = None;
    test.outcomes()
}

#[test]
fn the_breaker_opens_after_three_failures_in_a_row() {
    let cases = [
        (Fault::NoReply, FailureKind::Timeout),
        (Fault::ConnectionLost, FailureKind::Disconnected),
        (Fault::Garbage, FailureKind::Protocol),
        (Fault::Error("LOADING Redis is loading the dataset in memory"), FailureKind::Loading),
        (Fault::Error("OOM command not allowed when used memory > 'maxmemory'."), FailureKind::OutOfMemory),
        (Fault::Error("NOAUTH Authentication required."), FailureKind::Auth),
        (Fault::Error("NOPERM this user has no permissions"), FailureKind::Auth),
        (Fault::Error("ERR unknown command 'EVALSHA'"), FailureKind::Error),
    ];
    for (fault, reason) in cases {
        let mut test = session();
        let fail = |test: &mut FakeSession, id: u32, is_accepting: bool| {
            assert_eq!(fail(test, id, &fault), failed(reason, [id]));
            assert_eq!(test.session.is_accepting(), is_accepting, "{reason:?}, failure {id}");
        };
        fail(&mut test, 1, true);
        fail(&mut test, 2, true);
        assert_eq!(test.round_trip(50, take(50)), ok([50]), "{reason:?}: the count restarts");
        assert_eq!(test.next_event(), Some(Event::Connected), "{reason:?}");
        test.pass(100 * MS);
        fail(&mut test, 3, true);
        fail(&mut test, 4, true);
        fail(&mut test, 5, false);
        test.flush();
        assert!(!test.stream.is_open(), "{reason:?}: the stream is closed");
        let event = test.next_event();
        assert!(matches!(&event, Some(Event::Lost(failure)) if failure.reason == reason), "{event:?}");
        assert_eq!(declined(&mut test), Some(Declined::BreakerOpen), "{reason:?}");
        assert!(!test.wants_turn() && !test.is_waiting(), "{reason:?}: no command is sent");
    }
}

#[test]
fn when_the_breaker_opens_all_waiting_commands_fail_at_once() {
    let mut test = session();
    for id in 1..=3 {
        test.start(id, take(id));
        test.pass(5 * MS);
    }
    test.pass(5 * MS);
    test.send(4, get(4));
    test.send(5, set(5));
    assert_eq!(test.outcomes(), failed(FailureKind::Timeout, [1]));
    test.pass(5 * MS);
    test.pass(5 * MS);
    let timed_out = failed(FailureKind::Timeout, [2, 3, 4, 5]);
    assert_eq!(test.outcomes(), timed_out, "the last two fail before their deadline");
    assert_eq!(declined(&mut test), Some(Declined::BreakerOpen));
    let turn = test.take_turn();
    assert_eq!(turn, Turn { has_closed: true, ..Turn::default() }, "unsent commands are not sent");
}

#[test]
fn an_error_about_one_key_does_not_affect_other_keys() {
    let mut test = session();
    test.redis.of_another_type.insert("bucket:1".to_owned());
    for _ in 0..50 {
        assert_eq!(test.round_trip(1, take(1)), failed(FailureKind::Error, [1]));
        assert!(test.session.is_accepting());
    }
    assert_eq!(test.round_trip(2, take(2)), ok([2]));
}

#[test]
fn an_unhealthy_shard_opens_the_breaker_only_when_no_other_shard_responds() {
    let errors = [
        ("MOVED 1234 10.0.0.1:6379", FailureKind::Moved),
        ("CLUSTERDOWN Hash slot not served", FailureKind::Moved),
        ("upstream failure", FailureKind::Disconnected),
        ("no upstream host", FailureKind::Disconnected),
        ("LOADING Redis is loading the dataset in memory", FailureKind::Loading),
        ("OOM command not allowed when used memory > 'maxmemory'.", FailureKind::OutOfMemory),
        ("NOREPLICAS Not enough good replicas to write.", FailureKind::Error),
    ];
    for (error, reason) in errors {
        let mut test = session();
        let failure = failed(reason, [1]);
        for _ in 0..10 * MAX_SHARD_ERRORS {
            assert_eq!(fail(&mut test, 1, &Fault::Error(error)), failure);
            test.send(2, take(0));
            test.exchange();
            assert_eq!(test.next_reply().map(|(id, _)| id), Some(2));
            assert!(test.session.is_accepting(), "{error}: others are served");
        }
        for count in 1..=MAX_SHARD_ERRORS {
            assert_eq!(fail(&mut test, 1, &Fault::Error(error)), failure);
            assert_eq!(test.session.is_accepting(), count < MAX_SHARD_ERRORS, "{error}: {count} in a row");
        }
    }
}

#[test]
fn successful_reads_reset_the_count_of_timeouts_and_not_that_of_error_replies() {
    let cases = [
        (Fault::NoReply, FailureKind::Timeout, true),
        (Fault::Error("LOADING"), FailureKind::Loading, false),
    ];
    for (fault, reason, is_accepting) in cases {
        let mut test = session();
        for id in 1..=MAX_FAILURES {
            assert_eq!(test.round_trip(id, get(id)), ok([id]));
            assert_eq!(fail(&mut test, id, &fault), failed(reason, [id]));
        }
        assert_eq!(test.session.is_accepting(), is_accepting, "{reason:?}");
    }
}
