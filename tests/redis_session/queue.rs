//! Commands beyond the most that may be on the wire wait in the worker.

use super::*;

#[test]
fn commands_beyond_the_window_wait_and_are_sent_in_order_as_replies_come() {
    let mut test = session_with(None, "secret");
    send_many(&mut test, 0..2 * MAX_ON_WIRE + 1);
    assert_eq!(words(&test.flush()).len(), MAX_ON_WIRE as usize, "AUTH is one of them");
    receive_one(&mut test);
    assert_eq!(words(&test.flush()).len(), 1, "one for each reply");
    test.exchange();
    assert_eq!(test.outcomes(), ok(0..2 * MAX_ON_WIRE + 1));
    assert!(!test.is_waiting());

    // A Redis without the script receives it once for each command on the wire.
    let mut test = session();
    test.redis.knows_script = false;
    send_many(&mut test, 0..3 * MAX_ON_WIRE);
    test.exchange();
    assert_eq!(test.outcomes().len(), 3 * MAX_ON_WIRE as usize);
}

#[test]
fn the_window_grows_with_the_timeout_within_its_bounds() {
    let bounds =
        [MS, 2_720, 20 * MS, 100 * MS, 163_840, 10 * SECOND].map(Duration::from_micros).map(max_on_wire);
    assert_eq!(bounds, [16, 17, MAX_ON_WIRE as usize, 625, 1_024, 1_024]);
}

#[test]
fn commands_about_health_do_not_wait() {
    let mut test = session();
    send_many(&mut test, 0..2 * MAX_ON_WIRE);
    test.flush();
    test.send(1_000, get(1_000));
    assert_eq!(words(&test.start(1_001, set(1_001))), ["GET text:1000", "SET set:1001 DEGRADED"]);
    test.exchange();
    assert_eq!(test.outcomes().len(), 2 * MAX_ON_WIRE as usize + 2);
}

#[test]
fn no_queued_command_times_out_while_redis_replies_to_what_is_on_the_wire() {
    let mut test = session();
    send_many(&mut test, 0..20 * MAX_ON_WIRE);
    for _ in 0..20 {
        test.flush();
        test.pass(TIMEOUT - 1);
        test.deliver();
    }
    assert_eq!(test.outcomes(), ok(0..20 * MAX_ON_WIRE));
}

#[test]
fn queued_commands_fail_together_when_redis_does_not_reply() {
    let mut test = session();
    send_many(&mut test, 0..3 * MAX_ON_WIRE);
    test.flush();
    test.pass(5 * MS);
    receive_one(&mut test);
    assert_eq!(test.outcomes(), ok([0]));
    test.flush();
    test.pass(15 * MS);
    // The deadline of the first commands has passed.
    assert_eq!(test.outcomes(), failed(FailureKind::Timeout, 1..MAX_ON_WIRE));
    // The command sent last, and all queued ones.
    assert_timeout(&mut test, 5 * MS, MAX_ON_WIRE..3 * MAX_ON_WIRE);
    assert!(test.session.is_accepting(), "these are two failures");

    // A new command waits behind the outstanding replies, with the usual timeout.
    test.send(1, take(1));
    assert_timeout(&mut test, TIMEOUT, [1]);
    assert_eq!(test.next_event(), Some(Event::Connected));
    assert!(matches!(test.next_event(), Some(Event::Lost(_))), "the third failure");
}

#[test]
fn in_a_busy_worker_queued_commands_do_not_time_out() {
    let mut test = session();
    send_many(&mut test, 0..4 * MAX_ON_WIRE);
    for _ in 0..4 {
        test.flush();
        test.stall(10 * TIMEOUT);
        test.deliver();
    }
    assert_eq!(test.outcomes(), ok(0..4 * MAX_ON_WIRE));
    // The turn that sends comes late; the timeout of queued commands begins with it.
    send_many(&mut test, 0..2 * MAX_ON_WIRE);
    test.pass(TIMEOUT);
    test.flush();
    assert_timeout(&mut test, TIMEOUT, 0..2 * MAX_ON_WIRE);
}

#[test]
fn queued_commands_fail_when_the_connection_is_lost() {
    let mut test = session();
    send_many(&mut test, 0..3 * MAX_ON_WIRE);
    test.flush();
    test.hang_up();
    assert_eq!(test.outcomes(), failed(FailureKind::Disconnected, 0..3 * MAX_ON_WIRE));
    assert_eq!(words(&test.start(1, take(1))).len(), 1, "no earlier command is left");
}

#[test]
fn a_command_that_is_cancelled_in_the_queue_is_never_sent_nor_answered() {
    let mut test = session();
    let commands = send_many(&mut test, 0..2 * MAX_ON_WIRE);
    assert!(!test.cancel(commands[0]), "the first is on the wire already");
    (MAX_ON_WIRE..2 * MAX_ON_WIRE - 1).for_each(|id| assert!(test.cancel(commands[id as usize])));
    test.exchange();
    assert_eq!(test.outcomes(), ok((0..MAX_ON_WIRE).chain([2 * MAX_ON_WIRE - 1])), "the first is answered");
    assert!(!test.redis.buckets.contains_key(&format!("bucket:{MAX_ON_WIRE}")));
    test.cancel(commands[0]);
    assert!(!test.is_waiting() && !test.session.has_output());
}

#[test]
fn the_number_of_waiting_commands_is_bounded() {
    let mut test = session();
    let most = MAX_COMMANDS as u32;
    let commands = send_many(&mut test, 100..100 + most);
    assert_eq!(declined(&mut test), Some(Declined::QueueFull));
    assert!(test.session.is_accepting(), "that is no failure");
    test.cancel(commands[MAX_COMMANDS - 1]);
    assert_eq!(declined(&mut test), None, "there is room for one");
    assert_eq!(declined(&mut test), Some(Declined::QueueFull));
    assert!(test.try_send(9, get(9)).is_ok(), "health has room");
    for _ in 0..most.div_ceil(MAX_ON_WIRE) {
        test.session.flush();
        while let Some(SessionOutput::Stream(action)) = test.session.poll_output() {
            let is_last = matches!(action, StreamAction::Send(_));
            test.carry_out(action);
            if is_last {
                break;
            }
        }
        test.deliver();
    }
    assert!(!test.is_waiting() && test.session.has_output(), "replies that were not polled keep their place");
    assert_eq!(declined(&mut test), Some(Declined::QueueFull));
    let mut outcomes = test.outcomes();
    outcomes.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(outcomes, ok([9, 99].into_iter().chain(100..99 + most)));
    assert_eq!(declined(&mut test), None);
}

/// The first reply arrives.
fn receive_one(test: &mut FakeSession) {
    let reply = test.stream.replies.pop_front().expect("a reply");
    test.receive(&reply);
}
