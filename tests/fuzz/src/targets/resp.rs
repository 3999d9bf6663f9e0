//! Redis' protocol: the same replies for any split of the stream, and the same as those of a second parser.

use dynamic_rate_limiter::store::redis::resp::{Decoder, MAX_REPLY_BYTES, Reply};
use dynamic_rate_limiter::store::redis::script::TakeReply;

use super::pieces;
use crate::Random;

pub(super) const WORDS: &str = "\
    \r\n|+OK\r\n|$-1\r\n|$0\r\n\r\n|$4096\r\n|$4097\r\n|$9999\r\n|$10000\r\n|$-2\r\n|:-\r\n|:1\r\n|\
    *1\r\n|%1\r\n|_\r\n|-NOSCRIPT \r\n|-MOVED 1 127.0.0.1:1\r\n|-LOADING \r\n|-ERR \r\n|-NOAUTH \r\n|\
    -READONLY \r\n|-OOM \r\n|-CLUSTERDOWN \r\n|-upstream failure\r\n|\
    $37\r\n1 1 9.000000000000 1699564800.123456\r\n|18446744073709551615| 0 0.000000000000 ";

/// The replies, and the end of the stream: complete, or malformed.
type Heard = (Vec<String>, Result<(), ()>);

pub(super) fn check(bytes: &[u8]) {
    let seed = bytes.iter().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let whole = heard(&[bytes]);
    assert_eq!(heard(&bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    for round in 0..4 {
        assert_eq!(heard(&pieces(bytes, &mut Random::new(seed.wrapping_add(round)))), whole, "in pieces");
    }
    assert_eq!(read(bytes), whole, "a second reader");
}

fn heard(pieces: &[&[u8]]) -> Heard {
    let mut decoder = Decoder::default();
    let mut replies = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_reply() {
                Ok(Some(reply)) => replies.push(checked(reply)),
                Ok(None) => break,
                Err(_) => return (replies, Err(())),
            }
        }
    }
    (replies, Ok(()))
}

fn checked(reply: Reply<'_>) -> String {
    if let Reply::Bulk(text) = reply
        && let Some(taken) = TakeReply::parse(text)
    {
        // Each answer has one form only.
        let TakeReply { sequence, admitted, tokens_pico, now_us } = taken;
        let (tokens, pico) = (tokens_pico / 1_000_000_000_000, tokens_pico % 1_000_000_000_000);
        let (seconds, us) = (now_us / 1_000_000, now_us % 1_000_000);
        let written = format!("{sequence} {} {tokens}.{pico:012} {seconds}.{us:06}", u8::from(admitted));
        assert_eq!(written.as_bytes(), text);
    }
    format!("{reply:?}")
}

/// A second, very different parser of the protocol, for a complete stream.
fn read(mut bytes: &[u8]) -> Heard {
    let mut replies = Vec::new();
    while let Some(kind) = bytes.first() {
        if !b"+-:$".contains(kind) {
            return (replies, Err(()));
        }
        let Some(end) = bytes.iter().position(|byte| *byte == b'\r') else {
            let is_too_long = bytes.len() > MAX_REPLY_BYTES;
            return (replies, if is_too_long { Err(()) } else { Ok(()) });
        };
        if end > MAX_REPLY_BYTES || bytes.get(end + 1).is_some_and(|byte| *byte != b'\n') {
            return (replies, Err(()));
        }
        if end + 1 == bytes.len() {
            return (replies, Ok(()));
        }
        let line = &bytes[1..end];
        let number = std::str::from_utf8(line).ok().filter(|text| !text.starts_with('+'));
        let digits = number.is_some_and(|text| {
            let text = text.strip_prefix('-').unwrap_or(text);
            !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit())
        });
        bytes = &bytes[end + 2..];
        let reply = match kind {
            b'+' => Reply::Simple(line),
            b'-' => Reply::Error(line),
            b':' if digits => Reply::Integer(line),
            b'$' if line == b"-1" => Reply::Null,
            b'$' => {
                let length =
                    number.filter(|text| digits && text.len() <= 4).and_then(|text| text.parse().ok());
                let Some(length) = length.filter(|length: &usize| *length <= MAX_REPLY_BYTES) else {
                    return (replies, Err(()));
                };
                let after = bytes.get(length..).unwrap_or_default();
                if after.len() < 2 {
                    let is_wrong = after.first().is_some_and(|byte| *byte != b'\r');
                    return (replies, if is_wrong { Err(()) } else { Ok(()) });
                }
                if !after.starts_with(b"\r\n") {
                    return (replies, Err(()));
                }
                let text = &bytes[..length];
                bytes = &after[2..];
                Reply::Bulk(text)
            }
            _ => return (replies, Err(())),
        };
        replies.push(format!("{reply:?}"));
    }
    (replies, Ok(()))
}
