//! Documents that are fetched again and again: who fetches, what is published, what others take over.
//!
//! One worker at a time fetches for all, by a lease in shared data. What it fetched is checked together with
//! the plugin configuration and then published in shared data, keys as hashes; every worker takes it over on
//! its next request, so no two workers apply different limits. A document that cannot be fetched or is wrong
//! changes nothing, does not hold up the other one, and is complained about once.

use crate::config::{ConfigSource, Documents, KeyEntry, parse_api_keys, parse_tiers};
use crate::json::Document;
use crate::store::{Contended, SharedData, record_key, update};

/// Longest document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;

/// How soon to try again after a failure, in microseconds, where that is sooner than usual.
const RETRY_US: u64 = 1_000_000;

/// What came of a fetch: for each document that was asked for, its text or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The tier document.
    pub tiers: Option<Result<Vec<u8>, String>>,
    /// The key document.
    pub api_keys: Option<Result<Vec<u8>, String>>,
}

impl Fetched {
    /// What was fetched and is good by itself, with the `last` good text in place of what is not, and what is
    /// wrong with that.
    pub fn good_ones(self, last: Texts) -> (Texts, Option<Failure>) {
        let mut failure = None;
        let mut choose = |fetched: Option<Result<Vec<u8>, String>>, last, document: fn(Vec<u8>) -> Texts| {
            let wrong = match fetched? {
                Ok(text) => match document(text.clone()).parse() {
                    Ok(_) => return Some(text),
                    Err(reason) => Failure::wrong(reason, &document(text)),
                },
                Err(reason) => Failure::unreachable(reason),
            };
            failure = Some(wrong.and(failure.take()));
            last
        };
        let tiers = choose(self.tiers, last.tiers, |text| Texts { tiers: Some(text), api_keys: None });
        let api_keys =
            choose(self.api_keys, last.api_keys, |text| Texts { tiers: None, api_keys: Some(text) });
        (Texts { tiers, api_keys }, failure)
    }
}

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
        let parse = |text: &[u8], name| Document::parse(text).map_err(|error| format!("{name}: {error}"));
        let tiers = |text: &Vec<u8>| parse_tiers(&parse(text, "tiers")?.root("tiers"));
        let api_keys = |text: &Vec<u8>| parse_api_keys(&parse(text, "api_keys")?.root("api_keys"));
        Ok(Documents {
            tiers: self.tiers.as_ref().map(tiers).transpose()?,
            api_keys: self.api_keys.as_ref().map(api_keys).transpose()?,
        })
    }

    /// These texts with every key written as its hash.
    pub fn without_keys(self, documents: &Documents) -> Self {
        Self { tiers: self.tiers, api_keys: documents.api_keys.as_deref().map(hashed_keys) }
    }

    /// The published texts of `namespace`.
    pub fn published(data: &impl SharedData, namespace: &str, source: &ConfigSource) -> Option<Self> {
        let (bytes, _) = data.get(&source_key(namespace, source, "texts"))?;
        let (flags_and_length, rest) = bytes.split_first_chunk::<5>()?;
        let [flags, length @ ..] = *flags_and_length;
        let (tiers, api_keys) = rest.split_at_checked(u32::from_le_bytes(length) as usize)?;
        Some(Self {
            tiers: (flags & 1 != 0).then(|| tiers.to_vec()),
            api_keys: (flags & 2 != 0).then(|| api_keys.to_vec()),
        })
    }

    /// Publishes these texts; false where they are published already.
    pub fn publish(
        &self,
        data: &impl SharedData,
        namespace: &str,
        source: &ConfigSource,
    ) -> Result<bool, Contended> {
        let bytes = self.encode();
        update(data, &source_key(namespace, source, "texts"), |stored, _| {
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

/// Claims the next fetch for this worker, if one is due; no other worker gets it for the source's `ttl_seconds`.
pub fn claim_fetch(data: &impl SharedData, namespace: &str, source: &ConfigSource) -> bool {
    let ttl_us = u64::from(source.ttl_seconds) * 1_000_000;
    let claimed = update(data, &source_key(namespace, source, "schedule"), |stored, now_us| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        // A due time further off than the period was set when the period was longer.
        let due = now_us >= schedule.due_at_us || schedule.due_at_us > now_us + ttl_us;
        let next = Schedule { due_at_us: now_us.saturating_add(ttl_us), ..schedule };
        (due, due.then(|| next.encode()))
    });
    claimed.is_ok_and(|updated| updated.value)
}

/// Notes that what was fetched is in force: the next complaint is news again.
pub fn note_success(data: &impl SharedData, namespace: &str, source: &ConfigSource) {
    // Where even this write loses every race, a complaint is left out or made twice.
    let _ = update(data, &source_key(namespace, source, "schedule"), |stored, _| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        let next = Schedule { failures: 0, complaint: 0, ..schedule };
        ((), (next != schedule).then(|| next.encode()))
    });
}

/// Notes a failure and says whether it is worth a complaint: not when it is the same as last time.
///
/// Documents that cannot be reached are tried again soon, and the first such failure is passed over in
/// silence: while Envoy starts, the first fetch may well come before the listener that answers it.
pub fn note_failure(
    data: &impl SharedData,
    namespace: &str,
    source: &ConfigSource,
    failure: &Failure,
) -> bool {
    let noted = update(data, &source_key(namespace, source, "schedule"), |stored, now_us| {
        let schedule = stored.and_then(Schedule::decode).unwrap_or_default();
        let failures = schedule.failures.saturating_add(1);
        let (worth_it, soon_us) = match failure.kind {
            FailureKind::Unreachable => (failures > 1, now_us.saturating_add(RETRY_US)),
            FailureKind::Wrong => (true, u64::MAX),
        };
        let complaint = if worth_it { failure.fingerprint } else { schedule.complaint };
        let next = Schedule { due_at_us: schedule.due_at_us.min(soon_us), failures, complaint };
        (complaint != schedule.complaint, Some(next.encode()))
    });
    noted.is_ok_and(|updated| updated.value)
}

/// Why a fetched document did not come into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words: the field, what was found, what was wanted.
    pub reason: String,
    kind: FailureKind,
    /// The same for the same complaint about the same text.
    fingerprint: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureKind {
    /// There is no document.
    Unreachable,
    /// There is one that does not parse or does not fit.
    Wrong,
}

impl Failure {
    /// No document came.
    pub fn unreachable(reason: String) -> Self {
        let fingerprint = fingerprint(&[reason.as_bytes()]);
        Self { reason, kind: FailureKind::Unreachable, fingerprint }
    }

    /// What came is wrong.
    pub fn wrong(reason: String, texts: &Texts) -> Self {
        let text = |text: &Option<Vec<u8>>| text.clone().unwrap_or_default();
        let fingerprint = fingerprint(&[reason.as_bytes(), &text(&texts.tiers), &text(&texts.api_keys)]);
        Self { reason, kind: FailureKind::Wrong, fingerprint }
    }

    /// Both failures as one.
    fn and(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        let wrong = [self.kind, other.kind].contains(&FailureKind::Wrong);
        Self {
            reason: format!("{}; {}", other.reason, self.reason),
            kind: if wrong { FailureKind::Wrong } else { FailureKind::Unreachable },
            fingerprint: self.fingerprint ^ other.fingerprint.rotate_left(1),
        }
    }
}

/// Never zero, which stands for no complaint.
fn fingerprint(parts: &[&[u8]]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    parts.iter().for_each(|part| hasher.write(part));
    hasher.finish() | 1
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

/// The key of a record that belongs to a source: where a delivery changed it, requests that began under the old
/// configuration keep that one alive for a while, and its documents must not be taken for the new one's.
fn source_key(namespace: &str, source: &ConfigSource, record: &str) -> String {
    let part = |path: &Option<String>| path.clone().unwrap_or_default();
    let [tiers, api_keys] = [part(&source.tiers), part(&source.api_keys)];
    let id = fingerprint(&[source.cluster.as_bytes(), b"\0", tiers.as_bytes(), b"\0", api_keys.as_bytes()]);
    record_key(namespace, &format!("documents/{id:x}/{record}"))
}
