//! What one worker counts on the request path, without a call to anybody.

use std::hash::Hash;

use super::Load;
use super::shed::{self, Cut};
use super::signals::{Counts, Level};
use crate::config::Measured;
use crate::tier::Tier;

/// What a caller that is shed is told to wait, in seconds: this, and up to so many more, so that not all come back at
/// once.
const SHED_WAIT_SECONDS: (u64, u64) = (3, 7);

/// How the upstream, or Envoy in its place, has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// With a server error; after so many microseconds, where that is known.
    Failed(Option<u64>),
    /// With anything else; after so many microseconds, where that is known.
    Good(Option<u64>),
}

/// What one worker has counted since it last handed in, and the line that it was given then.
#[derive(Debug)]
pub struct Tally {
    counts: Counts,
    /// Requests that were sent to the upstream and have had no response headers yet.
    in_flight: u32,
    since_us: u64,
    cut: Cut,
    /// How long a request may wait at most without being too slow, in microseconds.
    bearable_us: u64,
    /// How long a response takes at least that was worked on, in microseconds.
    working_us: u64,
    random: u64,
}

impl Tally {
    /// Nothing counted yet. `random` starts the jitter.
    pub fn new(random: u64, now_us: u64) -> Self {
        Self {
            counts: Counts::default(),
            in_flight: 0,
            since_us: now_us,
            cut: Cut::default(),
            bearable_us: u64::MAX,
            working_us: u64::MAX,
            random: random | 1,
        }
    }

    /// Whether anybody is turned away.
    pub fn is_shedding(&self) -> bool {
        !self.cut.is_open()
    }

    /// What to tell a caller that is turned away now, in seconds to wait; `None` where it is not turned away.
    pub fn shed(&mut self, tier: &Tier, caller: &impl Hash, unix_us: u64) -> Option<u64> {
        let place = shed::place(caller, unix_us);
        if !self.cut.sheds(tier.priority, tier.min_share(), place) {
            return None;
        }
        self.note(tier, |level| level.shed = level.shed.saturating_add(1));
        let (least, more) = SHED_WAIT_SECONDS;
        Some(least + self.next_random() % (more + 1))
    }

    /// Counts a request that goes to the upstream.
    pub fn passed(&mut self, tier: &Tier) {
        self.note(tier, |level| level.passed = level.passed.saturating_add(1));
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request that was counted as passed and is not sent after all: its client has gone away.
    pub fn withdrawn(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Counts a request that its bucket refused.
    pub fn refused(&mut self, tier: &Tier) {
        self.note(tier, |level| level.refused = level.refused.saturating_add(1));
    }

    /// Counts response headers.
    pub fn answered(&mut self, response: Response) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.counts.answered = self.counts.answered.saturating_add(1);
        match response {
            Response::Failed(took_us) => self.failed(took_us.unwrap_or_default()),
            Response::Good(Some(took_us)) => self.counts.latency.add(took_us),
            Response::Good(None) => {}
        }
    }

    fn failed(&mut self, took_us: u64) {
        let is_prompt = took_us <= self.bearable_us;
        let is_at_once = is_prompt && took_us < self.working_us;
        self.counts.errors = self.counts.errors.saturating_add(1);
        self.counts.prompt = self.counts.prompt.saturating_add(is_prompt.into());
        self.counts.at_once = self.counts.at_once.saturating_add(is_at_once.into());
        if !is_at_once {
            self.counts.latency.add(took_us);
        }
    }

    /// Counts a request whose client went away after it had waited so long. Only what is too long tells anything: the
    /// response might have come the next moment.
    pub fn abandoned(&mut self, waited_us: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if waited_us > self.bearable_us {
            self.counts.latency.add(waited_us);
        }
    }

    /// Takes out what was counted, to be handed in.
    pub fn take(&mut self, now_us: u64) -> Counts {
        let elapsed_us = now_us.saturating_sub(self.since_us);
        self.since_us = now_us;
        let mut counts = std::mem::take(&mut self.counts);
        counts.in_flight_us = u64::from(self.in_flight).saturating_mul(elapsed_us);
        counts
    }

    /// Follows what was made of what all handed in.
    pub fn follow(&mut self, load: &Load, bounds: &Measured) {
        self.cut = load.cut();
        self.bearable_us = load.switch.bound_us(bounds).map_or(u64::MAX, |bound_us| bound_us as u64);
        self.working_us = load.switch.working_us().map_or(u64::MAX, |us| us as u64);
    }

    /// Sheds no request until [`Tally::follow`] says so again.
    pub fn stop_shedding(&mut self) {
        self.cut = Cut::default();
    }

    fn note(&mut self, tier: &Tier, count: impl FnOnce(&mut Level)) {
        if let Some(level) = self.counts.levels.get_mut(usize::from(tier.priority)) {
            count(level);
            level.kept_milli = level.kept_milli.saturating_add(tier.min_share_milli.into());
        }
    }

    /// Xorshift: enough for jitter.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
