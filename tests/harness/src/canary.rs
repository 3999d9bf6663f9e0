//! Secrets that tests use, searched for wherever an operator or a client may read.
//!
//! A secret of a test has [`MARK`] in it, and so is known wherever it turns up: a key, an admin token, a password of
//! Redis. What is hashed by [`crate::sha256_hex`] is looked for as its hash too, of which a name may show 16 digits and no
//! more. Other secrets are [`register`]ed.
//!
//! Searched are: every response that a client reads, when it is read; Envoy's log, stats, metrics and server info, when
//! the Envoy ends; the keys, values, log and ACL log of a Redis, when that ends. A find fails the test. Not searched are
//! `/config_dump`, which shows the configuration by its nature, secrets in it included, and answers that a load
//! merely counts. The filter's own lines are in Envoy's log at debug level, Envoy's at warning: below `info` Envoy
//! itself prints the headers of every request, whatever filters it has.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What every secret of a test has in it. Envoy has `canary` in names of its own.
pub const MARK: &str = "c4nary";

/// As many digits of a hash as may be seen.
const SHOWN_DIGITS: usize = 16;

fn registered() -> MutexGuard<'static, BTreeSet<String>> {
    static SECRETS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this is looked for as well.
pub fn register(secret: &str) {
    registered().insert(secret.to_owned());
}

/// From now on a hash is looked for, if it is a secret's.
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

/// Every secret in `places`, with where it is.
pub fn search<'a>(places: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Vec<String> {
    let found = |(place, bytes): (&str, Vec<u8>)| Some(format!("a secret in {place}: {}", find(&bytes)?));
    places.into_iter().filter_map(found).collect()
}

/// Fails the test that found something, unless it is failing already.
pub fn assert_none(found: &[String]) {
    if std::thread::panicking() {
        eprintln!("{}", found.join("\n"));
    } else {
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
