//! What the request path counts about the upstream, so that counts of workers and of moments add up.

use std::collections::VecDeque;

/// Levels of priority that tiers may have: 0, the least important, to 9.
pub const LEVELS: usize = 10;

/// Buckets of [`Latency`]: four to the octave, from half a millisecond to half a minute.
const LATENCY_BUCKETS: usize = 64;
const BUCKETS_PER_OCTAVE: u64 = 4;

/// Half a millisecond or so, and a power of two: what is below counts as this.
const FIRST_BUCKET_US: u64 = 512;

/// What became of the requests of one level of priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Requests that were sent on to the upstream.
    pub passed: u32,
    /// Requests that their own bucket refused.
    pub refused: u32,
    /// Requests that were shed.
    pub shed: u32,
    /// Of all of these, what `min_share` keeps from being shed, in thousandths of a request.
    pub kept_milli: u64,
}

/// Times to response headers, counted in buckets that are a fifth to a quarter apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    buckets: [u32; LATENCY_BUCKETS],
}

/// What was seen during some time. All of it adds up, over workers and over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests by their tier's priority.
    pub levels: [Level; LEVELS],
    /// Responses: the upstream's own, and Envoy's where the upstream gave none.
    pub answered: u32,
    /// Those of them that are server errors.
    pub errors: u32,
    /// Those of these that came no later than an answer may.
    pub prompt: u32,
    /// And those of these that came sooner than work takes, so that the upstream has not worked on them.
    pub at_once: u32,
    /// Times to response headers, but of errors that came at once; and of clients that gave up, where that was later than
    /// an answer may be.
    pub latency: Latency,
    /// Requests in flight, times the microseconds that they were so.
    pub in_flight_us: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: [0; LATENCY_BUCKETS] }
    }
}

impl Latency {
    /// Counts one.
    pub fn add(&mut self, us: u64) {
        let us = us.max(FIRST_BUCKET_US);
        // The octave, and which quarter of it: the two bits below the highest.
        let octave = u64::from(us.ilog2() - FIRST_BUCKET_US.ilog2());
        let quarter = us >> (us.ilog2() - 2) & 3;
        let index = usize::try_from(octave * BUCKETS_PER_OCTAVE + quarter).unwrap_or(LATENCY_BUCKETS);
        if let Some(bucket) = self.buckets.get_mut(index.min(LATENCY_BUCKETS - 1)) {
            *bucket = bucket.saturating_add(1);
        }
    }

    /// How many there are in each bucket.
    pub(super) fn buckets(&self) -> &[u32] {
        &self.buckets
    }

    pub(super) fn buckets_mut(&mut self) -> &mut [u32] {
        &mut self.buckets
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| u64::from(*bucket)).sum()
    }

    /// The time that a share of `quantile` (0 to 1) of all did not exceed, in microseconds, within a tenth or so; `None`
    /// where there is none.
    pub fn quantile_us(&self, quantile: f64) -> Option<u64> {
        let wanted = quantile * self.count() as f64;
        let mut below = 0.0;
        for (index, bucket) in (0_u64..).zip(self.buckets).filter(|(_, bucket)| *bucket > 0) {
            let within = (wanted - below) / f64::from(bucket);
            if within <= 1.0 {
                let octave_us = FIRST_BUCKET_US << (index / BUCKETS_PER_OCTAVE);
                let quarters = (index % BUCKETS_PER_OCTAVE) as f64 + within.max(0.0);
                return Some((octave_us as f64 * (1.0 + quarters / BUCKETS_PER_OCTAVE as f64)) as u64);
            }
            below += f64::from(bucket);
        }
        None
    }

    fn merge(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket = bucket.saturating_add(more);
        }
    }
}

impl Level {
    /// All that came in.
    pub fn offered(&self) -> u64 {
        u64::from(self.passed) + u64::from(self.refused) + u64::from(self.shed)
    }

    fn merge(&mut self, other: &Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.refused = self.refused.saturating_add(other.refused);
        self.shed = self.shed.saturating_add(other.shed);
        self.kept_milli = self.kept_milli.saturating_add(other.kept_milli);
    }
}

impl Counts {
    /// Adds what was seen elsewhere, or at another time.
    pub fn merge(&mut self, other: &Self) {
        for (level, more) in self.levels.iter_mut().zip(&other.levels) {
            level.merge(more);
        }
        self.answered = self.answered.saturating_add(other.answered);
        self.errors = self.errors.saturating_add(other.errors);
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.at_once = self.at_once.saturating_add(other.at_once);
        self.latency.merge(&other.latency);
        self.in_flight_us = self.in_flight_us.saturating_add(other.in_flight_us);
    }

    /// Requests that were sent on to the upstream.
    pub fn passed(&self) -> u64 {
        self.levels.iter().map(|level| u64::from(level.passed)).sum()
    }

    /// Responses that are no server errors.
    pub fn good(&self) -> u32 {
        self.answered.saturating_sub(self.errors)
    }

    /// Responses that took the time that work takes and no longer than they may, well or not.
    pub fn worked(&self) -> u32 {
        self.good().saturating_add(self.prompt.saturating_sub(self.at_once))
    }

    /// Requests that came to an end, whichever.
    pub fn ended(&self) -> u64 {
        self.latency.count() + u64::from(self.at_once)
    }

    /// The share of requests that the upstream refused at once, among those that came to an end; 0 where there are none.
    pub fn refused_ratio(&self) -> f64 {
        f64::from(self.at_once) / self.ended().max(1) as f64
    }

    /// The share of server errors among responses; 0 where there are none.
    pub fn error_ratio(&self) -> f64 {
        f64::from(self.errors) / f64::from(self.answered.max(1))
    }
}

/// The last moments, in slots of equal length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// What was seen, the oldest first.
    slots: VecDeque<Counts>,
    seconds: u32,
    size: usize,
    slot_us: u64,
}

/// Slots of a window: as many as there are half seconds in it, within these bounds.
const LEAST_SLOTS: u32 = 20;
const MOST_SLOTS: u32 = 120;

impl Window {
    /// An empty window of that many seconds.
    pub fn new(seconds: u32) -> Self {
        let size = seconds.saturating_mul(2).clamp(LEAST_SLOTS, MOST_SLOTS);
        let slot_us = u64::from(seconds) * 1_000_000 / u64::from(size);
        Self { slots: VecDeque::new(), seconds, size: size as usize, slot_us }
    }

    /// How long it is when it is full, in seconds.
    pub fn seconds(&self) -> u32 {
        self.seconds
    }

    /// How many slots it has then.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How long one slot is, in microseconds.
    pub fn slot_us(&self) -> u64 {
        self.slot_us
    }

    /// Takes in what was seen in one slot's time; the oldest goes.
    pub fn push(&mut self, counts: Counts) {
        if self.slots.len() >= self.size {
            self.slots.pop_front();
        }
        self.slots.push_back(counts);
    }

    /// The slots, the oldest first.
    pub fn slots(&self) -> impl DoubleEndedIterator<Item = &Counts> + ExactSizeIterator {
        self.slots.iter()
    }

    /// What the newest `slots` saw together.
    pub fn newest(&self, slots: usize) -> Counts {
        let mut sum = Counts::default();
        self.slots.iter().rev().take(slots).for_each(|counts| sum.merge(counts));
        sum
    }

    /// What all of it saw together.
    pub fn total(&self) -> Counts {
        self.newest(self.size)
    }
}
