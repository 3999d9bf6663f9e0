//! The search for the secrets of tests in all outputs for operators and clients.
//!
//! A secret of a test contains [`MARK`], so that the search finds it everywhere: a key, an admin token, a password of
//! Redis. For a text that is hashed by [`crate::sha256_hex`], the search also finds the hash; only 16 digits of it may
//! be shown, in a name. Other secrets are [`register`]ed.
//!
//! The search covers every response that a client reads; Envoy's log, stats, metrics and server info, when the Envoy
//! ends; the keys, values, log and ACL log of a Redis, when it ends. A secret fails the test. Not searched are
//! `/config_dump`, which contains the configuration with its secrets, and the responses that a load only counts. In
//! Envoy's log the filter logs at debug level and Envoy at warning level: below `info` Envoy itself prints the headers
//! of every request.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every secret of a test contains this. Envoy uses `canary` in names of its own.
pub const MARK: &str = "c4nary";

/// How many digits of a hash may be shown.
const SHOWN_DIGITS: usize = 16;

fn registered() -> MutexGuard<'static, BTreeSet<String>> {
    static SECRETS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a secret to the search.
pub fn register(secret: &str) {
    registered().insert(secret.to_owned());
}

/// Adds a hash to the search, if it is the hash of a secret.
pub fn register_hash(of: &str, hex: &str) {
    if of.contains(MARK) {
        register(&hex[..=SHOWN_DIGITS]);
    }
}

/// The line with the first secret in `bytes`, if there is one.
pub fn find(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let secrets = registered();
    let holds = |line: &&str| line.contains(MARK) || secrets.iter().any(|secret| line.contains(secret));
    text.lines().find(holds).map(str::to_owned)
}

/// Every secret in `places`, with its place.
pub fn search<'a>(places: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Vec<String> {
    let found = |(place, bytes): (&str, Vec<u8>)| Some(format!("a secret in {place}: {}", find(&bytes)?));
    places.into_iter().filter_map(found).collect()
}

/// Fails the test if a secret was found, unless it is already failing.
pub fn assert_none(found: &[String]) {
    if std::thread::panicking() {
        eprintln!("{}", found.join("\n"));
    } else {
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
