//! Documents that are fetched again and again: who fetches, what is published, what others take over.
//!
//! One worker at a time fetches for all, by a lease in shared data. What it fetched is checked together with the
//! plugin configuration and published in shared data, keys as hashes; every worker takes it over at its next request,
//! so no two workers apply different limits. A document that cannot be fetched or is wrong does not hold up the other
//! one, and is complained about once; the last valid one stays in force, if it fits the other.
//!
//! In reading order: [`schedule`] (who fetches when), [`fetched_text`] (a document until it is parsed),
//! [`publication`] (from texts to what is in force, in slices), [`published`] (the record of what is in force),
//! [`key_table`] (the keys of a published document).

mod fetched_text;
mod key_table;
mod publication;
mod published;
mod schedule;

use std::hash::{DefaultHasher, Hasher};

pub use key_table::{KeyTable, Outdated, TableEntry};
pub use publication::{Finished, Publication, PublicationOutcome};
pub use published::{Fingerprint, Published, SourceRecords};
pub use schedule::{claim_fetch, release_fetch};

/// Longest document that is not wrong, in bytes. One byte more is read of a longer one.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// The result of a fetch: for each requested document, its text, or the reason why there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The tier document.
    pub tiers: Option<Result<Vec<u8>, String>>,
    /// The key document.
    pub api_keys: Option<Result<Vec<u8>, String>>,
}

/// One value for the tier document and one for the key document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerDocument<T> {
    pub tiers: T,
    pub keys: T,
}

/// Why a fetched document did not come into force, in words: the field, what was found, what was wanted.
#[derive(Debug)]
enum DocumentFailure {
    /// No document came.
    Unreachable(String),
    /// The text with this fingerprint is wrong; without a reason if that was found before.
    Wrong(Fingerprint, Option<String>),
}

/// Never zero: zero means none.
fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    parts.iter().for_each(|part| hasher.write(part));
    hasher.finish() | 1
}
