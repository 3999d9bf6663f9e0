//! Buckets that are known to be empty: their owners are rejected without a command to Redis, until a token is due.
//!
//! Keeps a fixed number of entries, each in the slot that the hash of its bucket gives. A newcomer takes over the slot,
//! which costs the other caller nothing but a command to Redis.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::time::StoreTime;

/// Entries kept; a power of two. 32 bytes each.
const SLOTS: usize = 4096;

/// Longest time that a caller is rejected without a command to Redis.
///
/// If an operator deletes a bucket in Redis, its caller is admitted after this time at the latest.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Hash of the bucket's owner; 0 for no entry.
    owner: u64,
    /// When the next token is due, on this Envoy's clock.
    due: StoreTime,
    /// When to send to Redis again; `due` or earlier.
    recheck_at: StoreTime,
    /// The number of the request that is to do so.
    rechecked_by: Option<u32>,
}

/// The entries of one worker.
#[derive(Debug)]
pub struct DenyCache {
    /// Mixed into every hash, so that no caller can aim at another caller's slot.
    seed: u64,
    entries: Vec<Entry>,
}

impl DenyCache {
    /// No entries. `seed` is random; nothing else is, so a test that sets it is repeatable.
    pub fn new(seed: u64) -> Self {
        Self { seed, entries: vec![Entry::default(); SLOTS] }
    }

    /// How long the caller has to wait for the next token; `None` where Redis is to decide. `request` numbers the
    /// request.
    ///
    /// At a recheck, one request gets `None`, also when it comes here again; all others are rejected until its reply
    /// has arrived.
    pub fn wait(&mut self, owner: &impl Hash, request: u32, now: StoreTime) -> Option<Duration> {
        let entry = self.entry(owner)?;
        if entry.due <= now || entry.rechecked_by == Some(request) {
            return None;
        }
        if now < entry.recheck_at {
            return Some(entry.due.since(now));
        }
        entry.recheck_at = now.after(RECHECK_INTERVAL);
        entry.rechecked_by = Some(request);
        None
    }

    /// Notes that by a command sent at `sent_at`, a token is due after `wait`.
    ///
    /// Redis read its clock after `sent_at`, so the token is really due a little later than noted. The next command
    /// may be sent too early, but no caller is rejected too long.
    pub fn note(&mut self, owner: &impl Hash, sent_at: StoreTime, wait: Duration) {
        let hash = self.hash(owner);
        if let Some(entry) = self.entries.get_mut(slot(hash)) {
            let due = sent_at.after(wait);
            let recheck_at = due.min(sent_at.after(RECHECK_INTERVAL));
            *entry = Entry { owner: hash, due, recheck_at, rechecked_by: None };
        }
    }

    /// Leaves a recheck to the next request, if this one was to do it.
    pub fn release(&mut self, owner: &impl Hash, request: u32) {
        if let Some(entry) = self.entry(owner).filter(|entry| entry.rechecked_by == Some(request)) {
            (entry.recheck_at, entry.rechecked_by) = (StoreTime::default(), None);
        }
    }

    /// Forgets a caller: it has been admitted, or Redis has not replied.
    pub fn forget(&mut self, owner: &impl Hash) {
        if let Some(entry) = self.entry(owner) {
            *entry = Entry::default();
        }
    }

    /// Forgets all callers: after a change of limits nothing is known.
    pub fn forget_all(&mut self) {
        self.entries.fill(Entry::default());
    }

    fn entry(&mut self, owner: &impl Hash) -> Option<&mut Entry> {
        let hash = self.hash(owner);
        self.entries.get_mut(slot(hash)).filter(|entry| entry.owner == hash)
    }

    fn hash(&self, owner: &impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        owner.hash(&mut hasher);
        hasher.finish().max(1)
    }
}

fn slot(hash: u64) -> usize {
    // The remainder is below `SLOTS`.
    (hash % SLOTS as u64) as usize
}
