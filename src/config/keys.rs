//! The key document. Only hashes of keys leave this file, and no error shows a key.

use std::collections::HashSet;
use std::rc::Rc;

use super::{NAME_WANTED, is_name};
use crate::identity::{KeyHash, MAX_KEY_BYTES, reads_as_address};
use crate::json::{Field, Json};
use crate::record_key::keyed_bucket_key;
use crate::tier::Tier;

/// What errors call the key document, in the plugin configuration and by itself.
pub const KEY_DOCUMENT: &str = "api_keys";

/// Longest id, in bytes.
pub const MAX_ID_BYTES: usize = 128;

/// One entry of the key document.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    pub key: KeyHash,
    /// Name of its tier, not yet looked up.
    pub tier: String,
    /// Name of its bucket, where that is not the start of the key's hash.
    pub id: Option<String>,
    /// Its number in the document, from 1: errors call it by that.
    pub number: u32,
}

impl KeyEntry {
    pub fn bucket(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.key.short_hex())
    }

    /// The error for a key that another entry has too.
    pub fn duplicate_key(&self) -> String {
        format!("{}: found a key that another entry has too, wanted each once", path(self.number))
    }

    /// The error for a bucket's name that another entry has too.
    pub fn duplicate_id(&self) -> String {
        let (path, id) = (path(self.number), self.bucket());
        format!("{path}.id: found {id:?}, which another entry has too, wanted an id of its own")
    }
}

/// What a key document says about tiers, and how many keys it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySummary {
    pub keys: u32,
    /// Each tier that an entry names, once.
    pub tiers: Vec<NamedTier>,
}

/// A tier that an entry names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTier {
    /// The name, not yet looked up.
    pub name: String,
    /// The first entry that has it.
    pub number: u32,
}

impl KeySummary {
    /// The summary of these entries.
    pub fn of(entries: &[KeyEntry]) -> Self {
        let mut tiers = Vec::new();
        let mut known = HashSet::new();
        for entry in entries.iter().filter(|entry| known.insert(&entry.tier)) {
            tiers.push(NamedTier { name: entry.tier.clone(), number: entry.number });
        }
        Self { keys: u32::try_from(entries.len()).unwrap_or(u32::MAX), tiers }
    }
}

impl NamedTier {
    /// The error for a tier that is not among `known`.
    pub(super) fn unknown(&self, known: &str) -> String {
        // The name is not shown: where key and tier have been swapped, it is the key.
        let (path, length) = (path(self.number), self.name.len());
        format!("{path}: found the name of no tier ({length} bytes), wanted one of the tiers {known}")
    }
}

/// A caller with a known key.
#[derive(Clone, Debug)]
pub struct KnownCaller {
    pub tier: Rc<Tier>,
    /// Name of the caller's bucket: the entry's `id`, or the start of the key's hash.
    pub bucket: String,
    /// The bucket's key in shared data.
    pub shared_data_key: String,
}

impl KnownCaller {
    pub fn new(tier: Rc<Tier>, bucket: String, namespace: &str) -> Self {
        let shared_data_key = keyed_bucket_key(namespace, &bucket);
        Self { tier, bucket, shared_data_key }
    }
}

/// Reads the text of a key document at once.
pub fn parse_key_document(text: &[u8]) -> Result<Vec<KeyEntry>, String> {
    let json = Json::parse(text).map_err(|error| format!("{KEY_DOCUMENT}: {error}"))?;
    parse_api_keys(&json.root(KEY_DOCUMENT))
}

/// Reads a key document: an object with a member for each key, written as the key itself or as
/// `sha256:<64 hexadecimal digits>` of it.
pub fn parse_api_keys(document: &Field) -> Result<Vec<KeyEntry>, String> {
    let entries = parse_key_members(document, 1)?;
    let mut keys = HashSet::new();
    let mut buckets = HashSet::new();
    for entry in &entries {
        if !keys.insert(entry.key) {
            return Err(entry.duplicate_key());
        }
        if !buckets.insert(entry.bucket()) {
            return Err(entry.duplicate_id());
        }
    }
    Ok(entries)
}

/// Reads some members of a key document, of which the first has the number `first`. Does not see whether two entries
/// have one key or one id.
pub fn parse_key_members(document: &Field, first: u32) -> Result<Vec<KeyEntry>, String> {
    let document = document.clone().secret();
    let members = document.secret_members(first)?;
    (first..).zip(&members).map(|(number, (key, field))| entry(key, field, number)).collect()
}

/// The path of an entry, whose name is never shown.
fn path(number: u32) -> String {
    format!("{KEY_DOCUMENT}[{number}]")
}

fn entry(key: &str, field: &Field, number: u32) -> Result<KeyEntry, String> {
    let key = key_hash(key, field)?;
    let (tier, id) = match field.as_text() {
        Some(tier) => (tier, None),
        None => {
            let fields = field.fields(&["tier", "id"])?;
            let tier = fields.need("tier", "the name of a tier")?.text()?;
            (tier, fields.get("id").map(|id| self::id(&id)).transpose()?)
        }
    };
    if !is_name(tier) {
        return Err(field.error("no name of a tier", NAME_WANTED));
    }
    Ok(KeyEntry { key, tier: tier.to_owned(), id: id.map(str::to_owned), number })
}

fn key_hash(key: &str, field: &Field) -> Result<KeyHash, String> {
    let error = |wanted: &str| field.error(format_args!("a key of {} bytes", key.len()), wanted);
    match key.strip_prefix("sha256:") {
        Some(hex) => KeyHash::from_hex(hex).ok_or_else(|| error("64 hexadecimal digits after sha256:")),
        None if (1..=MAX_KEY_BYTES).contains(&key.len()) => Ok(KeyHash::of(key.as_bytes())),
        None => Err(error(&format!("1 to {MAX_KEY_BYTES} bytes"))),
    }
}

fn id<'a>(field: &Field<'a>) -> Result<&'a str, String> {
    let id = field.text()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'-');
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(allowed) {
        return Err(field.wanted(format_args!("1 to {MAX_ID_BYTES} letters, digits or . _ : @ -")));
    }
    if reads_as_address(id) {
        return Err(field.wanted(
            "an id that does not read as an address: addresses name the buckets of callers without a key",
        ));
    }
    Ok(id)
}
