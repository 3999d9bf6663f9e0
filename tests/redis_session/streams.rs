//! Streams that are out of step, closed, or cannot be opened.

use super::*;

#[test]
fn a_stream_out_of_step_is_closed_and_each_waiting_command_fails_once() {
    let taken = |sequence, tokens| {
        fake_redis::taken_reply(sequence, true, tokens * PICO_PER_TOKEN, 1_700_000_000 * SECOND)
    };
    // Bytes in place of the first reply. Those that are no reply at all are in `tests/redis_protocol.rs`.
    let cases: [(&str, Vec<u8>); 7] = [
        ("an answer of another kind", b"+OK\r\n".to_vec()),
        ("the answer to the next command", taken("2", 2)),
        ("an answer to no command", taken("77", 1)),
        ("another text", b"$5\r\nhello\r\n".to_vec()),
        ("half an answer as a whole one", b"$4\r\n1 1 \r\n".to_vec()),
        ("an array", b"*1\r\n+OK\r\n".to_vec()),
        ("a line without end", vec![b'+'; 5_000]),
    ];
    for (what, bytes) in cases {
        let mut test = session();
        send_many(&mut test, 1..4);
        test.send(4, get(4));
        test.start(5, set(5));
        let rest = test.stream.take_replies();
        test.receive(&[bytes, rest].concat());
        assert_eq!(test.outcomes(), failed(FailureKind::Protocol, 1..6), "{what}");
        let turn = test.take_turn();
        assert_eq!(turn, Turn { has_closed: true, ..Turn::default() }, "{what}: the stream is closed");
        test.receive(&taken("1", 1));
        test.close("late");
        assert_eq!(test.outcomes(), [], "{what}: later replies are ignored");
        assert!(!test.wants_turn(), "{what}");
        let turn = test.start(6, take(6));
        assert!(turn.has_opened && words(&turn).len() == 1, "{what}: the next command opens another");
        test.deliver();
        assert_eq!(test.outcomes(), ok([6]), "{what}");
    }
}

#[test]
fn a_released_stream_is_closed_a_second_after_the_last_command() {
    let mut test = session();
    assert_eq!(test.round_trip(1, take(1)), ok([1]));
    for (us, is_open) in [(999_999, true), (1, false)] {
        test.pass(us);
        test.session.release_if_idle(test.now());
        test.flush();
        assert_eq!(test.stream.is_open(), is_open, "after {us} more microseconds");
    }
}

#[test]
fn what_a_replica_refuses_is_sent_again_on_a_stream_that_may_reach_the_master() {
    for (command, replicas) in [take(1), set(1)].into_iter().zip([1, MAX_FAILURES - 1]) {
        let mut test = on_a_replica(command);
        for tried in 1..=replicas {
            test.redis.is_replica = tried < replicas;
            test.deliver();
            assert_eq!(test.outcomes(), []);
            let turn = test.flush();
            assert!(turn.has_closed && turn.has_opened);
            assert_eq!(words(&turn).len(), 2);
        }
        test.deliver();
        assert_eq!(test.outcomes(), ok([1, 2]));
    }
}

#[test]
fn what_a_busy_worker_sends_again_does_not_time_out_at_once() {
    let mut test = session_with(None, "canary-password");
    test.redis.is_replica = true;
    test.start(1, take(1));
    test.redis.is_replica = false;
    // The worker reads the reply late, and before it checks deadlines.
    test.now_us += 10 * TIMEOUT;
    test.deliver();
    test.flush();
    test.pass(2 * MS);
    test.deliver();
    assert_eq!(test.outcomes(), ok([1]));
}

#[test]
fn what_a_replica_refused_is_not_sent_again_for_a_request_that_has_ended() {
    let mut test = session();
    test.redis.is_replica = true;
    let left = test.send(1, take(1));
    test.start(2, take(2));
    test.cancel(left);
    test.redis.is_replica = false;
    test.deliver();
    assert_eq!(words(&test.flush()).len(), 1);
    test.deliver();
    assert_eq!(test.outcomes(), [failed(FailureKind::ReadOnly, [1]), ok([2])].concat());
}

#[test]
fn replicas_alone_open_the_breaker() {
    for error in [READ_ONLY, "MASTERDOWN Link with MASTER is down"] {
        let mut test = on_a_replica(take(1));
        test.redis.error = Some(error);
        for _ in 1..MAX_FAILURES {
            test.deliver();
            assert_eq!(test.outcomes(), []);
            test.flush();
        }
        test.deliver();
        assert_eq!(test.outcomes(), failed(FailureKind::ReadOnly, [1, 2]));
        assert_eq!(declined(&mut test), Some(Declined::BreakerOpen));
    }
}

/// A session whose stream leads to a replica, which has received two commands.
fn on_a_replica(command: Command) -> FakeSession {
    let mut test = session();
    test.redis.is_replica = true;
    test.send(1, command);
    test.start(2, get(2));
    test
}

#[test]
fn what_is_sent_again_keeps_its_deadline() {
    let mut test = session();
    test.redis.is_replica = true;
    assert_sent_again_within_the_deadline(&mut test);
}

#[test]
fn an_unexpected_reply_closes_the_stream() {
    let mut test = session();
    assert_eq!(test.round_trip(1, take(1)), ok([1]));
    test.receive(b"+OK\r\n");
    assert!(test.take_turn().has_closed);
    // A doubled reply: the first one is valid, and the second one closes the stream.
    test.start(2, get(2));
    let reply = test.stream.take_replies();
    test.receive(&[reply.as_slice(), &reply].concat());
    assert_eq!(test.outcomes(), ok([2]));
    assert!(test.take_turn().has_closed);
}

#[test]
fn replies_on_a_stream_that_will_be_closed_are_ignored() {
    let mut test = session();
    test.send(1, take(1));
    test.start(2, get(2));
    let replies = test.stream.take_replies();
    test.receive(b"*0\r\n");
    assert_eq!(test.outcomes(), failed(FailureKind::Protocol, [1, 2]));
    // The owner of the stream has not closed it yet, and new commands wait for the next one.
    test.send(3, take(3));
    test.send(4, get(4));
    test.receive(&replies);
    test.receive(b"*0\r\n");
    test.close("the old one");
    assert_eq!(test.outcomes(), [], "its replies are not for the new commands");
    let turn = test.flush();
    assert!(turn.has_opened);
    assert_eq!(words(&turn).len(), 2);
    test.deliver();
    assert_eq!(test.outcomes(), ok([3, 4]));
    // An incomplete reply is dropped with its stream.
    test.start(5, take(5));
    test.receive(b"$40\r\nhalf");
    test.hang_up();
    assert_eq!(test.outcomes(), failed(FailureKind::Disconnected, [5]));
    assert_eq!(test.round_trip(6, take(6)), ok([6]));
}

#[test]
fn a_stream_that_closes_while_no_command_waits_is_no_failure() {
    let mut test = session();
    for id in 0..10 * MAX_FAILURES {
        assert!(test.start(id, take(id)).has_opened, "the command opens another");
        test.deliver();
        assert_eq!(test.outcomes(), ok([id]));
        test.hang_up();
        test.pass(SECOND);
        assert!(test.session.is_accepting() && !test.wants_turn());
    }
    assert_eq!(test.next_event(), Some(Event::Connected));
    assert_eq!(test.next_event(), None);
    for id in 100..99 + MAX_FAILURES {
        test.start(id, take(id));
        test.hang_up();
        assert_eq!(test.outcomes(), failed(FailureKind::Disconnected, [id]));
        assert!(test.session.is_accepting(), "{id}: too few");
    }
    test.close("twice");
    test.receive(b"*0\r\n");
    assert!(test.session.is_accepting() && !test.wants_turn(), "there is no stream to close");
}

#[test]
fn a_stream_that_cannot_be_opened_fails_the_commands_that_wait_for_it() {
    let mut test = session();
    for id in 1..=3 {
        test.send(id, take(id));
        test.send(10 + id, get(10 + id));
        assert!(test.take_turn().has_opened);
        test.close("there is no cluster");
        assert_eq!(test.outcomes(), failed(FailureKind::Disconnected, [id, 10 + id]));
        assert!(!test.wants_turn(), "there is no stream to close");
    }
    let Some(Event::Lost(failure)) = test.next_event() else { panic!("no event") };
    assert_eq!(failure.detail, "there is no cluster");
}
