//! What is in force of the documents of one source: one record in shared data, changed in one step.

use std::time::Duration;

use super::PerDocument;
use super::key_table::KeyTable;
use crate::codec::{Reader, Writer};
use crate::config::{ConfigSource, Documents, KeySummary, NamedTier};
use crate::limit::Limit;
use crate::record_key::record_key;
use crate::store::{Contended, SharedData, update};
use crate::tier::Tier;

/// Fingerprint of a document.
pub type Fingerprint = u64;

/// Changes with the form of a record: what an earlier version of the filter left in shared data is not read.
const FORMAT: u8 = 2;

/// The record of the documents in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// The highest number that was ever given to a publication, finished or not.
    pub last_number: u32,
    /// The tier document in force.
    pub tiers: Option<PublishedTiers>,
    /// The key document in force.
    pub keys: Option<PublishedKeys>,
    /// Whether it has been applied or rejected at least once.
    pub is_settled: PerDocument<bool>,
}

/// The tier document in force.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedTiers {
    /// Of its text.
    pub fingerprint: Fingerprint,
    /// What it says.
    pub tiers: Vec<Tier>,
}

/// The key document in force.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedKeys {
    /// Of its text.
    pub fingerprint: Fingerprint,
    /// Where its entries are.
    pub table: KeyTable,
    /// What it says about tiers.
    pub summary: KeySummary,
}

/// Names the records of one source in shared data.
///
/// Where a delivery changed the source, requests that began under the old configuration keep that one alive for a
/// while, and its documents must not be taken for the new one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRecords {
    /// What their names begin with.
    pub prefix: String,
    /// How often the documents are fetched.
    pub period: Duration,
    /// Whether the source has it.
    pub has: PerDocument<bool>,
}

impl SourceRecords {
    /// The records of a source.
    pub fn new(namespace: &str, source: &ConfigSource) -> Self {
        let part = |path: &Option<String>| path.clone().unwrap_or_default();
        let parts = [&source.cluster, &part(&source.tiers), &part(&source.api_keys)];
        let id = super::fingerprint(&[&[FORMAT], parts.map(String::as_str).join("\0").as_bytes()]);
        Self {
            prefix: record_key(namespace, &format!("documents/{id:x}/")),
            period: Duration::from_secs(source.ttl_seconds.into()),
            has: PerDocument { tiers: source.tiers.is_some(), keys: source.api_keys.is_some() },
        }
    }

    /// Whether no other worker has missed the documents yet.
    pub fn first_to_miss(&self, data: &impl SharedData) -> bool {
        let missed = update(data, &format!("{}missed", self.prefix), |stored, _| {
            (stored.is_none(), stored.is_none().then_some([1_u8]))
        });
        missed.is_ok_and(|updated| updated.value)
    }

    pub(super) fn schedule(&self) -> String {
        format!("{}schedule", self.prefix)
    }

    fn published(&self) -> String {
        format!("{}published", self.prefix)
    }
}

impl Published {
    /// What is in force.
    pub fn read(data: &impl SharedData, records: &SourceRecords) -> Self {
        let stored = data.get(&records.published());
        stored.and_then(|(bytes, _)| Self::decode(&bytes)).unwrap_or_default()
    }

    /// Changes the record, where `change` gives another; returns what it gave.
    pub fn change(
        data: &impl SharedData,
        records: &SourceRecords,
        mut change: impl FnMut(Self) -> Option<Self>,
    ) -> Result<Option<Self>, Contended> {
        update(data, &records.published(), |stored, _| {
            let next = change(stored.and_then(Self::decode).unwrap_or_default());
            let bytes = next.as_ref().map(Self::encode);
            (next, bytes)
        })
        .map(|updated| updated.value)
    }

    /// Whether a document has neither been applied nor rejected yet.
    pub fn is_missing(&self, records: &SourceRecords) -> bool {
        let SourceRecords { has, .. } = records;
        has.tiers && !self.is_settled.tiers || has.keys && !self.is_settled.keys
    }

    pub(super) fn fingerprints(&self) -> PerDocument<Option<Fingerprint>> {
        let tiers = self.tiers.as_ref().map(|tiers| tiers.fingerprint);
        PerDocument { tiers, keys: self.keys.as_ref().map(|keys| keys.fingerprint) }
    }

    /// The documents, as a configuration is made of them.
    pub fn documents(&self) -> Documents {
        Documents {
            tiers: self.tiers.as_ref().map(|published| published.tiers.clone()),
            keys: self.keys.as_ref().map(|published| published.summary.clone()),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut record = Writer::default();
        record.u32(self.last_number).bool(self.is_settled.tiers).bool(self.is_settled.keys);
        record.option(self.tiers.as_ref(), |record, published| {
            record.u64(published.fingerprint).list(&published.tiers, write_tier);
        });
        record.option(self.keys.as_ref(), |record, PublishedKeys { fingerprint, table, summary }| {
            record.u64(*fingerprint);
            record.u32(table.number).bool(table.is_second).u32(table.records).u64(table.seed);
            record.u32(summary.keys).list(&summary.tiers, |record, tier| {
                record.text(&tier.name).u32(tier.number);
            });
        });
        record.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = Reader::new(bytes);
        let published = Self {
            last_number: record.u32()?,
            is_settled: PerDocument { tiers: record.bool()?, keys: record.bool()? },
            tiers: record.option(|record| {
                Some(PublishedTiers { fingerprint: record.u64()?, tiers: record.list(read_tier)? })
            })?,
            keys: record.option(|record| {
                Some(PublishedKeys {
                    fingerprint: record.u64()?,
                    table: KeyTable {
                        number: record.u32()?,
                        is_second: record.bool()?,
                        records: record.u32()?,
                        seed: record.u64()?,
                    },
                    summary: KeySummary { keys: record.u32()?, tiers: record.list(read_named_tier)? },
                })
            })?,
        };
        record.is_at_end().then_some(published)
    }
}

fn read_named_tier(record: &mut Reader<'_>) -> Option<NamedTier> {
    Some(NamedTier { name: record.text()?.to_owned(), number: record.u32()? })
}

fn write_tier(record: &mut Writer, tier: &Tier) {
    record.text(&tier.name);
    for limit in [tier.normal, tier.degraded] {
        record.u32(limit.capacity()).u64(limit.refill_micro_per_sec());
    }
    record.u32(tier.ttl_seconds).bool(tier.unlimited).u8(tier.priority).u16(tier.min_share_milli);
}

fn read_tier(record: &mut Reader<'_>) -> Option<Tier> {
    Some(Tier {
        name: record.text()?.to_owned(),
        normal: Limit::new(record.u32()?, record.u64()?)?,
        degraded: Limit::new(record.u32()?, record.u64()?)?,
        ttl_seconds: record.u32()?,
        unlimited: record.bool()?,
        priority: record.u8()?,
        min_share_milli: record.u16()?,
    })
}
