//! A Redis that does not know the script receives its text.

use super::*;

#[test]
fn a_redis_without_the_script_receives_it_within_the_same_request() {
    let mut test = session();
    test.redis.knows_script = false;
    test.send(1, take(1));
    test.send(2, get(2));
    let [first, third] =
        ["EVALSHA <sha1> 1 bucket:1 2 1 1000 1 1 1", "EVALSHA <sha1> 1 bucket:3 4 1 1000 3 1 1"];
    assert_eq!(words(&test.start(3, take(3))), [first, "GET text:2", third]);
    test.deliver();
    assert_eq!(test.outcomes(), ok([2]));
    let again = test.flush();
    let wanted = ["EVAL <take> 1 bucket:1 2 1 1000 4 1 1", "EVAL <take> 1 bucket:3 4 1 1000 5 1 1"];
    assert_eq!(words(&again), wanted, "with new sequence numbers");
    assert!(!again.has_opened && !again.has_closed);
    test.deliver();
    assert_eq!(test.outcomes(), ok([1, 3]));
    let known = test.start(5, take(5));
    assert_eq!(words(&known), ["EVALSHA <sha1> 1 bucket:5 6 1 1000 6 1 1"], "known from now on");
}

#[test]
fn the_script_is_sent_once_and_within_the_original_deadline() {
    let noscript = b"-NOSCRIPT No matching script. Please use EVAL.\r\n";
    let mut test = session();
    test.redis.knows_script = false;
    assert_sent_again_within_the_deadline(&mut test);

    let mut test = session();
    test.start(1, take(1));
    test.receive(noscript);
    assert_eq!(words(&test.take_turn()).len(), 1);
    test.receive(noscript);
    assert_eq!(test.outcomes(), failed(FailureKind::Error, [1]), "the script is sent once only");
    assert!(!test.wants_turn());

    let mut test = session();
    test.start(1, take(1));
    assert_timeout(&mut test, TIMEOUT, [1]);
    test.receive(noscript);
    assert!(!test.wants_turn(), "no token is taken for a command that has timed out");
}

#[test]
fn the_script_is_not_sent_for_a_request_that_has_ended() {
    let mut test = session();
    test.redis.knows_script = false;
    let left = test.send(1, take(1));
    test.start(2, take(2));
    test.cancel(left);
    test.deliver();
    assert_eq!(words(&test.flush()), ["EVAL <take> 1 bucket:2 3 1 1000 3 1 1"]);
    test.deliver();
    assert_eq!(test.outcomes(), [failed(FailureKind::Error, [1]), ok([2])].concat());
}
