//! The brute-force guard: at most five bad admin tokens a minute from one address.
//!
//! Exact over every sliding minute, shared by all workers, and bounded: a fixed number of records of a few
//! addresses each, found by the keyed hash of the address table, so that nobody can choose addresses that share
//! one. A record whose addresses have all sent bad tokens within the last minute takes no other, so nobody is
//! forgotten too early: a bad token from an address that is new to it is turned away uncounted, and the right one
//! is not kept waiting. To fill the records takes thousands of networks at once, and whoever has those may guess
//! five times a minute from each of them anyway.

use crate::identity::Network;
use crate::store::{AddressTable, Contended, SharedData, record_key, update};

/// Bad tokens that one address may send within [`WINDOW_US`].
pub const MAX_BAD_TOKENS: usize = 5;
/// The sliding window, in microseconds.
pub const WINDOW_US: u64 = 60_000_000;

const RECORDS: u64 = 256;
const WAYS: usize = 16;
const ENTRY_BYTES: usize = 17 + 8 * MAX_BAD_TOKENS;

/// Microseconds until `network` may try again; zero where it may now.
pub fn wait_us(data: &impl SharedData, namespace: &str, table: &AddressTable, network: Network) -> u64 {
    let stored = data.get(&key(namespace, table, network));
    let entries = stored.map(|(bytes, _)| decode(&bytes)).unwrap_or_default();
    let own = entries.iter().find(|entry| entry.network == network.bytes());
    own.map_or(0, |entry| entry.wait_us(data.now_us()))
}

/// Counts a bad token from `network`; returns what [`wait_us`] did before.
///
/// Where that is not zero, others have used the address up since it was asked, and nothing is counted: however
/// many bad tokens come at once, no more than [`MAX_BAD_TOKENS`] are told that they are bad.
pub fn count(
    data: &impl SharedData,
    namespace: &str,
    table: &AddressTable,
    network: Network,
) -> Result<u64, Contended> {
    update(data, &key(namespace, table, network), |stored, now_us| {
        let mut entries = decode(stored.unwrap_or_default());
        let own = entries.iter().position(|entry| entry.network == network.bytes());
        let mut entry = match own {
            Some(index) => entries.remove(index),
            None => Entry { network: network.bytes(), bad_at_us: [0; MAX_BAD_TOKENS] },
        };
        let crowded = match entries.get(WAYS - 1) {
            Some(quietest) if own.is_none() => quietest.expires_in_us(now_us),
            _ => 0,
        };
        let wait_us = entry.wait_us(now_us).max(crowded);
        if wait_us > 0 {
            return (wait_us, None);
        }
        entry.bad_at_us.rotate_right(1);
        if let Some(latest) = entry.bad_at_us.first_mut() {
            // Zero stands for "never", and no clock of a running Envoy reads zero.
            *latest = now_us.max(1);
        }
        entries.insert(0, entry);
        entries.truncate(WAYS);
        (0, Some(encode(&entries)))
    })
    .map(|updated| updated.value)
}

/// One address, and when it sent its last bad tokens, latest first.
struct Entry {
    network: [u8; 17],
    bad_at_us: [u64; MAX_BAD_TOKENS],
}

impl Entry {
    /// Until its latest bad token no longer counts.
    fn expires_in_us(&self, now_us: u64) -> u64 {
        let latest = self.bad_at_us.first().copied().unwrap_or_default();
        latest.saturating_add(WINDOW_US).saturating_sub(now_us)
    }

    fn wait_us(&self, now_us: u64) -> u64 {
        match self.bad_at_us.last() {
            Some(0) | None => 0,
            Some(oldest) => oldest.saturating_add(WINDOW_US).saturating_sub(now_us),
        }
    }
}

fn key(namespace: &str, table: &AddressTable, network: Network) -> String {
    record_key(namespace, &format!("bad_token/{}", table.hash(network) % RECORDS))
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        bytes.extend(entry.network);
        bytes.extend(entry.bad_at_us.iter().flat_map(|at_us| at_us.to_le_bytes()));
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Entry> {
    let entry = |bytes: &[u8]| {
        let (network, times) = bytes.split_first_chunk()?;
        let mut bad_at_us = [0; MAX_BAD_TOKENS];
        for (at_us, bytes) in bad_at_us.iter_mut().zip(times.chunks_exact(8)) {
            *at_us = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(Entry { network: *network, bad_at_us })
    };
    bytes.chunks_exact(ENTRY_BYTES).filter_map(entry).take(WAYS).collect()
}
