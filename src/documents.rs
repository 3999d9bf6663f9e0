//! Documents that are fetched again and again: who fetches, what is published, what others take over.
//!
//! One worker at a time fetches for all, by a lease in shared data. What it fetched is checked together with
//! the plugin configuration and then published in shared data, keys as hashes; every worker takes it over on
//! its next request, so no two workers apply different limits. A document that cannot be fetched or is wrong
//! changes nothing, and is complained about once.

use crate::config::{Documents, KeyEntry, parse_api_keys, parse_tiers};
use crate::json::Document;
use crate::store::{Contended, SharedData, record_key, update};

/// Longest document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// How soon to try again after a failure, in microseconds, where that is sooner than usual.
const RETRY_US: u64 = 1_000_000;

/// Documents as text: what is published in shared data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// The tier document.
    pub tiers: Option<Vec<u8>>,
    /// The key document.
    pub api_keys: Option<Vec<u8>>,
}

impl Texts {
    /// Parses and checks each document by itself.
    pub fn parse(&self) -> Result<Documents, String> {
        let parse =
            |text: &[u8], name: &str| Document::parse(text).map_err(|error| format!("{name}: {error}"));
        Ok(Documents {
            tiers: match &self.tiers {
                Some(text) => Some(parse_tiers(&parse(text, "tiers")?.root("tiers"))?),
                None => None,
            },
            api_keys: match &self.api_keys {
                Some(text) => Some(parse_api_keys(&parse(text, "api_keys")?.root("api_keys"))?),
                None => None,
            },
        })
    }

    /// These texts with every key written as its hash.
    pub fn without_keys(self, documents: &Documents) -> Self {
        Self { tiers: self.tiers, api_keys: documents.api_keys.as_deref().map(hashed_keys) }
    }

    /// The published texts of `namespace`.
    pub fn published(data: &impl SharedData, namespace: &str) -> Option<Self> {
        let (bytes, _) = data.get(&texts_key(namespace))?;
        let (flags_and_length, rest) = bytes.split_first_chunk::<5>()?;
        let [flags, length @ ..] = *flags_and_length;
        let (tiers, api_keys) = rest.split_at_checked(u32::from_le_bytes(length) as usize)?;
        Some(Self {
            tiers: (flags & 1 != 0).then(|| tiers.to_vec()),
            api_keys: (flags & 2 != 0).then(|| api_keys.to_vec()),
        })
    }

    /// Publishes these texts; false where they are published already.
    pub fn publish(&self, data: &impl SharedData, namespace: &str) -> Result<bool, Contended> {
        let bytes = self.encode();
        update(data, &texts_key(namespace), |stored, _| {
            let differs = stored != Some(bytes.as_slice());
            (differs, differs.then_some(&bytes))
        })
        .map(|updated| updated.value)
    }

    fn encode(&self) -> Vec<u8> {
        let tiers = self.tiers.as_deref().unwrap_or_default();
        let api_keys = self.api_keys.as_deref().unwrap_or_default();
        let mut bytes = vec![u8::from(self.tiers.is_some()) | u8::from(self.api_keys.is_some()) << 1];
        bytes.extend(u32::try_from(tiers.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(tiers);
        bytes.extend(api_keys);
        bytes
    }
}

/// When to fetch next, and what was complained about last: shared by all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Schedule {
    due_at_us: u64,
    failures: u32,
    complaint: u64,
}

/// Claims the next fetch for this worker, if one is due; no other worker gets it for `ttl_seconds`.
pub fn claim_fetch(data: &impl SharedData, namespace: &str, ttl_seconds: u32) -> bool {
    let claimed = update(data, &schedule_key(namespace), |stored, now_us| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        // A due time further off than the period was set when the period was longer.
        let due = now_us >= schedule.due_at_us || schedule.due_at_us > now_us + seconds_to_us(ttl_seconds);
        let next = Schedule { due_at_us: now_us.saturating_add(seconds_to_us(ttl_seconds)), ..schedule };
        (due, due.then(|| next.encode()))
    });
    claimed.is_ok_and(|updated| updated.value)
}

/// Notes that what was fetched is in force: the next complaint is news again.
pub fn note_success(data: &impl SharedData, namespace: &str) {
    // Where even this write loses every race, a complaint is left out or made twice.
    let _ = update(data, &schedule_key(namespace), |stored, _| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        let next = Schedule { failures: 0, complaint: 0, ..schedule };
        ((), (next != schedule).then(|| next.encode()))
    });
}

/// Notes a failure and says whether it is worth a complaint: not when it is the same as last time.
///
/// Documents that cannot be reached are tried again soon, and the first such failure is passed over in
/// silence: while Envoy starts, the first fetch may well come before the listener that answers it.
pub fn note_failure(data: &impl SharedData, namespace: &str, failure: &Failure) -> bool {
    let noted = update(data, &schedule_key(namespace), |stored, now_us| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        let failures = schedule.failures.saturating_add(1);
        let (worth_it, soon_us) = match failure {
            Failure::Unreachable(_) => (failures > 1, now_us.saturating_add(RETRY_US)),
            Failure::Wrong(_) => (true, u64::MAX),
        };
        let complaint = if worth_it { failure.fingerprint() } else { schedule.complaint };
        let next = Schedule { due_at_us: schedule.due_at_us.min(soon_us), failures, complaint };
        (complaint != schedule.complaint, Some(next.encode()))
    });
    noted.is_ok_and(|updated| updated.value)
}

/// Why fetched documents did not come into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No document: what came instead.
    Unreachable(String),
    /// A document that does not parse or does not fit: the field, what was found, what was wanted.
    Wrong(String),
}

impl Failure {
    /// The reason in words.
    pub fn reason(&self) -> &str {
        match self {
            Failure::Unreachable(reason) | Failure::Wrong(reason) => reason,
        }
    }

    fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hasher};
        let mut hasher = DefaultHasher::new();
        hasher.write(self.reason().as_bytes());
        hasher.finish().max(1)
    }
}

impl Schedule {
    fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(20);
        bytes.extend(self.due_at_us.to_le_bytes());
        bytes.extend(self.failures.to_le_bytes());
        bytes.extend(self.complaint.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (due_at_us, rest) = bytes.split_first_chunk()?;
        let (failures, complaint) = rest.split_first_chunk()?;
        Some(Self {
            due_at_us: u64::from_le_bytes(*due_at_us),
            failures: u32::from_le_bytes(*failures),
            complaint: u64::from_le_bytes(complaint.try_into().ok()?),
        })
    }
}

/// A key document that says the same as `entries`. Names need no escapes: tiers and ids are of fixed alphabets.
fn hashed_keys(entries: &[KeyEntry]) -> Vec<u8> {
    let member = |entry: &KeyEntry| {
        let (key, tier, id) = (entry.key.to_hex(), &entry.tier, &entry.bucket);
        format!("\"sha256:{key}\":{{\"tier\":\"{tier}\",\"id\":\"{id}\"}}")
    };
    let members: Vec<String> = entries.iter().map(member).collect();
    format!("{{{}}}", members.join(",")).into_bytes()
}

fn texts_key(namespace: &str) -> String {
    record_key(namespace, "documents")
}

fn schedule_key(namespace: &str) -> String {
    record_key(namespace, "documents_schedule")
}

fn seconds_to_us(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000
}
