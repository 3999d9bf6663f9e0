//! Commands to Redis, and its replies at the limits of the protocol. The targets `resp` and `frames` of `tests/fuzz`
//! compare any replies and frames, in any split, with a second parser.

use dynamic_rate_limiter::bucket::PICO_PER_TOKEN;
use dynamic_rate_limiter::limit::{MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use dynamic_rate_limiter::store::redis::resp::{Decoder, MAX_REPLY_BYTES, Malformed, Reply, push_command};
use dynamic_rate_limiter::store::redis::script::{Script, TAKE, TAKE_SHA1, Take, TakeReply};
use harness::fake_redis::{bulk, parse_commands, taken_reply};
use harness::limit;
use proptest::collection::vec;
use proptest::prelude::*;

/// A reply as Redis sends it.
type Encoded = Vec<u8>;

fn line(kind: u8, text: &[u8]) -> Encoded {
    [&[kind], text, b"\r\n"].concat()
}

fn encode(reply: Reply<'_>) -> Encoded {
    match reply {
        Reply::Simple(text) => line(b'+', text),
        Reply::Error(text) => line(b'-', text),
        Reply::Integer(text) => line(b':', text),
        Reply::Bulk(text) => bulk(text),
        Reply::Null => line(b'$', b"-1"),
    }
}

/// The replies in a stream of these pieces, up to the first malformed byte.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Encoded>, Result<(), Malformed>) {
    let mut decoder = Decoder::default();
    let mut replies = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_reply() {
                Ok(Some(reply)) => replies.push(encode(reply)),
                Ok(None) => break,
                Err(Malformed) => {
                    assert_eq!(decoder.next_reply(), Err(Malformed), "it does not recover by itself");
                    return (replies, Err(Malformed));
                }
            }
        }
    }
    (replies, Ok(()))
}

#[test]
fn a_reply_of_the_longest_size_decodes_wherever_it_is_split() {
    for length in MAX_REPLY_BYTES - 20..=MAX_REPLY_BYTES {
        let text = vec![b'x'; length];
        let mut replies = vec![bulk(&text)];
        if length < MAX_REPLY_BYTES {
            replies.extend([line(b'+', &text), line(b'-', &text)]);
        }
        for reply in replies {
            let wanted = (vec![reply.clone()], Ok(()));
            assert_eq!(decode([reply.as_slice()]), wanted, "{length} bytes, whole");
            for at in reply.len() - 30..reply.len() {
                assert_eq!(decode([&reply[..at], &reply[at..]]), wanted, "{length} bytes, split at {at}");
            }
        }
    }
}

#[test]
fn replies_that_no_command_can_have_are_malformed() {
    let endless = ["+", "-", ":", "$"].map(|kind| kind.to_owned() + &"1".repeat(MAX_REPLY_BYTES + 1));
    let cases: &[(&str, &[&str])] = &[
        ("an array", &["*1\r\n$1\r\na\r\n", "*0\r\n", "*-1\r\n", "*1\r\n*1\r\n*1\r\n:1\r\n"]),
        ("a value of RESP3", &["_\r\n", "#t\r\n", ",1.5\r\n", "(3492890328409238509324850943850943825\r\n"]),
        ("a string of RESP3", &["!5\r\nERR x\r\n", "=6\r\ntxt:ok\r\n", "$?\r\n;1\r\na\r\n"]),
        ("a map or set of RESP3", &["%1\r\n+a\r\n:1\r\n", "~1\r\n+a\r\n"]),
        ("a push or attribute of RESP3", &[">1\r\n+a\r\n", "|1\r\n+a\r\n:1\r\n"]),
        ("no reply", &["HTTP/1.1 400 Bad Request\r\n\r\n", "PING\r\n", "\r\n", "\0", "+OK\rX", "+OK\r\r\n"]),
        ("a string that is too long", &["$4097\r\n", "$10000\r\n", "$99999999999999999999999\r\n"]),
        ("a string of a wrong length", &["$-2\r\n", "$-01\r\n", "$+5\r\nhello\r\n", "$ 5\r\nhello\r\n"]),
        ("a string without a length", &["$\r\n\r\n", "$five\r\nhello\r\n"]),
        ("a string of another length", &["$3\r\nabcd\r\n", "$3\r\nabc+OK\r\n", "$3\r\nabc\rx"]),
        ("no number", &[":\r\n", ":-\r\n", ":--1\r\n", ":1.5\r\n", ":1a\r\n"]),
        ("a line without end", &endless.each_ref().map(String::as_str)),
    ];
    for (what, text) in cases.iter().flat_map(|(what, texts)| texts.iter().map(move |text| (what, text))) {
        let bytes = text.as_bytes();
        assert_eq!(decode([bytes]), (Vec::new(), Err(Malformed)), "{what}: {text:?}");
        assert_eq!(decode(bytes.chunks(1)), (Vec::new(), Err(Malformed)), "{what}: {text:?}, byte by byte");
        let after_one = [b"+OK\r\n", bytes].concat();
        let wanted = (vec![line(b'+', b"OK")], Err(Malformed));
        assert_eq!(decode([after_one.as_slice()]), wanted, "{what}: {text:?}, after a valid one");
    }
}

#[test]
fn a_reply_of_the_script_is_accepted_in_one_form_only() {
    let good = "7 1 9.000000000000 1.000001";
    let taken = TakeReply { sequence: 7, admitted: true, tokens_pico: 9 * PICO_PER_TOKEN, now_us: 1_000_001 };
    assert_eq!(TakeReply::parse(good.as_bytes()), Some(taken));
    // (a part of the reply, what it may not be)
    let bad: &[(&str, &[&str])] = &[
        (good, &["", " ", "7", "7 1", "7 1 9.000000000000", "7 1 9.000000000000 "]),
        ("7 ", &[" 7 ", "7  ", "07 ", "+7 ", "-7 ", "4294967296 "]),
        (" 1 ", &[" 2 ", " 01 ", " -1 "]),
        ("9.000000000000", &["9", "9.", "nan", ".000000000000", "09.000000000000", "-9.000000000000"]),
        ("9.000000000000", &["9.00000000000", "9.0000000000000", "9,000000000000", "9.00000000000e"]),
        ("9.000000000000", &["9e12.000000000000", "18446745.000000000000"]),
        ("9.000000000000", &["99999999999999999999.000000000000"]),
        ("1.000001", &["1", "01.000001", "1.00000", "1.0000000", "18446744073710.000000"]),
        ("1.000001", &["1.000001 ", "1.000001\r\n", "1.000001 1"]),
    ];
    for (right, wrong) in bad.iter().flat_map(|(right, all)| all.iter().map(move |wrong| (right, wrong))) {
        let text = good.replacen(right, wrong, 1);
        assert_eq!(TakeReply::parse(text.as_bytes()), None, "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn command_arguments_may_contain_any_bytes(
        commands in vec(vec(vec(prop_oneof![any::<u8>(), prop::sample::select(b"\r\n\0$*".to_vec())], 0..40), 1..10), 0..10),
    ) {
        let mut bytes = Vec::new();
        for command in &commands {
            let arguments: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            push_command(&mut bytes, &arguments);
        }
        prop_assert_eq!(parse_commands(&bytes), commands);
    }

    /// No key of a bucket can inject protocol.
    #[test]
    fn a_take_is_one_command_with_any_key(
        key in any::<String>(), sequence in any::<u32>(), ttl_ms in any::<u64>(),
        capacity in 0..=MAX_CAPACITY, rate in 1..=MAX_REFILL_MICRO_PER_SEC,
    ) {
        for (script, words) in [(Script::Hash, ["EVALSHA", TAKE_SHA1]), (Script::Text, ["EVAL", TAKE])] {
            let mut bytes = Vec::new();
            let take = Take { key: key.clone(), limit: limit(capacity, rate), other_limit: limit(1, rate), ttl_ms };
            take.push(&mut bytes, sequence, script);
            let numbers = [capacity.into(), rate, ttl_ms, sequence.into(), 1, rate].map(|number| number.to_string());
            let head = words.into_iter().chain(["1", &key]);
            let wanted: Vec<&[u8]> = head.chain(numbers.iter().map(String::as_str)).map(str::as_bytes).collect();
            prop_assert_eq!(parse_commands(&bytes), [wanted]);
        }
    }

    #[test]
    fn every_reply_of_the_script_is_parsed(
        sequence in any::<u32>(), admitted in any::<bool>(), tokens_pico in any::<u64>(), now_us in any::<u64>(),
    ) {
        let reply = taken_reply(&sequence.to_string(), admitted, tokens_pico, now_us);
        let mut decoder = Decoder::default();
        decoder.push(&reply);
        let Ok(Some(Reply::Bulk(text))) = decoder.next_reply() else { panic!("{reply:?}") };
        prop_assert_eq!(TakeReply::parse(text), Some(TakeReply { sequence, admitted, tokens_pico, now_us }));
    }
}
