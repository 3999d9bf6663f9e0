//! What every worker must know at its next request: health, and which documents are in force.
//!
//! One small record in shared data. A change is one compare-and-swap, so that two changes at once cannot undo
//! each other, and is announced once it is there: every worker compares the count of announcements at every
//! request, which is cheap, and reads the record when it differs.

use crate::health::Health;
use crate::store::{Contended, SharedData, record_key, update};

/// The record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Which limits hold.
    pub health: Health,
    /// Counts the documents that were published; 0 while there are none.
    pub documents: u32,
}

impl Control {
    /// The record as it stands under `key`; the default where it was never written.
    pub fn read(data: &impl SharedData, key: &str) -> Self {
        let stored = data.get(key);
        stored.and_then(|(bytes, _)| Self::decode(&bytes)).unwrap_or_default()
    }

    /// Changes the record under `key`; returns what it was before.
    pub fn change(
        data: &impl SharedData,
        key: &str,
        change: impl Fn(Self) -> Self,
    ) -> Result<Self, Contended> {
        let updated = update(data, key, |stored, _| {
            let previous = stored.and_then(Self::decode).unwrap_or_default();
            let next = change(previous);
            (previous, (next != previous).then(|| next.encode()))
        })?;
        data.announce_change();
        Ok(updated.value)
    }

    /// The record's key.
    pub fn key(namespace: &str) -> String {
        record_key(namespace, "control")
    }

    fn encode(self) -> [u8; 5] {
        let [a, b, c, d] = self.documents.to_le_bytes();
        [(self.health == Health::Degraded).into(), a, b, c, d]
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (health, documents) = bytes.split_first()?;
        Some(Self {
            health: if *health == 0 { Health::Normal } else { Health::Degraded },
            documents: u32::from_le_bytes(documents.try_into().ok()?),
        })
    }
}
