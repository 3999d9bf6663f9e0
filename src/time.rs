//! Moments on the clock that all workers of one Envoy share.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on the store's clock ([`crate::store::SharedData::now_us`]). Arithmetic saturates and never traps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoreTime(u64);

impl StoreTime {
    /// So many microseconds after the clock's epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the clock's epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The time that has passed since `earlier`; zero if the clock has stepped back.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment `duration` earlier.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(whole_micros(duration)))
    }

    /// The moment `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_micros(duration)))
    }
}

/// A duration in microseconds, rounded down.
pub fn whole_micros(duration: Duration) -> u64 {
    // What no clock here reaches is cut off first, so that the product fits.
    const MOST_SECONDS: u64 = u64::MAX / 1_000_000 - 1;
    duration.as_secs().min(MOST_SECONDS) * 1_000_000 + u64::from(duration.subsec_micros())
}
