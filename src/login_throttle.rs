//! The login throttle: at most five wrong admin tokens a minute from one address.
//!
//! Exact over every sliding minute, shared by all workers, and bounded: a fixed number of records of a few
//! addresses each, found by the keyed hash of the address table, so that no client can choose addresses that
//! share one. A record is full while all of its addresses have sent wrong tokens within the last minute.
//! Then no token of another address that belongs there is compared, right or wrong: it is rejected until
//! there is room. So an attacker with any number of addresses has at most 5 × 4,096 guesses a minute.
//!
//! An operator is not locked out by that. 127.0.0.1 and ::1 have a record of their own, and so do the last 16
//! addresses that have shown the right token. Five wrong tokens a minute is the limit there, too.

use std::time::Duration;

use crate::codec::{Reader, Writer};
use crate::identity::Network;
use crate::record_key::record_key;
use crate::store::{AddressTable, Contended, SharedData, update};
use crate::time::StoreTime;

/// Wrong tokens that one address may send within [`WINDOW`].
pub const MAX_WRONG_TOKENS: usize = 5;
/// The sliding window.
pub const WINDOW: Duration = Duration::from_secs(60);

const RECORDS: u64 = 256;
const ADDRESSES_PER_RECORD: usize = 16;

/// The throttle of one namespace.
#[derive(Debug)]
pub struct LoginThrottle<'a, D> {
    /// What all workers share.
    pub data: &'a D,
    /// The limiter's namespace.
    pub namespace: &'a str,
    /// For its hash.
    pub table: &'a AddressTable,
}

impl<D: SharedData> LoginThrottle<'_, D> {
    /// How long until a token of `network` may be compared; zero where it may now.
    pub fn wait(&self, network: Network) -> Duration {
        let stored = self.data.get(&self.key(network));
        let addresses = stored.map(|(bytes, _)| decode(&bytes)).unwrap_or_default();
        wait(&addresses, network, self.data.now())
    }

    /// Counts a wrong token from `network`; returns what [`LoginThrottle::wait`] did before.
    ///
    /// If that is not zero, others have used up the attempts since [`LoginThrottle::wait`], and nothing is counted:
    /// however many wrong tokens come at once, no more than [`MAX_WRONG_TOKENS`] get the answer that they are wrong.
    pub fn count_wrong_token(&self, network: Network) -> Result<Duration, Contended> {
        update(self.data, &self.key(network), |stored, now| {
            let mut addresses = decode(stored.unwrap_or_default());
            let wait = wait(&addresses, network, now);
            if !wait.is_zero() {
                return (wait, None);
            }
            let mut own = take(&mut addresses, network).unwrap_or(WrongTokens::none_of(network));
            own.wrong_at.rotate_right(1);
            if let Some(latest) = own.wrong_at.first_mut() {
                // Zero stands for "never", and no clock of a running Envoy reads zero.
                *latest = now.max(StoreTime::from_micros(1));
            }
            (Duration::ZERO, Some(encode(own, &addresses)))
        })
        .map(|updated| updated.value)
    }

    /// Remembers that `network` has shown the right token: others cannot evict it from now on.
    pub fn note_right_token(&self, network: Network) {
        if network.is_this_machine() {
            return;
        }
        let stored = self.data.get(&self.key(network));
        let mut known = stored.map(|(bytes, _)| decode(&bytes)).unwrap_or_default();
        let before = take(&mut known, network).unwrap_or(WrongTokens::none_of(network));
        // Where this write loses every race, the next right token is remembered.
        let _ = update(self.data, &self.operators_key(), |stored, _| {
            let mut addresses = decode(stored.unwrap_or_default());
            let is_first = addresses.first().is_some_and(|address| address.network == network.bytes());
            let own = take(&mut addresses, network).unwrap_or(before);
            ((), (!is_first).then(|| encode(own, &addresses)))
        });
    }

    /// The record in which wrong tokens of `network` are counted.
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

/// One address, and when it sent its last wrong tokens, latest first.
#[derive(Clone, Copy)]
struct WrongTokens {
    network: [u8; 17],
    wrong_at: [StoreTime; MAX_WRONG_TOKENS],
}

impl WrongTokens {
    fn none_of(network: Network) -> Self {
        Self { network: network.bytes(), wrong_at: [StoreTime::default(); MAX_WRONG_TOKENS] }
    }

    /// Until its latest wrong token no longer counts.
    fn expires_in(&self, now: StoreTime) -> Duration {
        let latest = self.wrong_at.first().copied().unwrap_or_default();
        latest.after(WINDOW).since(now)
    }

    fn wait(&self, now: StoreTime) -> Duration {
        match self.wrong_at.last() {
            Some(oldest) if *oldest > StoreTime::default() => oldest.after(WINDOW).since(now),
            _ => Duration::ZERO,
        }
    }
}

/// How long `network` has to wait, by the addresses of its record, latest first.
fn wait(addresses: &[WrongTokens], network: Network, now: StoreTime) -> Duration {
    let own = addresses.iter().find(|address| address.network == network.bytes());
    match (own, addresses.get(ADDRESSES_PER_RECORD - 1)) {
        (Some(own), _) => own.wait(now),
        (None, Some(quietest)) => quietest.expires_in(now),
        (None, None) => Duration::ZERO,
    }
}

fn take(addresses: &mut Vec<WrongTokens>, network: Network) -> Option<WrongTokens> {
    let own = addresses.iter().position(|address| address.network == network.bytes());
    own.map(|index| addresses.remove(index))
}

/// A record with `first` in front; the last address of a full one goes.
fn encode(first: WrongTokens, rest: &[WrongTokens]) -> Vec<u8> {
    let mut record = Writer::default();
    for address in std::iter::once(&first).chain(rest).take(ADDRESSES_PER_RECORD) {
        record.array(address.network);
        for at in address.wrong_at {
            record.u64(at.as_micros());
        }
    }
    record.into_bytes()
}

fn decode(bytes: &[u8]) -> Vec<WrongTokens> {
    let mut record = Reader::new(bytes);
    let address = || {
        let network = record.array()?;
        let mut wrong_at = [StoreTime::default(); MAX_WRONG_TOKENS];
        for at in &mut wrong_at {
            *at = StoreTime::from_micros(record.u64()?);
        }
        Some(WrongTokens { network, wrong_at })
    };
    std::iter::from_fn(address).take(ADDRESSES_PER_RECORD).collect()
}
