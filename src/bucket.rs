//! The token bucket: one function, stored state in, verdict and new state out.
//!
//! Exact by its choice of units. Tokens are counted in 10⁻¹² and time in microseconds, so that
//! `microseconds × millionths of a token per second` is a whole number of units: refilling never rounds, and
//! taking often gains or loses nothing. Knows nothing of callers, stores or where the time comes from.

use std::time::Duration;

use crate::limit::Limit;

/// Units in one token.
pub const PICO_PER_TOKEN: u64 = 1_000_000_000_000;

/// What a store keeps for one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens at `refilled_at_us`, in units of 10⁻¹² tokens.
    pub tokens_pico: u64,
    /// The store's clock when the tokens were last counted, in microseconds.
    pub refilled_at_us: u64,
}

/// Whether the request got its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One token was taken.
    Admitted,
    /// Less than one whole token was there.
    Rejected,
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the request got its token.
    pub outcome: Outcome,
    /// Capacity of the limit that was applied, in tokens.
    pub capacity: u32,
    /// Whole tokens left after this request.
    pub remaining: u32,
    /// Admitted: microseconds until the bucket is full again. Rejected: microseconds until a request would be
    /// admitted. Rounded up, so that coming back then is never too early.
    pub wait_us: u64,
}

/// Takes one token at `now_us` from what is stored, or from a full bucket where nothing is.
///
/// The second value is what to store instead; `None` where the stored state still says it all. A rejection
/// changes nothing, which makes rejecting cheap and keeps a flood of rejections from touching the store.
///
/// If the clock stepped back (`now_us` is before `refilled_at_us`), no time has passed, and the bucket stores
/// `now_us`. So the step adds no tokens, and no caller has to wait until the clock catches up.
pub fn take(stored: Option<Bucket>, limit: Limit, now_us: u64) -> (Verdict, Option<Bucket>) {
    let available_pico = available_pico(stored, limit, now_us);
    let (outcome, tokens_pico) = match available_pico.checked_sub(PICO_PER_TOKEN) {
        Some(left_pico) => (Outcome::Admitted, left_pico),
        None => (Outcome::Rejected, available_pico),
    };
    let clock_stepped_back = stored.is_some_and(|bucket| now_us < bucket.refilled_at_us);
    let changed = outcome == Outcome::Admitted || clock_stepped_back;
    let state = Bucket { tokens_pico, refilled_at_us: now_us };
    (Verdict::new(outcome, tokens_pico, limit), changed.then_some(state))
}

impl Verdict {
    /// How long until the bucket is full again, or until a request would be admitted.
    pub fn wait(self) -> Duration {
        Duration::from_micros(self.wait_us)
    }

    /// What follows from the outcome where `tokens_pico` are left.
    pub fn new(outcome: Outcome, tokens_pico: u64, limit: Limit) -> Self {
        let target_pico = match outcome {
            Outcome::Admitted => capacity_pico(limit),
            Outcome::Rejected => PICO_PER_TOKEN,
        };
        Verdict {
            outcome,
            capacity: limit.capacity(),
            remaining: u32::try_from(tokens_pico / PICO_PER_TOKEN).unwrap_or(u32::MAX),
            wait_us: time_to_gain_us(target_pico.saturating_sub(tokens_pico), limit),
        }
    }
}

/// Tokens there for a request at `now_us`, in units of 10⁻¹²: stored plus refilled, at most the capacity.
pub fn available_pico(stored: Option<Bucket>, limit: Limit, now_us: u64) -> u64 {
    let capacity_pico = capacity_pico(limit);
    stored.map_or(capacity_pico, |bucket| unclamped_pico(bucket, limit, now_us).min(capacity_pico))
}

/// The same, not limited to the capacity.
pub fn unclamped_pico(bucket: Bucket, limit: Limit, now_us: u64) -> u64 {
    let elapsed_us = now_us.saturating_sub(bucket.refilled_at_us);
    // Where the product or the sum does not fit, the bucket has long been full: saturating is exact.
    let gained_pico = elapsed_us.saturating_mul(limit.refill_micro_per_sec());
    bucket.tokens_pico.saturating_add(gained_pico)
}

/// Microseconds from empty to full, rounded up.
pub fn time_to_fill_us(limit: Limit) -> u64 {
    time_to_gain_us(capacity_pico(limit), limit)
}

fn time_to_gain_us(pico: u64, limit: Limit) -> u64 {
    // Only a capacity of zero has a rate of zero, and no wait is long enough.
    match limit.refill_micro_per_sec() {
        0 => u64::MAX,
        rate => pico.div_ceil(rate),
    }
}

fn capacity_pico(limit: Limit) -> u64 {
    u64::from(limit.capacity()) * PICO_PER_TOKEN
}
