//! Each command gets its own answer, of its own kind.

use super::*;

#[test]
fn a_missing_value_and_a_value_that_is_not_overwritten_are_answers() {
    let mut test = session();
    test.send(1, Command::Get("nothing".into()));
    test.send(2, Command::Set("s".into(), "NORMAL", Overwrite::Never));
    test.send(3, Command::Set("s".into(), "DEGRADED", Overwrite::Never));
    assert_eq!(words(&test.flush()), ["GET nothing", "SET s NORMAL NX", "SET s DEGRADED NX"]);
    test.deliver();
    let replies: Vec<_> = std::iter::from_fn(|| test.next_reply()).collect();
    assert_eq!(
        replies,
        [(1, Ok(ReplyValue::Text(None))), (2, Ok(ReplyValue::Done)), (3, Ok(ReplyValue::Done))]
    );
    assert_eq!(test.redis.strings["s"], b"NORMAL");
}

#[test]
fn each_kind_of_command_accepts_its_own_kinds_of_answers() {
    let taken = fake_redis::bulk(b"1 1 1.000000000000 1700000000.000000");
    let kinds: [&[u8]; 5] = [&taken, b"$1\r\n1\r\n", b"$-1\r\n", b"+OK\r\n", b":1\r\n"];
    // The kinds above that the command accepts.
    let cases = [
        (take(1), [true, false, false, false, false]),
        (get(1), [true, true, true, false, false]),
        (set(1), [false, false, true, true, false]),
    ];
    for (command, fits) in cases {
        for (kind, fits) in kinds.into_iter().zip(fits) {
            let mut test = session();
            test.start(1, command.clone());
            test.receive(kind);
            let (id, answer) = test.next_reply().expect("an answer");
            let failure = answer.err().map(|failure| failure.reason);
            let what = format!("{command:?}: {:?}", String::from_utf8_lossy(kind));
            assert_eq!((id, failure), (1, (!fits).then_some(FailureKind::Protocol)), "{what}");
            assert_eq!(test.take_turn().has_closed, !fits, "{what}");
        }
    }
}

#[test]
fn a_late_reply_is_dropped_and_never_given_to_another_command() {
    let mut test = session();
    test.send(1, take(1));
    test.start(2, get(2));
    test.pass(TIMEOUT);
    assert_eq!(test.outcomes(), failed(FailureKind::Timeout, [1, 2]));
    test.send(3, get(3));
    test.start(4, take(4));
    assert!(test.is_waiting());
    test.deliver();
    assert_eq!(test.outcomes(), ok([3, 4]));
    assert!(!test.is_waiting() && !test.wants_turn(), "the stream is in step, and stays open");
}

#[test]
fn the_detail_of_an_error_is_short_and_printable() {
    let mut test = session();
    test.start(1, take(1));
    test.receive(&[b"-ERR \x1b[2J\xff\n", "é".repeat(1_000).as_bytes(), b"\r\n"].concat());
    let Some((1, Err(failure))) = test.next_reply() else { panic!("no failure") };
    assert!(failure.detail.starts_with("ERR .[2J..."), "{}", failure.detail);
    assert!(failure.detail.len() <= 120 && failure.detail.is_ascii());
}
