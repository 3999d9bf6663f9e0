//! Where buckets are kept: Envoy's shared data, or [`redis`].
//!
//! Shared data is one map for all workers of an Envoy process, with compare-and-swap and nothing else: no
//! delete, no expiry, no listing. [`update`] is the only place that writes to it, so the rules for doing it
//! right stand once: read, then look at the clock, decide, and write only if no other worker did.

mod address_table;
mod keyed;
pub mod redis;

pub use address_table::AddressTable;
pub use keyed::take_keyed;

use crate::bucket::Verdict;
use crate::time::StoreTime;

/// How many attempts [`update`] makes.
///
/// Losing a race means that another worker won it, so with W workers on one key it does not happen in practice
/// that a worker loses hundreds of times in a row; the bound is there so that no loop is without one.
const MAX_ATTEMPTS: u32 = 256;

/// Another worker has written since this reader read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict;

/// Every one of `MAX_ATTEMPTS` writes lost its race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contended;

/// A map shared by all workers, and the clock that its buckets live by.
pub trait SharedData {
    /// The value of `key` and its version; `None` where it was never set.
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)>;

    /// Sets `key` if its version is still `version`, or if it was never set and `version` is `None`.
    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict>;

    /// A number that differs after each announced change; `None` if there is none. It is cheaper than `get`, so a
    /// worker reads a record only after a change.
    fn changes(&self) -> Option<u64>;

    /// Makes [`SharedData::changes`] differ for every worker.
    fn announce_change(&self);

    /// The moment on a clock that all workers share and that should not step back.
    fn now(&self) -> StoreTime;
}

/// Shared data in which every write succeeds and changes nothing: shows what an update would decide.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly<'a, D>(pub &'a D);

impl<D: SharedData> SharedData for ReadOnly<'_, D> {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.0.get(key)
    }

    fn compare_and_set(&self, _key: &str, _value: &[u8], _version: Option<u32>) -> Result<(), Conflict> {
        Ok(())
    }

    fn changes(&self) -> Option<u64> {
        self.0.changes()
    }

    fn announce_change(&self) {}

    fn now(&self) -> StoreTime {
        self.0.now()
    }
}

/// The outcome of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Updated<T> {
    /// What the deciding function returned when it was last called.
    pub value: T,
    /// How many races were lost before.
    pub retries: u32,
}

/// Reads `key`, lets `decide` look at the value and the time, and writes what it returns, if anything; again
/// from the start where another worker wrote in between.
///
/// The clock is read after the value: the worker that wrote the value read the clock before, so time never seems to
/// run backwards from one worker to the next, and no elapsed time is counted twice.
pub fn update<T, W: AsRef<[u8]>>(
    data: &impl SharedData,
    key: &str,
    mut decide: impl FnMut(Option<&[u8]>, StoreTime) -> (T, Option<W>),
) -> Result<Updated<T>, Contended> {
    for retries in 0..MAX_ATTEMPTS {
        let stored = data.get(key);
        let (value, version) = match &stored {
            Some((value, version)) => (Some(value.as_slice()), Some(*version)),
            None => (None, None),
        };
        let (result, replacement) = decide(value, data.now());
        let written = match replacement {
            Some(bytes) => data.compare_and_set(key, bytes.as_ref(), version),
            None => Ok(()),
        };
        if written.is_ok() {
            return Ok(Updated { value: result, retries });
        }
    }
    Err(Contended)
}

/// A store's answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What the bucket said.
    pub verdict: Verdict,
    /// When it said so.
    pub at: StoreTime,
    /// Whether another address lost its bucket in the table.
    pub evicted: bool,
}
