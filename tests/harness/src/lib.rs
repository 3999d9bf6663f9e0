//! What the suites share.
//!
//! [`bootstrap`] has the pieces of Envoy's configuration. [`redis`] is a Redis that runs, [`redis_cluster`] several that share the work, both started by [`process`] on a
//! [`port`] of their own. [`wait`] holds the only loop that waits for something, [`canary`] looks for secrets wherever
//! there should be none.

pub mod bootstrap;
pub mod canary;
pub mod port;
pub mod process;
pub mod redis;
pub mod redis_cluster;
pub mod wait;

use sha2::Digest as _;

/// SHA-256 of `text` in lower-case hex, as configuration wants it.
pub fn sha256_hex(text: &str) -> String {
    let hex: String =
        sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    canary::register_hash(text, &hex);
    hex
}
