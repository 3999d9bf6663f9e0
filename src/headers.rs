//! A verdict as response headers.
//!
//! Headers are written one by one through a function, from buffers on the stack: nothing is allocated.

use std::rc::Rc;

use crate::bucket::{self, Outcome, Verdict};
use crate::config::Headers;
use crate::health::Health;
use crate::tier::{Allowance, Tier};

/// Body of a refusal.
pub const REFUSED_BODY: &str = "Too Many Requests";

/// Body of the answer to a request that could not be decided.
pub const UNAVAILABLE_BODY: &str = "Service Unavailable";

const US_PER_SEC: u64 = 1_000_000;

/// What the response headers tell.
#[derive(Clone, Debug)]
pub struct HeaderValues {
    /// The caller's tier.
    pub tier: Rc<Tier>,
    /// The health that the limit was chosen by.
    pub health: Health,
    /// What the bucket said; `None` for an unlimited tier.
    pub verdict: Option<Verdict>,
    /// The store's clock at the decision, in microseconds.
    pub now_us: u64,
}

/// Writes the headers of `answer`.
///
/// `unix_offset_us` added to the store's clock gives Unix time (wrapping: it may stand for a negative number); `processing_us` is the time since the request's
/// headers came in.
pub fn write_headers(
    answer: &HeaderValues,
    headers: Headers,
    unix_offset_us: u64,
    processing_us: u64,
    mut write: impl FnMut(&'static str, &[u8]),
) {
    let tier = answer.tier.name.as_bytes();
    if let Some(verdict) = answer.verdict {
        let reset_us = answer.now_us.wrapping_add(unix_offset_us).saturating_add(verdict.wait_us);
        if headers.rate_limit {
            write("x-ratelimit-limit", HeaderText::new().number(verdict.capacity).bytes());
            write("x-ratelimit-remaining", HeaderText::new().number(verdict.remaining).bytes());
            write("x-ratelimit-reset", HeaderText::new().number(reset_us.div_ceil(US_PER_SEC)).bytes());
        }
        if verdict.outcome == Outcome::Refused {
            write("retry-after", HeaderText::new().number(seconds(verdict.wait_us)).bytes());
        }
        if headers.ietf {
            let window = match answer.tier.allowance(answer.health) {
                Allowance::Limited(limit) => bucket::time_to_fill_us(limit),
                Allowance::Unlimited | Allowance::Blocked => verdict.wait_us,
            };
            let policy = HeaderText::new().text(b"\"").text(tier).text(b"\";q=").number(verdict.capacity);
            write("ratelimit-policy", policy.text(b";w=").number(seconds(window)).bytes());
            let state = HeaderText::new().text(b"\"").text(tier).text(b"\";r=").number(verdict.remaining);
            write("ratelimit", state.text(b";t=").number(seconds(verdict.wait_us)).bytes());
        }
    }
    if headers.rate_limit {
        write("x-ratelimit-tier", tier);
    }
    if headers.system_health {
        write("x-system-health", answer.health.name().as_bytes());
    }
    if headers.processing_time {
        write("x-processing-time", processing_time(processing_us).bytes());
    }
}

/// Whole seconds to wait, rounded up, at least one.
pub fn seconds(wait_us: u64) -> u64 {
    wait_us.div_ceil(US_PER_SEC).max(1)
}

/// A number that is not negative, with three decimals. It keeps the code that formats any number out of the filter.
pub fn rounded(number: f64) -> String {
    decimal((number * 1_000.0).round() as u64)
}

/// `1.234`: so many thousandths.
pub fn decimal(thousandths: u64) -> String {
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}

/// `0.0234s`: rounded to the nearest ten-thousandth of a second.
fn processing_time(us: u64) -> HeaderText {
    let ten_thousandths = us.saturating_add(50) / 100;
    let digit = |place: u64| [b'0' + (ten_thousandths / place % 10) as u8];
    HeaderText::new()
        .number(ten_thousandths / 10_000)
        .text(b".")
        .text(&digit(1000))
        .text(&digit(100))
        .text(&digit(10))
        .text(&digit(1))
        .text(b"s")
}

/// A short text on the stack. What does not fit is cut off; the longest header here has a tier name of 64
/// bytes and three numbers.
struct HeaderText {
    bytes: [u8; 128],
    len: usize,
}

impl HeaderText {
    fn new() -> Self {
        Self { bytes: [0; 128], len: 0 }
    }

    fn text(mut self, text: &[u8]) -> Self {
        let end = self.len + text.len();
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(text);
            self.len = end;
        }
        self
    }

    fn number(self, number: impl Into<u64>) -> Self {
        self.text(itoa::Buffer::new().format(number.into()).as_bytes())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}
