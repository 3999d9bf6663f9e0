//! The keys of a published document: one table in shared data for all workers, looked up without parsing.
//!
//! A table is a fixed number of records, and a key's hash says in which of them its entry is. There are two tables for
//! each source, and the next document is written to the one that is not in force. Shared data has no delete, so this
//! bounds what a source can ever take; what is left of an older document has another number.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::codec::{Reader, Writer};
use crate::config::KeyEntry;
use crate::identity::KeyHash;
use crate::store::{Contended, SharedData, update};

/// Bytes of a document for each record of its table: so a record has some five to fifteen entries, or fifty of the
/// shortest that there can be.
const TEXT_BYTES_PER_RECORD: usize = 512;

/// A table of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTable {
    /// Numbers the document that is in it.
    pub number: u32,
    /// Which of the two tables it is.
    pub is_second: bool,
    /// How many records it has.
    pub records: u32,
    /// Decides which entry is in which record. It is random, so that no document can aim at one.
    pub seed: u64,
}

/// An entry as it is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Which of the tiers that the document names.
    pub tier: u16,
    /// The bucket's name, where it is not the start of the key's hash.
    pub id: Option<String>,
}

/// What became of an entry that was to be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is there.
    New,
    /// Its key was there already.
    Duplicate,
    /// A later document is written to the table.
    Outdated,
}

/// A later document has been written to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outdated;

impl KeyTable {
    /// The table for a document of so many bytes.
    pub fn for_document(bytes: usize, number: u32, is_second: bool, seed: u64) -> Self {
        let records = (bytes / TEXT_BYTES_PER_RECORD).next_power_of_two();
        Self { number, is_second, records: u32::try_from(records).unwrap_or(1), seed }
    }

    /// Inserts an entry; `prefix` begins the names of the source's records.
    pub fn insert(
        self,
        data: &impl SharedData,
        prefix: &str,
        entry: &KeyEntry,
        tier: u16,
    ) -> Result<Inserted, Contended> {
        let hash = entry.key.bytes();
        update(data, &self.record(prefix, entry.key), |stored, _| {
            let mut reader = Reader::new(stored.unwrap_or_default());
            let number = reader.u32().unwrap_or_default();
            if number > self.number {
                return (Inserted::Outdated, None);
            }
            let bytes = match stored {
                Some(bytes) if number == self.number => {
                    while let Some((known, _, _)) = next_entry(&mut reader) {
                        if known == hash {
                            return (Inserted::Duplicate, None);
                        }
                    }
                    bytes.to_vec()
                }
                _ => self.number.to_le_bytes().to_vec(),
            };
            let mut record = Writer::after(bytes);
            record.array(hash).u16(tier).text(entry.id.as_deref().unwrap_or_default());
            (Inserted::New, Some(record.into_bytes()))
        })
        .map(|updated| updated.value)
    }

    /// The entry of a key.
    pub fn find(
        self,
        data: &impl SharedData,
        prefix: &str,
        key: KeyHash,
    ) -> Result<Option<TableEntry>, Outdated> {
        let Some((bytes, _)) = data.get(&self.record(prefix, key)) else {
            return Ok(None);
        };
        let mut reader = Reader::new(&bytes);
        let number = reader.u32().unwrap_or_default();
        if number != self.number {
            // What an earlier document has left is none of this one's.
            return if number > self.number { Err(Outdated) } else { Ok(None) };
        }
        let hash = key.bytes();
        while let Some((known, tier, id)) = next_entry(&mut reader) {
            if known == hash {
                let id = (!id.is_empty()).then(|| id.to_owned());
                return Ok(Some(TableEntry { tier, id }));
            }
        }
        Ok(None)
    }

    fn record(self, prefix: &str, key: KeyHash) -> String {
        let mut hasher = DefaultHasher::new();
        (self.seed, key.bytes()).hash(&mut hasher);
        let record = hasher.finish() % u64::from(self.records.max(1));
        let mut name = String::with_capacity(prefix.len() + 12);
        name.push_str(prefix);
        name.push_str(if self.is_second { "k2/" } else { "k1/" });
        // Writing to a string cannot fail.
        let _ = write!(name, "{record:x}");
        name
    }
}

fn next_entry<'a>(reader: &mut Reader<'a>) -> Option<([u8; 32], u16, &'a str)> {
    Some((reader.array()?, reader.u16()?, reader.text()?))
}
