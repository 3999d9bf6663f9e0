//! The key document. Only hashes of keys leave this file, and no error shows a key.

use std::collections::HashSet;
use std::rc::Rc;

use super::{NAME_WANTED, is_name};
use crate::identity::{MAX_KEY_BYTES, Secret, reads_as_address};
use crate::json::Field;
use crate::store::keyed_bucket_key;
use crate::tier::Tier;

const MAX_ID_BYTES: usize = 128;

/// One entry of the key document.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// Hash of the key.
    pub key: Secret,
    /// Name of its tier, not yet looked up.
    pub tier: String,
    /// Name of its bucket.
    pub bucket: String,
    path: String,
}

impl KeyEntry {
    /// The error for a tier that is not among `known`.
    pub(super) fn unknown_tier(&self, known: &str) -> String {
        // The name is not shown: where key and tier have been swapped, it is the key.
        let length = self.tier.len();
        format!("{}: found the name of no tier ({length} bytes), wanted one of the tiers {known}", self.path)
    }
}

/// A caller with a known key.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The caller's tier.
    pub tier: Rc<Tier>,
    /// Name of the caller's bucket: the entry's `id`, or the start of the key's hash.
    pub bucket: String,
    /// The bucket's key in shared data.
    pub shared_data_key: String,
}

impl Caller {
    pub(super) fn new(entry: &KeyEntry, tier: Rc<Tier>, namespace: &str) -> Self {
        Self {
            tier,
            bucket: entry.bucket.clone(),
            shared_data_key: keyed_bucket_key(namespace, &entry.bucket),
        }
    }
}

/// Reads a key document: an object with a member for each key, written as the key itself or as
/// `sha256:<64 hexadecimal digits>` of it.
pub fn parse_api_keys(document: &Field) -> Result<Vec<KeyEntry>, String> {
    let document = document.clone().secret();
    let members = document.secret_members()?;
    let entries = members.iter().map(|(key, field)| entry(key, field)).collect::<Result<Vec<_>, String>>()?;
    let mut keys = HashSet::new();
    let mut buckets = HashSet::new();
    for entry in &entries {
        if !keys.insert(entry.key) {
            return Err(format!("{}: found a key that another entry has too, wanted each once", entry.path));
        }
        if !buckets.insert(&entry.bucket) {
            let (path, id) = (&entry.path, &entry.bucket);
            return Err(format!(
                "{path}.id: found {id:?}, which another entry has too, wanted an id of its own"
            ));
        }
    }
    Ok(entries)
}

fn entry(key: &str, field: &Field) -> Result<KeyEntry, String> {
    let key = secret(key, field)?;
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
    Ok(KeyEntry {
        key,
        tier: tier.to_owned(),
        bucket: id.map_or_else(|| key.short_hex(), str::to_owned),
        path: field.path().to_owned(),
    })
}

fn secret(key: &str, field: &Field) -> Result<Secret, String> {
    let error = |wanted| field.error(format_args!("a key of {} bytes", key.len()), wanted);
    match key.strip_prefix("sha256:") {
        Some(hex) => Secret::from_hex(hex).ok_or_else(|| error("64 hexadecimal digits after sha256:")),
        None if (1..=MAX_KEY_BYTES).contains(&key.len()) => Ok(Secret::of(key.as_bytes())),
        None => Err(error("1 to 256 bytes")),
    }
}

fn id<'a>(field: &Field<'a>) -> Result<&'a str, String> {
    let id = field.text()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'-');
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(allowed) {
        return Err(field.wanted("1 to 128 letters, digits or . _ : @ -"));
    }
    if reads_as_address(id) {
        return Err(field.wanted(
            "an id that does not read as an address: addresses name the buckets of callers without a key",
        ));
    }
    Ok(id)
}
