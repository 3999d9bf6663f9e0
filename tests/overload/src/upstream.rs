//! The upstream: some servers, a queue before them, and what goes wrong with it.

use std::collections::VecDeque;

use crate::chance::{Random, Spread, uniform};

/// So many requests a second are few.
pub const FEW: f64 = 100.0;

/// What the upstream is made of.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    /// Requests that are worked on at a time.
    pub servers: u32,
    /// Mean time of that, in microseconds.
    pub service_us: f64,
    /// How that varies.
    pub spread: Spread,
    /// How many may wait; who finds the queue full is refused at once, with a 503.
    pub queue: usize,
    /// Whether it works on requests whose clients have gone. Most servers do.
    pub works_for_nobody: bool,
}

impl Upstream {
    /// Requests a second that it can do.
    pub fn capacity(&self) -> f64 {
        f64::from(self.servers) * 1e6 / self.service_us
    }

    /// Whether these are so few that chance is much of what is seen.
    pub fn is_small(&self) -> bool {
        self.capacity() <= FEW
    }
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Condition {
    /// Nothing.
    Well,
    /// Every request takes so many times as long.
    Slow(f64),
    /// Only this share of its servers is left.
    Fewer(f64),
    /// This share of requests fails, whatever the load.
    Failing(f64),
    /// It refuses connections.
    Dead,
    /// It takes requests and never answers.
    Hanging,
}

impl Condition {
    /// Requests a second that an upstream can do.
    pub fn capacity(self, upstream: &Upstream) -> f64 {
        match self {
            Self::Slow(factor) => upstream.capacity() / factor,
            Self::Fewer(share) => upstream.capacity() * share,
            Self::Dead | Self::Hanging => 0.0,
            Self::Well | Self::Failing(_) => upstream.capacity(),
        }
    }

    /// Whether it still does something, but not as it should.
    pub fn is_partial(self) -> bool {
        matches!(self, Self::Slow(_) | Self::Fewer(_) | Self::Failing(_))
    }
}

/// What became of a request that was sent to it.
pub(crate) enum Taken {
    /// It is worked on, and done after so many microseconds.
    Started(u64),
    Queued,
    Refused,
}

/// The upstream at work.
pub(crate) struct Work {
    upstream: Upstream,
    pub(crate) condition: Condition,
    busy: u32,
    queue: VecDeque<u64>,
}

impl Work {
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self { upstream, condition: Condition::Well, busy: 0, queue: VecDeque::new() }
    }

    pub(crate) fn take(&mut self, attempt: u64, random: &mut Random) -> Taken {
        if self.condition == Condition::Dead {
            return Taken::Refused;
        }
        if self.busy < self.servers() {
            self.busy += 1;
            return Taken::Started(self.service_us(random));
        }
        if self.queue.len() >= self.upstream.queue {
            return Taken::Refused;
        }
        self.queue.push_back(attempt);
        Taken::Queued
    }

    /// A server is done.
    pub(crate) fn done(&mut self) {
        self.busy -= 1;
    }

    /// If a server is free: the next in the queue that is worth it, and how long it takes.
    pub(crate) fn start_next(
        &mut self,
        random: &mut Random,
        is_wanted: impl Fn(u64) -> bool,
    ) -> Option<(u64, u64)> {
        while self.busy < self.servers()
            && let Some(attempt) = self.queue.pop_front()
        {
            if self.upstream.works_for_nobody || is_wanted(attempt) {
                self.busy += 1;
                return Some((attempt, self.service_us(random)));
            }
        }
        None
    }

    /// Whether a request that was worked on succeeds.
    pub(crate) fn succeeds(&self, random: &mut Random) -> bool {
        match self.condition {
            Condition::Failing(share) => uniform(random) >= share,
            Condition::Dead => false,
            _ => true,
        }
    }

    /// The process ends and another begins: nobody waits in it any more. Returns who did.
    pub(crate) fn restart(&mut self) -> Vec<u64> {
        self.busy = 0;
        self.queue.drain(..).collect()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn servers(&self) -> u32 {
        match self.condition {
            Condition::Fewer(share) => (f64::from(self.upstream.servers) * share).round() as u32,
            _ => self.upstream.servers,
        }
    }

    fn service_us(&self, random: &mut Random) -> u64 {
        let factor = match self.condition {
            Condition::Slow(factor) => factor,
            // Until long after the end of the world.
            Condition::Hanging => return u64::MAX / 4,
            _ => 1.0,
        };
        self.upstream.spread.draw(random, self.upstream.service_us * factor).max(1.0) as u64
    }
}
