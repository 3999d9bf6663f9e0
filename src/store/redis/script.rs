//! The script that takes a token, and its reply.

use super::resp::push_command;
use crate::bucket::PICO_PER_TOKEN;
use crate::limit::Limit;

/// Takes one token; the twin of [`crate::bucket::take`], and tested against it.
pub const TAKE: &str = include_str!("take.lua");

/// SHA-1 of [`TAKE`], by which a Redis that has run the script before knows it.
pub const TAKE_SHA1: &str = "693b731525e214b97e628b797bd3114232004f09";

const MICRO: u64 = 1_000_000;

/// What the script takes a token from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    pub key: String,
    pub limit: Limit,
    /// The limit of the same bucket at the other health.
    pub other_limit: Limit,
    /// How long to keep an idle bucket at least, in milliseconds; longer where it needs longer to be full again.
    pub ttl_ms: u64,
}

impl Take {
    /// Appends the command to `out`: by the script's hash, or with its text for a Redis that does not know it.
    pub fn push(&self, out: &mut Vec<u8>, sequence: u32, script: Script) {
        let (command, script) = match script {
            Script::Hash => ("EVALSHA", TAKE_SHA1),
            Script::Text => ("EVAL", TAKE),
        };
        let [mut capacity, mut rate, mut ttl] = [(); 3].map(|()| itoa::Buffer::new());
        let [mut number, mut other_capacity, mut other_rate] = [(); 3].map(|()| itoa::Buffer::new());
        push_command(
            out,
            &[
                command.as_bytes(),
                script.as_bytes(),
                b"1",
                self.key.as_bytes(),
                capacity.format(self.limit.capacity()).as_bytes(),
                rate.format(self.limit.refill_micro_per_sec()).as_bytes(),
                ttl.format(self.ttl_ms).as_bytes(),
                number.format(sequence).as_bytes(),
                other_capacity.format(self.other_limit.capacity()).as_bytes(),
                other_rate.format(self.other_limit.refill_micro_per_sec()).as_bytes(),
            ],
        );
    }
}

/// How to name the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// By its hash: short, and enough once Redis has run it.
    Hash,
    Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeReply {
    /// The number that the command carried.
    pub sequence: u32,
    pub admitted: bool,
    /// Tokens there now, in units of 10⁻¹².
    pub tokens_pico: u64,
    /// Redis' clock, in Unix microseconds.
    pub now_us: u64,
}

impl TakeReply {
    /// Reads `7 1 9.000000000000 1699564800.123456`.
    pub fn parse(reply: &[u8]) -> Option<Self> {
        let mut words = reply.split(|byte| *byte == b' ');
        let taken = Self {
            sequence: u32::try_from(whole(words.next()?)?).ok()?,
            admitted: match words.next()? {
                b"1" => true,
                b"0" => false,
                _ => return None,
            },
            tokens_pico: decimal(words.next()?, PICO_PER_TOKEN, 12)?,
            now_us: decimal(words.next()?, MICRO, 6)?,
        };
        words.next().is_none().then_some(taken)
    }
}

/// A number with exactly `decimals` decimals, in units of one in `units`.
fn decimal(text: &[u8], units: u64, decimals: usize) -> Option<u64> {
    let (integer, fraction) = text.split_at_checked(text.len().checked_sub(decimals + 1)?)?;
    let fraction = fraction.strip_prefix(b".")?;
    whole(integer)?.checked_mul(units)?.checked_add(digits(fraction)?)
}

/// A number as the script writes it: no sign, and no zero in front of it.
fn whole(text: &[u8]) -> Option<u64> {
    match text {
        [b'0', _, ..] => None,
        _ => digits(text),
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}
