//! A limit: how many tokens a bucket holds and how fast it refills.

/// Largest capacity a limit may have, in tokens. Ten million tokens in units of 10⁻¹² still fit a `u64`.
pub const MAX_CAPACITY: u32 = 10_000_000;

/// Largest refill rate a limit may have, in millionths of a token per second (one million tokens per second).
pub const MAX_REFILL_MICRO_PER_SEC: u64 = 1_000_000_000_000;

/// A bucket's size and the rate at which it refills. Always within range: see [`Limit::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    capacity: u32,
    refill_micro_per_sec: u64,
}

impl Limit {
    /// The limit of the bucket that probes take from. The bucket is full again before the next probe.
    pub const PROBE: Limit = Limit { capacity: 10, refill_micro_per_sec: MAX_REFILL_MICRO_PER_SEC };

    /// A limit of `capacity` tokens that refills at `refill_micro_per_sec` millionths of a token per second.
    ///
    /// `None` where capacity is over [`MAX_CAPACITY`], the rate is over [`MAX_REFILL_MICRO_PER_SEC`], or the
    /// rate is zero although the capacity is not: such a bucket could never be full again, so no store could
    /// ever forget it.
    pub fn new(capacity: u32, refill_micro_per_sec: u64) -> Option<Self> {
        let in_range = capacity <= MAX_CAPACITY && refill_micro_per_sec <= MAX_REFILL_MICRO_PER_SEC;
        let refills = refill_micro_per_sec > 0 || capacity == 0;
        (in_range && refills).then_some(Self { capacity, refill_micro_per_sec })
    }

    /// Tokens in a full bucket. Zero blocks the tier.
    pub fn capacity(self) -> u32 {
        self.capacity
    }

    /// Millionths of a token gained per second; which is also 10⁻¹² tokens gained per microsecond.
    pub fn refill_micro_per_sec(self) -> u64 {
        self.refill_micro_per_sec
    }
}
