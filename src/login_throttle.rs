//! The login throttle: at most five bad admin tokens a minute from one address.
//!
//! Exact over every sliding minute, shared by all workers, and bounded: a fixed number of records of a few
//! addresses each, found by the keyed hash of the address table, so that no client can choose addresses that
//! share one. A record is crowded while all of its addresses have sent bad tokens within the last minute.
//! Then no token of another address that belongs there is compared, right or wrong: it is told to wait until
//! there is room. So an attacker with any number of addresses has at most 5 × 4,096 guesses a minute.
//!
//! An operator is not locked out by that. 127.0.0.1 and ::1 have a record of their own, and so do the last 16
//! addresses that have shown the right token. Five bad tokens a minute is the limit there, too.

use crate::identity::Network;
use crate::store::{AddressTable, Contended, SharedData, record_key, update};

/// Bad tokens that one address may send within [`WINDOW_US`].
pub const MAX_BAD_TOKENS: usize = 5;
/// The sliding window, in microseconds.
pub const WINDOW_US: u64 = 60_000_000;

const RECORDS: u64 = 256;
const ADDRESSES_PER_RECORD: usize = 16;
const ADDRESS_BYTES: usize = 17 + 8 * MAX_BAD_TOKENS;

/// The throttle of one namespace.
#[derive(Debug)]
pub struct LoginThrottle<'a, D> {
    /// What all workers share.
    pub data: &'a D,
    /// The limiter's namespace.
    pub namespace: &'a str,
    /// Has the keyed hash.
    pub table: &'a AddressTable,
}

impl<D: SharedData> LoginThrottle<'_, D> {
    /// Microseconds until a token of `network` may be compared; zero where it may now.
    pub fn wait_us(&self, network: Network) -> u64 {
        let stored = self.data.get(&self.key(network));
        let addresses = stored.map(|(bytes, _)| decode(&bytes)).unwrap_or_default();
        wait_us(&addresses, network, self.data.now_us())
    }

    /// Counts a bad token from `network`; returns what [`LoginThrottle::wait_us`] did before.
    ///
    /// Where that is not zero, others have used the address up since it was asked, and nothing is counted:
    /// however many bad tokens come at once, no more than [`MAX_BAD_TOKENS`] are told that they are bad.
    pub fn count_bad_token(&self, network: Network) -> Result<u64, Contended> {
        update(self.data, &self.key(network), |stored, now_us| {
            let mut addresses = decode(stored.unwrap_or_default());
            let wait_us = wait_us(&addresses, network, now_us);
            if wait_us > 0 {
                return (wait_us, None);
            }
            let mut own = take(&mut addresses, network).unwrap_or(BadTokens::none_of(network));
            own.bad_at_us.rotate_right(1);
            if let Some(latest) = own.bad_at_us.first_mut() {
                // Zero stands for "never", and no clock of a running Envoy reads zero.
                *latest = now_us.max(1);
            }
            (0, Some(encode(own, &addresses)))
        })
        .map(|updated| updated.value)
    }

    /// Remembers that `network` has shown the right token: others cannot crowd it out from now on.
    pub fn note_right_token(&self, network: Network) {
        if network.is_this_machine() {
            return;
        }
        let stored = self.data.get(&self.key(network));
        let mut known = stored.map(|(bytes, _)| decode(&bytes)).unwrap_or_default();
        let before = take(&mut known, network).unwrap_or(BadTokens::none_of(network));
        // Where this write loses every race, the next right token is remembered.
        let _ = update(self.data, &self.operators_key(), |stored, _| {
            let mut addresses = decode(stored.unwrap_or_default());
            let is_first = addresses.first().is_some_and(|address| address.network == network.bytes());
            let own = take(&mut addresses, network).unwrap_or(before);
            ((), (!is_first).then(|| encode(own, &addresses)))
        });
    }

    /// The record in which bad tokens of `network` are counted.
    fn key(&self, network: Network) -> String {
        if network.is_this_machine() {
            return record_key(self.namespace, "bad_token/this_machine");
        }
        let operators_key = self.operators_key();
        let operators = self.data.get(&operators_key).map(|(bytes, _)| decode(&bytes)).unwrap_or_default();
        if operators.iter().any(|address| address.network == network.bytes()) {
            return operators_key;
        }
        record_key(self.namespace, &format!("bad_token/{}", self.table.hash(network) % RECORDS))
    }

    fn operators_key(&self) -> String {
        record_key(self.namespace, "bad_token/operators")
    }
}

/// One address, and when it sent its last bad tokens, latest first.
#[derive(Clone, Copy)]
struct BadTokens {
    network: [u8; 17],
    bad_at_us: [u64; MAX_BAD_TOKENS],
}

impl BadTokens {
    fn none_of(network: Network) -> Self {
        Self { network: network.bytes(), bad_at_us: [0; MAX_BAD_TOKENS] }
    }

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

/// How long `network` has to wait, whose place is among these addresses, latest first.
fn wait_us(addresses: &[BadTokens], network: Network, now_us: u64) -> u64 {
    let own = addresses.iter().find(|address| address.network == network.bytes());
    match (own, addresses.get(ADDRESSES_PER_RECORD - 1)) {
        (Some(own), _) => own.wait_us(now_us),
        (None, Some(quietest)) => quietest.expires_in_us(now_us),
        (None, None) => 0,
    }
}

/// Takes an address out.
fn take(addresses: &mut Vec<BadTokens>, network: Network) -> Option<BadTokens> {
    let own = addresses.iter().position(|address| address.network == network.bytes());
    own.map(|index| addresses.remove(index))
}

/// A record with `first` in front; the last address of a full one goes.
fn encode(first: BadTokens, rest: &[BadTokens]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((rest.len() + 1) * ADDRESS_BYTES);
    for address in std::iter::once(&first).chain(rest).take(ADDRESSES_PER_RECORD) {
        bytes.extend(address.network);
        bytes.extend(address.bad_at_us.iter().flat_map(|at_us| at_us.to_le_bytes()));
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<BadTokens> {
    let address = |bytes: &[u8]| {
        let (network, times) = bytes.split_first_chunk()?;
        let mut bad_at_us = [0; MAX_BAD_TOKENS];
        for (at_us, bytes) in bad_at_us.iter_mut().zip(times.chunks_exact(8)) {
            *at_us = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(BadTokens { network: *network, bad_at_us })
    };
    bytes.chunks_exact(ADDRESS_BYTES).filter_map(address).take(ADDRESSES_PER_RECORD).collect()
}
