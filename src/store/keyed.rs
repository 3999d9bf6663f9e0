//! Buckets of callers with a known key: a record each, which Envoy keeps as long as it runs.

use super::{Contended, SharedData, Taken, Updated, update};
use crate::bucket::{self, Bucket};
use crate::limit::Limit;

/// Bytes of a stored bucket.
pub(super) const BUCKET_BYTES: usize = 16;

/// Takes one token from the bucket kept under `shared_data_key`.
pub fn take_keyed(
    data: &impl SharedData,
    shared_data_key: &str,
    limit: Limit,
) -> Result<Updated<Taken>, Contended> {
    update(data, shared_data_key, |stored, now| {
        let (verdict, changed) = bucket::take(stored.and_then(decode), limit, now.as_micros());
        let taken = Taken { verdict, at: now, evicted: false };
        (taken, changed.map(encode))
    })
}

pub(super) fn encode(bucket: Bucket) -> [u8; BUCKET_BYTES] {
    let mut bytes = [0; BUCKET_BYTES];
    let (tokens, refilled_at) = bytes.split_at_mut(8);
    tokens.copy_from_slice(&bucket.tokens_pico.to_le_bytes());
    refilled_at.copy_from_slice(&bucket.refilled_at_us.to_le_bytes());
    bytes
}

/// Bytes of any other length are not ours, and count as nothing stored.
pub(super) fn decode(bytes: &[u8]) -> Option<Bucket> {
    let (tokens, refilled_at) = bytes.split_at_checked(8)?;
    Some(Bucket {
        tokens_pico: u64::from_le_bytes(tokens.try_into().ok()?),
        refilled_at_us: u64::from_le_bytes(refilled_at.try_into().ok()?),
    })
}
