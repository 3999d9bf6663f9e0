//! Tiers and their limits: how much a caller may send, and at which health.
//!
//! Knows nothing of who the caller is, where buckets are kept, or what time it is.

use crate::health::Health;
use crate::limit::Limit;

/// Longest time an idle bucket may be kept, in seconds (a year).
pub const MAX_TTL_SECONDS: u32 = 31_536_000;

/// The most important priority.
pub const MAX_PRIORITY: u8 = 9;

/// What a caller of this tier gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Every request passes and no bucket is kept.
    Unlimited,
    /// No request passes: the tier's capacity is zero.
    Blocked,
    /// One token a request, from a bucket of this size.
    Limited(Limit),
}

/// One class of callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The name that `X-RateLimit-Tier` and the metrics show.
    pub name: String,
    /// The limit while the system is healthy; unused when `unlimited`.
    pub normal: Limit,
    /// The limit while the system is degraded; unused when `unlimited`.
    pub degraded: Limit,
    /// How long an idle bucket is kept, in seconds; longer where it needs longer to be full again.
    pub ttl_seconds: u32,
    /// Passes without a bucket.
    pub unlimited: bool,
    /// How important it is, 0 to [`MAX_PRIORITY`]: while load is shed, the least important tiers go first.
    pub priority: u8,
    /// The share of its callers that have the priority of the most important tier, in thousandths. Which callers these
    /// are, changes every ten seconds.
    pub min_share_milli: u16,
}

impl Tier {
    /// What holds at `health`.
    pub fn allowance(&self, health: Health) -> Allowance {
        if self.unlimited {
            return Allowance::Unlimited;
        }
        match self.limit(health) {
            limit if limit.capacity() == 0 => Allowance::Blocked,
            limit => Allowance::Limited(limit),
        }
    }

    /// Whether a caller whose order among its tier is `order` has the priority of the most important tier. Other bits
    /// decide that than those that come first in the order: else it would come before the others of that priority.
    pub fn is_in_min_share(&self, order: u64) -> bool {
        let from = u64::MAX - u64::MAX / 1_000 * u64::from(self.min_share_milli);
        self.min_share_milli > 0 && order.rotate_left(32) >= from
    }

    /// Whether it admits nothing at any health.
    pub fn is_blocked(&self) -> bool {
        [Health::Normal, Health::Degraded].map(|health| self.allowance(health)) == [Allowance::Blocked; 2]
    }

    fn limit(&self, health: Health) -> Limit {
        match health {
            Health::Normal => self.normal,
            Health::Degraded => self.degraded,
        }
    }
}
