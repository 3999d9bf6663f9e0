//! A verdict as response headers.
//!
//! Headers are written one by one through a function, from buffers on the stack: nothing is allocated.

use std::rc::Rc;
use std::time::Duration;

use crate::bucket::{self, Outcome, Verdict};
use crate::config::Headers;
use crate::health::Health;
use crate::tier::{Allowance, Tier};
use crate::time::{StoreTime, WallClock, whole_micros};

/// Body of a rejection.
pub const REJECTED_BODY: &str = "Too Many Requests";

/// Body of the answer to a request that could not be decided.
pub const UNAVAILABLE_BODY: &str = "Service Unavailable";

const US_PER_SEC: u64 = 1_000_000;

/// What the response headers say.
#[derive(Clone, Debug)]
pub struct HeaderValues {
    /// The caller's tier.
    pub tier: Rc<Tier>,
    /// The health that the limit was chosen by.
    pub health: Health,
    /// `None` where no bucket was used: for an unlimited tier, for a request that was shed, and where `on_failure` has
    /// admitted or rejected.
    pub verdict: Option<Verdict>,
    /// When it was decided.
    pub at: StoreTime,
}

/// Writes these values as headers. `processing` is the time since the request's headers came in.
pub fn write_headers(
    header_values: &HeaderValues,
    headers: Headers,
    wall_clock: WallClock,
    processing: Duration,
    mut write: impl FnMut(&'static str, &[u8]),
) {
    let tier = header_values.tier.name.as_bytes();
    if let Some(verdict) = header_values.verdict {
        let reset_us = wall_clock.at(header_values.at).as_micros().saturating_add(verdict.wait_us);
        if headers.rate_limit {
            write("x-ratelimit-limit", HeaderText::new().number(verdict.capacity).bytes());
            write("x-ratelimit-remaining", HeaderText::new().number(verdict.remaining).bytes());
            write("x-ratelimit-reset", HeaderText::new().number(reset_us.div_ceil(US_PER_SEC)).bytes());
        }
        if verdict.outcome == Outcome::Rejected && !header_values.tier.is_blocked() {
            write("retry-after", HeaderText::new().number(seconds(verdict.wait())).bytes());
        }
        if headers.ietf {
            let window = match header_values.tier.allowance(header_values.health) {
                Allowance::Limited(limit) => Duration::from_micros(bucket::time_to_fill_us(limit)),
                Allowance::Unlimited | Allowance::Blocked => verdict.wait(),
            };
            let policy = HeaderText::new().text(b"\"").text(tier).text(b"\";q=").number(verdict.capacity);
            write("ratelimit-policy", policy.text(b";w=").number(seconds(window)).bytes());
            let state = HeaderText::new().text(b"\"").text(tier).text(b"\";r=").number(verdict.remaining);
            write("ratelimit", state.text(b";t=").number(seconds(verdict.wait())).bytes());
        }
    }
    if headers.rate_limit {
        write("x-ratelimit-tier", tier);
    }
    if headers.system_health {
        write("x-system-health", header_values.health.name().as_bytes());
    }
    if headers.processing_time {
        write("x-processing-time", processing_time(processing).bytes());
    }
}

/// Whole seconds to wait, rounded up, at least one.
pub fn seconds(wait: Duration) -> u64 {
    whole_micros(wait).div_ceil(US_PER_SEC).max(1)
}

/// `0.0234s`: rounded to the nearest ten-thousandth of a second.
fn processing_time(processing: Duration) -> HeaderText {
    let ten_thousandths = whole_micros(processing).saturating_add(50) / 100;
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
