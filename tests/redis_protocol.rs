//! Commands to Redis and its replies, split at any byte. The targets `resp` and `frames` of `tests/fuzz` use arbitrary
//! bytes.

mod common;

use common::redis::{parse_commands, taken_reply};
use dynamic_rate_limiter::bucket::PICO_PER_TOKEN;
use dynamic_rate_limiter::store::redis::frame::{Compressed, Unframer, header};
use dynamic_rate_limiter::store::redis::resp::{Decoder, MAX_REPLY_BYTES, Malformed, Reply, push_command};
use dynamic_rate_limiter::store::redis::script::{Script, TAKE, TAKE_SHA1, Take, TakeReply};
use dynamic_rate_limiter::tier::{MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// A reply that owns its text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(Vec<u8>),
    Bulk(Vec<u8>),
    Null,
}

impl Owned {
    fn of(reply: Reply<'_>) -> Self {
        match reply {
            Reply::Simple(text) => Owned::Simple(text.to_vec()),
            Reply::Error(text) => Owned::Error(text.to_vec()),
            Reply::Integer(text) => Owned::Integer(text.to_vec()),
            Reply::Bulk(text) => Owned::Bulk(text.to_vec()),
            Reply::Null => Owned::Null,
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Owned::Simple(text) => [b"+", text.as_slice(), b"\r\n"].concat(),
            Owned::Error(text) => [b"-", text.as_slice(), b"\r\n"].concat(),
            Owned::Integer(text) => [b":", text.as_slice(), b"\r\n"].concat(),
            Owned::Bulk(text) => common::redis::bulk(text),
            Owned::Null => b"$-1\r\n".to_vec(),
        }
    }
}

/// The replies in a stream of these pieces, up to the first malformed byte.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Owned>, Result<(), Malformed>) {
    let mut decoder = Decoder::default();
    let mut replies = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_reply() {
                Ok(Some(reply)) => replies.push(Owned::of(reply)),
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

/// Splits at each of these places.
fn split<'a>(bytes: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>().prop_filter("no line contains a CR", |byte| *byte != b'\r'), 0..40)
}

fn any_reply() -> impl Strategy<Value = Owned> {
    prop_oneof![
        any_line().prop_map(Owned::Simple),
        any_line().prop_map(Owned::Error),
        any::<i64>().prop_map(|number| Owned::Integer(number.to_string().into_bytes())),
        vec(any::<u8>(), 0..60).prop_map(Owned::Bulk),
        vec(prop::sample::select(b"\r\n$*+-:0123456789".to_vec()), 0..30).prop_map(Owned::Bulk),
        (4_000..=MAX_REPLY_BYTES).prop_map(|length| Owned::Bulk(vec![b'\r'; length])),
        Just(Owned::Null),
    ]
}

/// Bytes that resemble replies.
fn almost_replies() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        any_reply().prop_map(|reply| reply.encode()),
        prop::sample::select(vec![
            "\r\n", "\r", "\n", "$", "+", "-", ":", "*", "-1", "0", "4096", "4097", "_", ">"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        vec(any::<u8>(), 0..6),
    ];
    vec(token, 0..20).prop_map(|tokens| tokens.concat())
}

#[test]
fn replies_decode_the_same_split_at_any_one_or_two_places() {
    let replies = [
        Owned::Simple(b"OK".to_vec()),
        Owned::Bulk(b"7 1 9.000000000000 1699564800.123456".to_vec()),
        Owned::Null,
        Owned::Error(b"NOSCRIPT No matching script.".to_vec()),
        Owned::Bulk(Vec::new()),
        Owned::Bulk(b"\r\n$3\r\n".to_vec()),
        Owned::Integer(b"-1".to_vec()),
        Owned::Integer(b"0".to_vec()),
        Owned::Simple(Vec::new()),
    ];
    let stream: Vec<u8> = replies.iter().flat_map(Owned::encode).collect();
    let wanted = (replies.to_vec(), Ok(()));
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(decode(pieces), wanted, "split at {first} and {second}");
        }
    }
    assert_eq!(decode(stream.chunks(1)), wanted);
}

#[test]
fn a_reply_of_the_longest_size_decodes_wherever_it_is_split() {
    for length in MAX_REPLY_BYTES - 20..=MAX_REPLY_BYTES {
        let text = vec![b'x'; length];
        let mut replies = vec![Owned::Bulk(text.clone())];
        if length < MAX_REPLY_BYTES {
            replies.extend([Owned::Simple(text.clone()), Owned::Error(text)]);
        }
        for reply in replies {
            let stream = reply.encode();
            let wanted = (vec![reply], Ok(()));
            assert_eq!(decode([stream.as_slice()]), wanted, "{length} bytes, whole");
            for at in stream.len() - 30..stream.len() {
                assert_eq!(decode([&stream[..at], &stream[at..]]), wanted, "{length} bytes, split at {at}");
            }
        }
    }
}

#[test]
fn replies_that_no_command_can_have_are_malformed() {
    let long = |kind: &str, length: usize| [kind.as_bytes(), &vec![b'1'; length]].concat();
    let cases: Vec<(&str, Vec<u8>)> = [
        ("an array", "*1\r\n$1\r\na\r\n"),
        ("an empty array", "*0\r\n"),
        ("no array", "*-1\r\n"),
        ("arrays in arrays", "*1\r\n*1\r\n*1\r\n:1\r\n"),
        ("RESP3: null", "_\r\n"),
        ("RESP3: a truth", "#t\r\n"),
        ("RESP3: a double", ",1.5\r\n"),
        ("RESP3: a big number", "(3492890328409238509324850943850943825024385\r\n"),
        ("RESP3: a bulk error", "!5\r\nERR x\r\n"),
        ("RESP3: a verbatim string", "=6\r\ntxt:ok\r\n"),
        ("RESP3: a map", "%1\r\n+a\r\n:1\r\n"),
        ("RESP3: a set", "~1\r\n+a\r\n"),
        ("RESP3: a push", ">1\r\n+a\r\n"),
        ("RESP3: an attribute", "|1\r\n+a\r\n:1\r\n"),
        ("RESP3: a streamed string", "$?\r\n;1\r\na\r\n"),
        ("HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("a command", "PING\r\n"),
        ("a line break", "\r\n"),
        ("a zero byte", "\0"),
        ("a string over the bound", "$4097\r\n"),
        ("a string of five digits", "$10000\r\n"),
        ("a string beyond 64 bits", "$99999999999999999999999\r\n"),
        ("a string of minus two", "$-2\r\n"),
        ("a string of minus one with a leading zero", "$-01\r\n"),
        ("a string of plus five", "$+5\r\nhello\r\n"),
        ("a string of a space and a five", "$ 5\r\nhello\r\n"),
        ("a string of no length", "$\r\n\r\n"),
        ("a string of letters", "$five\r\nhello\r\n"),
        ("a string that is longer than it says", "$3\r\nabcd\r\n"),
        ("a string without its line break", "$3\r\nabc+OK\r\n"),
        ("a string with half a line break", "$3\r\nabc\rx"),
        ("no number", ":\r\n"),
        ("a minus alone", ":-\r\n"),
        ("two minuses", ":--1\r\n"),
        ("a fraction", ":1.5\r\n"),
        ("a number with a letter", ":1a\r\n"),
        ("half a line break", "+OK\rX"),
        ("two halves", "+OK\r\r\n"),
    ]
    .map(|(what, text)| (what, text.as_bytes().to_vec()))
    .into();
    let endless = ["+", "-", ":", "$"].map(|kind| ("a line without end", long(kind, MAX_REPLY_BYTES + 1)));
    for (what, bytes) in cases.into_iter().chain(endless) {
        assert_eq!(decode([bytes.as_slice()]), (Vec::new(), Err(Malformed)), "{what}");
        assert_eq!(decode(bytes.chunks(1)), (Vec::new(), Err(Malformed)), "{what}, byte by byte");
        let after_one = [b"+OK\r\n", bytes.as_slice()].concat();
        let wanted = (vec![Owned::Simple(b"OK".to_vec())], Err(Malformed));
        assert_eq!(decode([after_one.as_slice()]), wanted, "{what}, after a valid one");
    }
}

#[test]
fn the_longest_command_has_all_arguments_of_the_script() {
    let take = Take {
        key: "rate_limit:2001:db8::/64".to_owned(),
        limit: common::limit(MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC - 1),
        other_limit: common::limit(1, MAX_REFILL_MICRO_PER_SEC),
        ttl_ms: u64::MAX,
    };
    for (script, words) in [(Script::Hash, ["EVALSHA", TAKE_SHA1]), (Script::Text, ["EVAL", TAKE])] {
        let mut bytes = Vec::new();
        take.push(&mut bytes, u32::MAX, script);
        let [command] = parse_commands(&bytes).try_into().expect("one command");
        let limit = ["10000000", "999999999999", "18446744073709551615", "4294967295"];
        let arguments = [&["1", &take.key], &limit[..], &["1", "1000000000000"]].concat();
        let wanted: Vec<&[u8]> = words.iter().chain(&arguments).map(|word| word.as_bytes()).collect();
        assert_eq!(command, wanted);
    }
}

#[test]
fn a_reply_of_the_script_is_accepted_in_one_form_only() {
    let taken =
        |sequence, admitted, tokens_pico, now_us| TakeReply { sequence, admitted, tokens_pico, now_us };
    let good = [
        ("7 1 9.000000000000 1699564800.123456", taken(7, true, 9 * PICO_PER_TOKEN, 1_699_564_800_123_456)),
        ("0 0 0.000000000000 0.000000", taken(0, false, 0, 0)),
        (
            "4294967295 0 0.999999999999 7258118400.000001",
            taken(u32::MAX, false, 999_999_999_999, 7_258_118_400_000_001),
        ),
        ("1 1 9999999.999999999999 1.000000", taken(1, true, 9_999_999_999_999_999_999, 1_000_000)),
    ];
    for (text, taken) in good {
        assert_eq!(TakeReply::parse(text.as_bytes()), Some(taken), "{text}");
    }
    let bad = [
        "",
        " ",
        "7",
        "7 1",
        "7 1 9.000000000000",
        "7 1 9.000000000000 ",
        " 7 1 9.000000000000 1.000000",
        "7  1 9.000000000000 1.000000",
        "7 1 9.000000000000 1.000000 ",
        "7 1 9.000000000000 1.000000\r\n",
        "7 1 9.000000000000 1.000000 1",
        "7 2 9.000000000000 1.000000",
        "7 01 9.000000000000 1.000000",
        "7 -1 9.000000000000 1.000000",
        "07 1 9.000000000000 1.000000",
        "+7 1 9.000000000000 1.000000",
        "-7 1 9.000000000000 1.000000",
        "4294967296 1 9.000000000000 1.000000",
        "7 1 9 1.000000",
        "7 1 9. 1.000000",
        "7 1 .000000000000 1.000000",
        "7 1 09.000000000000 1.000000",
        "7 1 -9.000000000000 1.000000",
        "7 1 9.00000000000 1.000000",
        "7 1 9.0000000000000 1.000000",
        "7 1 9,000000000000 1.000000",
        "7 1 9.00000000000e 1.000000",
        "7 1 9e12.000000000000 1.000000",
        "7 1 nan 1.000000",
        "7 1 9.000000000000 1",
        "7 1 9.000000000000 01.000000",
        "7 1 9.000000000000 1.00000",
        "7 1 9.000000000000 1.0000000",
        "7 1 18446745.000000000000 1.000000",
        "7 1 9.000000000000 18446744073710.000000",
        "7 1 99999999999999999999.000000000000 1.000000",
    ];
    for text in bad {
        assert_eq!(TakeReply::parse(text.as_bytes()), None, "{text:?}");
    }
}

#[test]
fn a_compressed_frame_is_refused() {
    for flag in [1, 2, 0x80, 0xff] {
        let bytes = [&header(2)[..], b"ab", &[flag, 0, 0, 0, 1], b"c"].concat();
        for size in 1..=bytes.len() {
            let (mut unframer, mut out) = (Unframer::default(), Vec::new());
            let unframed: Result<(), Compressed> =
                bytes.chunks(size).try_for_each(|chunk| unframer.unframe(chunk, &mut out));
            assert_eq!(unframed, Err(Compressed), "flag {flag}");
            assert_eq!(out, b"ab", "the frame before it is valid");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn replies_decode_the_same_split_anywhere(
        replies in vec(any_reply(), 0..20), places in vec(any::<Index>(), 0..40),
    ) {
        let stream: Vec<u8> = replies.iter().flat_map(Owned::encode).collect();
        prop_assert_eq!(decode(split(&stream, &places)), (replies, Ok(())));
    }

    #[test]
    fn an_unfinished_reply_is_bounded(start in almost_replies(), filler in any::<u8>()) {
        let most = 1 + "4096".len() + 2 + MAX_REPLY_BYTES + 2;
        let mut decoder = Decoder::default();
        let mut unread = 0;
        for byte in start.into_iter().chain(std::iter::repeat_n(filler, 2 * most)) {
            unread += 1;
            decoder.push(&[byte]);
            match decoder.next_reply() {
                Ok(None) => prop_assert!(unread < most, "{} bytes and still waiting", unread),
                Ok(Some(_)) => unread = 0,
                Err(Malformed) => return Ok(()),
            }
        }
    }

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
        let mut bytes = Vec::new();
        let take = Take { key: key.clone(), limit: common::limit(capacity, rate), other_limit: common::limit(1, rate), ttl_ms };
        take.push(&mut bytes, sequence, Script::Hash);
        take.push(&mut bytes, sequence, Script::Text);
        for command in parse_commands(&bytes) {
            let number = |at: usize| String::from_utf8_lossy(&command[at]).parse::<u64>();
            prop_assert_eq!(command.len(), 10);
            prop_assert_eq!(&command[3], key.as_bytes());
            prop_assert_eq!(number(4), Ok(capacity.into()));
            prop_assert_eq!(number(5), Ok(rate));
            prop_assert_eq!((number(6), number(7)), (Ok(ttl_ms), Ok(sequence.into())));
            prop_assert_eq!((number(8), number(9)), (Ok(1), Ok(rate)));
        }
    }

    #[test]
    fn every_reply_of_the_script_is_parsed(
        sequence in any::<u32>(), admitted in any::<bool>(), tokens_pico in any::<u64>(), now_us in any::<u64>(),
    ) {
        let (replies, end) = decode([taken_reply(&sequence.to_string(), admitted, tokens_pico, now_us).as_slice()]);
        prop_assert_eq!(end, Ok(()));
        let [Owned::Bulk(text)] = replies.as_slice() else { panic!("{replies:?}") };
        prop_assert_eq!(TakeReply::parse(text), Some(TakeReply { sequence, admitted, tokens_pico, now_us }));
    }

}
