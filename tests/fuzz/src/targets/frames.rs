//! The frames of the bridge: the same messages for any split of the stream, and a round trip.

use dynamic_rate_limiter::store::redis::frame::{Compressed, Unframer, header};

use super::pieces;
use crate::Random;

pub(super) fn check(bytes: &[u8]) {
    let seed = bytes.iter().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut random = Random::new(seed);
    let whole = unframed(&[bytes]);
    assert_eq!(unframed(&bytes.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    for _ in 0..4 {
        assert_eq!(unframed(&pieces(bytes, &mut random)), whole, "in pieces");
    }
    assert_eq!(read(bytes), whole, "a second reader");

    let mut framed = Vec::new();
    for message in pieces(bytes, &mut random) {
        framed.extend(header(message.len() as u32));
        framed.extend(message);
    }
    assert_eq!(unframed(&pieces(&framed, &mut random)), (bytes.to_vec(), Ok(())), "there and back");
}

fn unframed(pieces: &[&[u8]]) -> (Vec<u8>, Result<(), Compressed>) {
    let mut unframer = Unframer::default();
    let mut out = Vec::new();
    let end = pieces.iter().try_for_each(|piece| unframer.unframe(piece, &mut out));
    (out, end)
}

/// A second parser of frames, for a complete stream.
fn read(mut bytes: &[u8]) -> (Vec<u8>, Result<(), Compressed>) {
    let mut out = Vec::new();
    while let Some(([flag, length @ ..], rest)) = bytes.split_first_chunk::<5>() {
        if *flag != 0 {
            return (out, Err(Compressed));
        }
        let length = (u32::from_be_bytes(*length) as usize).min(rest.len());
        out.extend(&rest[..length]);
        bytes = &rest[length..];
    }
    (out, Ok(()))
}
