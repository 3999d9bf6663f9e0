//! Moments on the clock that all workers of one Envoy share, and on the wall clock, which may step.
//!
//! The wall clock is for headers and timestamps alone, and [`WallClock`] is the only way from one to the other.
//! Nothing here traps: moments saturate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on the store's clock ([`crate::store::SharedData::now`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoreTime(u64);

impl StoreTime {
    /// The last moment, which does not come.
    pub const MAX: Self = Self(u64::MAX);

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
    pub const fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(whole_micros(duration)))
    }

    /// The moment `duration` later.
    pub const fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(whole_micros(duration)))
    }
}

/// A moment on the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(u64);

impl UnixTime {
    /// So many microseconds after 1970 began.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970 began.
    pub const fn as_micros(self) -> u64 {
        self.0
    }
}

/// The wall clock, as an offset to the store's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    /// Wraps around: it may stand for a negative number.
    offset_us: u64,
}

impl WallClock {
    /// Reads `unix` at the moment `now`.
    pub const fn new(unix: UnixTime, now: StoreTime) -> Self {
        Self { offset_us: unix.0.wrapping_sub(now.0) }
    }

    /// What it reads at a moment.
    pub const fn at(self, moment: StoreTime) -> UnixTime {
        UnixTime(moment.0.wrapping_add(self.offset_us))
    }
}

/// A duration in microseconds, rounded down; saturates.
pub const fn whole_micros(duration: Duration) -> u64 {
    let seconds = duration.as_secs();
    // Not `saturating_mul`, which multiplies 128 bits.
    if seconds > u64::MAX / 1_000_000 {
        return u64::MAX;
    }
    (seconds * 1_000_000).saturating_add(duration.subsec_micros() as u64)
}
