//! What every worker must know at its next request: health, and which documents are in force.
//!
//! One small record in shared data. A change is one compare-and-swap, so that two changes at once cannot undo
//! each other, and is announced once it is there: every worker compares the count of announcements at every
//! request, which is cheap, and reads the record when it differs.

use crate::codec::{Reader, Writer};
use crate::health::{Health, HealthOverride};
use crate::record_key::record_key;
use crate::store::{Contended, SharedData, update};

/// The control record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The health that an operator has set.
    pub health_override: HealthOverride,
    /// The measured health; `NORMAL` if it is not measured.
    pub measured: Health,
    /// Grows when other documents come into force, and when a document is applied or rejected for the first time.
    pub documents_version: u32,
    /// Counts the changes of the override, so that what was read in Redis before cannot undo them.
    pub health_changes: u32,
    pub redis: RedisStatus,
}

/// Whether Redis answers, as a worker noted last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisStatus {
    /// No worker has heard from Redis yet.
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

    /// Changes the record under `key`; returns what it was before, and what it is now.
    pub fn change(
        data: &impl SharedData,
        key: &str,
        change: impl Fn(Self) -> Self,
    ) -> Result<(Self, Self), Contended> {
        let updated = update(data, key, |stored, _| {
            let previous = stored.and_then(Self::decode).unwrap_or_default();
            let next = change(previous);
            ((previous, next), (next != previous).then(|| next.encode()))
        })?;
        data.announce_change();
        Ok(updated.value)
    }

    pub fn key(namespace: &str) -> String {
        record_key(namespace, "control")
    }

    /// Which limits hold: what an operator has set comes before what was measured.
    pub fn health(self) -> Health {
        self.health_override.health().unwrap_or(self.measured)
    }

    /// The same with what an operator has set now.
    pub fn with_override(self, health_override: HealthOverride) -> Self {
        Self { health_override, health_changes: self.health_changes.wrapping_add(1), ..self }
    }

    fn encode(self) -> Vec<u8> {
        let mut record = Writer::default();
        record.u8(self.health_override as u8 | (self.measured as u8) << 4).u8(self.redis as u8);
        record.u32(self.documents_version).u32(self.health_changes);
        record.into_bytes()
    }

    /// Decodes a record; `None` if the bytes are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = Reader::new(bytes);
        let (health, redis) = (record.u8()?, record.u8()?);
        let control = Self {
            health_override: match health & 0x0f {
                0 => HealthOverride::Auto,
                1 => HealthOverride::Normal,
                _ => HealthOverride::Degraded,
            },
            measured: if health >> 4 == 0 { Health::Normal } else { Health::Degraded },
            redis: match redis {
                0 => RedisStatus::Unknown,
                1 => RedisStatus::Connected,
                _ => RedisStatus::Disconnected,
            },
            documents_version: record.u32()?,
            health_changes: record.u32()?,
        };
        record.is_at_end().then_some(control)
    }
}
