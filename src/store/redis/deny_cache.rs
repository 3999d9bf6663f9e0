//! Who is known to be empty: such callers are refused here, and Redis is not asked again until they are due.
//!
//! Keeps a fixed number of records, each in the place that its hash gives; a newcomer takes the place over, which
//! costs the other caller nothing but a question to Redis.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Records kept; a power of two. 24 bytes each.
const PLACES: usize = 4096;

/// Longest time that a caller is refused without asking, in microseconds.
///
/// An operator who deletes a bucket in Redis frees its caller so much later at most, however long the caller
/// would have had to wait.
const ASK_AGAIN_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Hash of the caller who pays; 0 for no record.
    owner: u64,
    /// When the next token is due, on this Envoy's clock.
    due_us: u64,
    /// When to ask Redis again: then, or earlier.
    ask_at_us: u64,
}

/// The records of one worker.
#[derive(Debug)]
pub struct DenyCache {
    /// Mixed into every hash, so that no caller can aim at another caller's place.
    seed: u64,
    records: Vec<Record>,
}

impl DenyCache {
    /// No records. `seed` is random, and the only thing here that is: a test that gives it sees the same again.
    pub fn new(seed: u64) -> Self {
        Self { seed, records: vec![Record::default(); PLACES] }
    }

    /// How long the caller has to wait for the next token, in microseconds; `None` where Redis should be asked.
    ///
    /// Where that is to make sure, it is said once: all others are refused until the answer has come.
    pub fn wait_us(&mut self, owner: &impl Hash, now_us: u64) -> Option<u64> {
        let hash = self.hash(owner);
        let record = self.records.get_mut(place(hash)).filter(|record| record.owner == hash)?;
        let wait_us = record.due_us.checked_sub(now_us).filter(|wait_us| *wait_us > 0)?;
        if now_us < record.ask_at_us {
            return Some(wait_us);
        }
        record.ask_at_us = now_us.saturating_add(ASK_AGAIN_US);
        None
    }

    /// Notes that Redis, asked at `asked_us`, had no token for `wait_us` to come.
    ///
    /// Redis looked at its clock after `asked_us`, so the token is due no earlier than noted here plus what the
    /// question travelled: a caller may be asked about too early, never refused too long.
    pub fn note(&mut self, owner: &impl Hash, asked_us: u64, wait_us: u64) {
        let hash = self.hash(owner);
        if let Some(record) = self.records.get_mut(place(hash)) {
            let due_us = asked_us.saturating_add(wait_us);
            *record =
                Record { owner: hash, due_us, ask_at_us: due_us.min(asked_us.saturating_add(ASK_AGAIN_US)) };
        }
    }

    /// Forgets a caller: it has been admitted, or Redis has not answered.
    pub fn forget(&mut self, owner: &impl Hash) {
        let hash = self.hash(owner);
        if let Some(record) = self.records.get_mut(place(hash)).filter(|record| record.owner == hash) {
            *record = Record::default();
        }
    }

    /// Forgets all callers: after a change of limits nothing is known.
    pub fn forget_all(&mut self) {
        self.records.fill(Record::default());
    }

    fn hash(&self, owner: &impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        owner.hash(&mut hasher);
        hasher.finish().max(1)
    }
}

fn place(hash: u64) -> usize {
    // The remainder is below `PLACES`.
    (hash % PLACES as u64) as usize
}
