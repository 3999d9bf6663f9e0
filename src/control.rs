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
    /// Counts the changes of health, so that what was read in Redis before one cannot undo it.
    pub health_changes: u32,
    /// What the worker that last had news of Redis had to tell.
    pub redis: Redis,
}

/// Whether decisions are Redis'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redis {
    /// Nobody has heard of it yet.
    #[default]
    Unknown,
    /// It answers.
    Connected,
    /// It does not.
    Disconnected,
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

    /// The same with another health.
    pub fn with_health(self, health: Health) -> Self {
        Self { health, health_changes: self.health_changes.wrapping_add(1), ..self }
    }

    fn encode(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        let (flags, counts) = bytes.split_at_mut(2);
        flags.copy_from_slice(&[self.health as u8, self.redis as u8]);
        let (documents, health_changes) = counts.split_at_mut(4);
        documents.copy_from_slice(&self.documents.to_le_bytes());
        health_changes.copy_from_slice(&self.health_changes.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, counts) = bytes.split_at_checked(2)?;
        let (documents, health_changes) = counts.split_at_checked(4)?;
        let [health, redis] = flags else { return None };
        Some(Self {
            health: if *health == 0 { Health::Normal } else { Health::Degraded },
            redis: match redis {
                0 => Redis::Unknown,
                1 => Redis::Connected,
                _ => Redis::Disconnected,
            },
            documents: u32::from_le_bytes(documents.try_into().ok()?),
            health_changes: u32::from_le_bytes(health_changes.try_into().ok()?),
        })
    }
}
