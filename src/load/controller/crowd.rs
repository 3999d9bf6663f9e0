//! Who asks for how much, and whom to turn away so that no more is sent than is aimed at.
//!
//! Callers that are shed ask again, more often than if they were served, and some callers ask for much more than others.
//! So a share of what is asked is not a share of what would be sent. How far the two differ is learned from slot to slot.

use super::seen::{pace, slot_seconds, slots};
use crate::load::shed::{Cut, Demand};
use crate::load::signals::{LEVELS, Window};

/// What is asked for is seen over so many seconds; and it is too much if it is over so many, or by this factor.
const RECENT: f64 = 0.5;
const LASTING: f64 = 2.0;
const SURGE: f64 = 1.5;

/// A crowd that is gone in a moment may be back in the next: this part of what it lastingly asked for is still expected.
const HELD: f64 = 0.5;

/// How much of the difference between what was to be sent and what was is learned from in half a second: all of it where
/// many requests were sent, less where that may be chance, and none where the aim has just moved by more than that.
const LEARNING: f64 = 0.5;
const LEAST_LEARNING: f64 = 0.2;
const MANY: f64 = 60.0;
const MOVED: f64 = 0.15;

/// Where more than this is turned away, nothing is learned from too much that was sent.
const ALL: f64 = 0.99;

/// The most that can be learned.
const MOST_INSISTENCE: f64 = 3.0;

/// What is known of those who ask. Rates are in requests a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Crowd {
    /// How often a caller that is shed asks, for once that it would ask if it were served, as a logarithm.
    pub(super) insistence: f64,
    /// What was to be sent in the last slot, and in the one before it; 0 without a limit.
    pub(super) aims: [f64; 2],
    /// By level, the share of requests that their own buckets refused, as it was last seen.
    pub(super) refused: [f64; LEVELS],
}

impl Crowd {
    /// What was to be sent in the last slot; 0 without a limit.
    pub(super) fn aim(&self) -> f64 {
        let [aim, _] = self.aims;
        aim
    }

    /// What a slot has shown in which so much of the demand was to be turned away.
    pub(super) fn see(&mut self, window: &Window, severity: f64) {
        for (share, level) in self.refused.iter_mut().zip(&window.total().levels) {
            let asked = f64::from(level.passed) + f64::from(level.refused);
            if asked > 0.0 {
                *share = f64::from(level.refused) / asked;
            }
        }
        let [aim, before] = self.aims;
        if severity <= 0.0 || aim <= 0.0 {
            self.insistence = 0.0;
            return;
        }
        let recent = slots(window, RECENT);
        let passed = window.newest(recent).passed() as f64;
        let sent = passed / (recent as f64 * slot_seconds(window));
        let off = (aim / sent.max(aim / 4.0)).min(4.0).ln();
        // Nobody more can be turned away than all but those whom `min_share` keeps.
        let is_all = severity > ALL && off < 0.0;
        if !is_all && (aim / before.max(f64::MIN_POSITIVE)).ln().abs() < MOVED {
            let learning = (LEARNING * passed / (passed + MANY)).max(LEAST_LEARNING);
            self.insistence += learning * pace(window) * off;
            self.insistence = self.insistence.clamp(-MOST_INSISTENCE, MOST_INSISTENCE);
        }
    }

    /// How much of the demand to turn away, 0 to 1, and whose, so that `aim` is sent; 0 is no limit.
    pub(super) fn turn_away(&mut self, window: &Window, aim: f64) -> (f64, Cut) {
        let [last, _] = self.aims;
        self.aims = [aim, last];
        let [recent, lasting] = [RECENT, LASTING].map(|seconds| self.demand(window, slots(window, seconds)));
        let is_over = aim > 0.0 && (total(&lasting) > aim || total(&recent) > aim * SURGE);
        let held = lasting.map(|level| Demand { rate: level.rate * HELD, ..level });
        let demand = if total(&held) > total(&recent) { held } else { recent };
        let asked = total(&demand);
        let kept = if is_over { (aim / asked.max(f64::MIN_POSITIVE)).min(1.0) } else { 1.0 };
        let severity = 1.0 - kept;
        (severity, Cut::of(severity, &demand))
    }

    /// What would be sent in the newest slots if nobody were turned away.
    fn demand(&self, window: &Window, slots: usize) -> [Demand; LEVELS] {
        let counts = window.newest(slots);
        let seconds = slots as f64 * slot_seconds(window);
        let mut demand = [Demand::default(); LEVELS];
        for ((demand, level), refused) in demand.iter_mut().zip(&counts.levels).zip(self.refused) {
            let shed = f64::from(level.shed) * (1.0 - refused) / self.insistence.exp();
            demand.rate = (f64::from(level.passed) + shed) / seconds;
            demand.kept = (level.kept_milli as f64 / 1_000.0 / level.offered().max(1) as f64).min(1.0);
        }
        demand
    }
}

fn total(demand: &[Demand; LEVELS]) -> f64 {
    demand.iter().map(|level| level.rate).sum()
}
