//! The password, and a Redis that does not accept it.

use super::*;

#[test]
fn each_new_stream_begins_with_the_password() {
    let cases = [(None, "AUTH canary-password"), (Some("limiter"), "AUTH limiter canary-password")];
    for (username, wanted) in cases {
        let mut test = session_with(username, "canary-password");
        for id in 0..3 {
            let turn = test.start(id, take(id));
            assert!(turn.has_opened);
            assert_eq!(words(&turn)[0], wanted);
            assert_eq!(words(&turn).len(), 2);
            test.deliver();
            let next = test.start(10 + id, get(10 + id));
            assert_eq!(words(&next), [format!("GET text:{}", 10 + id)], "and sent once");
            test.deliver();
            assert_eq!(test.outcomes(), ok([id, 10 + id]));
            test.hang_up();
        }
        break_the_connection(&mut test);
        test.redis.take_commands();
        recover(&mut test);
        assert_eq!(test.redis.take_commands()[0], wanted, "on a probe's stream too");
    }
    let both = Credentials { username: Some(b"canary".to_vec()), password: Some(b"canary".to_vec()) };
    assert!(!format!("{both:?}").contains("canary"), "{both:?}");
    let credentials = Credentials { username: Some(b"alone".to_vec()), password: None };
    let mut test = FakeSession::new(credentials, TIMEOUT, 7);
    assert_eq!(words(&test.start(1, take(1))).len(), 1, "a user without a password is ignored");
}

#[test]
fn an_error_that_redis_sends_unasked_is_not_taken_for_wrong_credentials() {
    for error in ["ERR max number of clients reached", "DENIED Redis is running in protected mode"] {
        let mut test = session_with(None, "canary-password");
        test.start(1, take(1));
        test.receive(format!("-{error}\r\n").as_bytes());
        assert_eq!(test.outcomes(), failed(FailureKind::Error, [1]));
        let Some(Event::Lost(failure)) = test.next_event() else { panic!("no event") };
        assert_eq!(failure.detail, error);
    }
}

#[test]
fn a_wrong_password_opens_the_breaker_at_once() {
    let mut test = session_with(None, "wrong");
    test.redis.password = Some((None, "right"));
    send_many(&mut test, 1..6);
    test.flush();
    test.deliver();
    assert_eq!(test.outcomes(), failed(FailureKind::Auth, 1..6));
    assert_eq!(declined(&mut test), Some(Declined::BreakerOpen));
    let Some(Event::Lost(failure)) = test.next_event() else { panic!("no event") };
    assert!(failure.detail.contains("WRONGPASS"), "{failure:?}");
    assert!(test.take_turn().has_closed);
    // When the password is right.
    test.redis.password = Some((None, "wrong"));
    recover(&mut test);
}
