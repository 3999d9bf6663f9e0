//! Whom to turn away: the least important tiers first, and within a tier callers rather than requests.
//!
//! A severity says how much of the traffic is too much. [`Cut::of`] draws the line through the levels of priority: all
//! below it go (but for their tiers' `min_share`), none above it, and of the level that it goes through a share. So no
//! tier is touched while a less important one is served beyond its `min_share`. (WeChat's DAGOR draws one line through
//! business priority and user priority in the same way; its line moves by steps, ours by what it is worth in traffic.)
//!
//! Which callers are among that share is the caller's place, a number that all workers and all Envoys agree on. It moves
//! with time: everybody is turned away for a while and served for a while, instead of now and then all the time.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::signals::LEVELS;

/// How long a caller's place takes to come round, in microseconds.
const TURN_US: u64 = 300_000_000;

/// What one level of priority asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Requests a second that would be sent to the upstream if none were shed.
    pub rate: f64,
    /// The share of them that `min_share` keeps from being shed, 0 to 1.
    pub kept: f64,
}

/// The line between who is turned away and who is not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cut {
    /// Tiers of a lower priority are turned away.
    pub level: u8,
    /// The share of callers of that very priority that are too, 0 to 1.
    pub share: f64,
}

impl Cut {
    /// Draws the line so that `severity` (0 to 1) of all demand is turned away, or as much as `min_share` allows.
    pub fn of(severity: f64, demand: &[Demand; LEVELS]) -> Self {
        let total: f64 = demand.iter().map(|level| level.rate).sum();
        let mut excess = severity * total;
        if excess <= 0.0 {
            return Self::default();
        }
        for (level, Demand { rate, kept }) in (0..).zip(demand) {
            let sheddable = rate * (1.0 - kept);
            if excess < sheddable {
                return Self { level, share: excess / sheddable };
            }
            excess -= sheddable;
        }
        Self { level: LEVELS as u8, share: 0.0 }
    }

    /// Whether nobody is turned away.
    pub fn is_open(self) -> bool {
        self.level == 0 && self.share <= 0.0
    }

    /// Whether a caller at this `place` is turned away, in a tier of this priority that keeps `min_share`.
    pub fn sheds(self, priority: u8, min_share: f64, place: f64) -> bool {
        let share = match priority.cmp(&self.level) {
            std::cmp::Ordering::Less => 1.0,
            std::cmp::Ordering::Equal => self.share,
            std::cmp::Ordering::Greater => return false,
        };
        place < share * (1.0 - min_share)
    }
}

/// Where a caller stands at that time among those of its tier: 0 to 1, those near 0 are turned away first.
pub fn place(caller: &impl Hash, unix_us: u64) -> f64 {
    let mut hasher = DefaultHasher::new();
    caller.hash(&mut hasher);
    let turn = (unix_us % TURN_US) as f64 / TURN_US as f64;
    (hasher.finish() as f64 / 2f64.powi(64) + turn).fract()
}
