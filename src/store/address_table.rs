//! Buckets of callers without a known key, in bounded memory and still exact.
//!
//! The table is set-associative: a keyed hash sends an address to one record of shared data, which holds up to
//! [`WAYS`] buckets. No caller can aim at a record without knowing the random hash key.
//!
//! When a record is full, a newcomer takes over the bucket with the most tokens, and *inherits* its tokens instead of
//! starting with a full bucket (the idea of the Space-Saving sketch, Metwally et al. 2005). So a flood of addresses adds
//! no token: no other address of the record had more than the evicted one. They share one limit, so all of them refill
//! alike, and what the evicted one inherits when it returns is at most what it would have had. If even the fullest
//! bucket has less than one token, the newcomer is rejected and none is evicted: a rejected caller stays rejected.

use std::fmt::Write as _;
use std::time::Duration;

use super::keyed::{BUCKET_BYTES, decode, encode};
use super::{Contended, SharedData, Taken, Updated, update};
use crate::bucket::{self, Bucket, Outcome};
use crate::codec::{Reader, Writer};
use crate::identity::Network;
use crate::limit::Limit;
use crate::record_key::record_key;
use crate::time::{StoreTime, whole_micros};

/// Most buckets in one record.
pub const WAYS: u32 = 8;

const TAG_BYTES: usize = 8;
const ENTRY_BYTES: usize = TAG_BYTES + BUCKET_BYTES;
const RECORD_BYTES: usize = ENTRY_BYTES * WAYS as usize;

/// The table's hash key and size: drawn once per Envoy process, the same for every worker.
#[derive(Clone, Debug)]
pub struct AddressTable {
    shape: Shape,
    record_prefix: String,
}

impl AddressTable {
    /// The table of `namespace`; made with `hash_key` and room for `max_buckets` where it is not there yet.
    ///
    /// A table keeps the size it was made with, because another size would send addresses to other records and
    /// so hand back their tokens: a changed `max_buckets` takes effect when Envoy restarts.
    pub fn open(
        data: &impl SharedData,
        namespace: &str,
        max_buckets: u32,
        hash_key: (u64, u64),
    ) -> Result<Self, Contended> {
        let ways = max_buckets.clamp(1, WAYS);
        let shape = Shape { hash_key, ways, records: (max_buckets / ways).max(1) };
        let key = record_key(namespace, "address_table");
        let shape = update(data, &key, |stored, _| match stored.and_then(Shape::decode) {
            Some(existing) => (existing, None),
            None => (shape, Some(shape.encode())),
        })?
        .value;
        Ok(Self { shape, record_prefix: record_key(namespace, "address/") })
    }

    /// Most buckets that the table holds.
    pub fn max_buckets(&self) -> u32 {
        self.shape.records * self.shape.ways
    }

    /// Takes one token from the bucket of `network`. A bucket that has been idle for `ttl` and is full may be
    /// forgotten without counting as evicted.
    pub fn take(
        &self,
        data: &impl SharedData,
        network: Network,
        limit: Limit,
        ttl: Duration,
    ) -> Result<Updated<Taken>, Contended> {
        let tag = self.hash(network);
        let mut key = String::with_capacity(self.record_prefix.len() + 8);
        key.push_str(&self.record_prefix);
        // Writing to a string cannot fail.
        let _ = write!(key, "{:x}", tag % u64::from(self.shape.records));
        update(data, &key, |stored, now| {
            let room = self.shape.ways as usize * ENTRY_BYTES;
            let mut record = AddressRecord::decode(stored.unwrap_or_default(), room);
            let (taken, changed) = record.take(tag, limit, ttl, now);
            (taken, changed.then_some(record))
        })
    }

    /// A 64-bit keyed hash: names the address within its record, and the record within the table.
    pub fn hash(&self, network: Network) -> u64 {
        use std::hash::Hasher;
        // Deprecated in favour of hashers whose keys cannot be chosen; all workers must share this one's.
        #[allow(deprecated)]
        let mut hasher = std::hash::SipHasher::new_with_keys(self.shape.hash_key.0, self.shape.hash_key.1);
        hasher.write(&network.bytes());
        hasher.finish()
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    hash_key: (u64, u64),
    ways: u32,
    records: u32,
}

impl Shape {
    fn encode(self) -> Vec<u8> {
        let mut record = Writer::default();
        record.u64(self.hash_key.0).u64(self.hash_key.1).u32(self.ways).u32(self.records);
        record.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut record = Reader::new(bytes);
        let hash_key = (record.u64()?, record.u64()?);
        let shape = Self { hash_key, ways: record.u32()?, records: record.u32()? };
        let is_possible = (1..=WAYS).contains(&shape.ways) && shape.records > 0;
        (is_possible && record.is_at_end()).then_some(shape)
    }
}

#[derive(Clone, Copy)]
struct Entry {
    tag: u64,
    bucket: Bucket,
}

/// Where the entry of an address goes.
struct Slot {
    offset: usize,
    /// What it takes its token from; `None` for a full bucket.
    bucket: Option<Bucket>,
    /// Whether another address loses its bucket.
    evicts: bool,
}

/// The buckets of one record, as they are stored: entries one after the other, in no order.
struct AddressRecord {
    bytes: [u8; RECORD_BYTES],
    used: usize,
    room: usize,
}

impl AsRef<[u8]> for AddressRecord {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl AddressRecord {
    /// Bytes that no record can have are not ours, and count as an empty record.
    fn decode(stored: &[u8], room: usize) -> Self {
        let mut record = AddressRecord { bytes: [0; RECORD_BYTES], used: 0, room };
        if let Some(bytes) = record.bytes.get_mut(..stored.len())
            && stored.len() <= room
            && stored.len().is_multiple_of(ENTRY_BYTES)
        {
            bytes.copy_from_slice(stored);
            record.used = stored.len();
        }
        record
    }

    /// The answer to `tag`, and whether this record changed.
    fn take(&mut self, tag: u64, limit: Limit, ttl: Duration, now: StoreTime) -> (Taken, bool) {
        let Slot { offset, bucket, evicts } = match self.find(tag) {
            Some((offset, bucket)) => Slot { offset, bucket: Some(bucket), evicts: false },
            None if self.used < self.room => Slot { offset: self.used, bucket: None, evicts: false },
            None => self.slot_of_fullest(limit, ttl, now),
        };
        let (verdict, changed) = bucket::take(bucket, limit, now.as_micros());
        // A rejected newcomer evicts no bucket.
        let changed = changed.filter(|_| !evicts || verdict.outcome == Outcome::Admitted);
        if let Some(bucket) = changed {
            self.put(offset, Entry { tag, bucket });
        }
        let taken = Taken { verdict, at: now, evicted: evicts && changed.is_some() };
        (taken, changed.is_some())
    }

    fn find(&self, tag: u64) -> Option<(usize, Bucket)> {
        let found = |(offset, entry): (usize, Entry)| (entry.tag == tag).then_some((offset, entry.bucket));
        self.entries().find_map(found)
    }

    /// A newcomer's slot in a full record: that of the bucket with the most tokens; of several, of the one that was
    /// idle longest. Tokens are compared before they are cut off at the capacity. A small degraded limit would make
    /// many buckets look full, and hide which of them holds less by the normal limit. Then an evicted caller could
    /// inherit more than it had.
    fn slot_of_fullest(&self, limit: Limit, ttl: Duration, now: StoreTime) -> Slot {
        let now_us = now.as_micros();
        let tokens = |bucket| bucket::unclamped_pico(bucket, limit, now_us);
        let idle_us = |bucket: Bucket| now_us.saturating_sub(bucket.refilled_at_us);
        let fullest = self.entries().max_by_key(|(_, entry)| (tokens(entry.bucket), idle_us(entry.bucket)));
        match fullest {
            Some((offset, entry)) => {
                let expires_us = whole_micros(ttl).max(bucket::time_to_fill_us(limit));
                let evicts = idle_us(entry.bucket) < expires_us;
                Slot { offset, bucket: Some(entry.bucket), evicts }
            }
            None => Slot { offset: 0, bucket: None, evicts: false },
        }
    }

    fn entries(&self) -> impl Iterator<Item = (usize, Entry)> + '_ {
        let entry = |(index, bytes): (usize, &[u8])| {
            let (tag, bucket) = bytes.split_first_chunk()?;
            let entry = Entry { tag: u64::from_le_bytes(*tag), bucket: decode(bucket)? };
            Some((index * ENTRY_BYTES, entry))
        };
        self.as_ref().chunks_exact(ENTRY_BYTES).enumerate().filter_map(entry)
    }

    fn put(&mut self, offset: usize, entry: Entry) {
        let end = offset + ENTRY_BYTES;
        if let Some(bytes) = self.bytes.get_mut(offset..end) {
            let (tag, bucket) = bytes.split_at_mut(TAG_BYTES);
            tag.copy_from_slice(&entry.tag.to_le_bytes());
            bucket.copy_from_slice(&encode(entry.bucket));
            self.used = self.used.max(end);
        }
    }
}
