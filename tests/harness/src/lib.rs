//! What the suites share.
//!
//! [`fake_data`] is what a worker sees of an Envoy, [`fake_redis`] a model of Redis in memory, [`fake_stream`] a session with
//! it, and [`random`] has numbers
//! that a seed brings back. [`redis`] is a Redis that runs, [`redis_cluster`] several that share the work, both started by
//! [`process`] on a [`port`] of their own. [`bootstrap`] has the pieces of Envoy's configuration. [`wait`] holds the only
//! loop that waits for something, [`canary`] looks for secrets wherever there should be none.

pub mod bootstrap;
pub mod canary;
pub mod envoy_version;
pub mod fake_data;
pub mod fake_redis;
pub mod fake_stream;
pub mod port;
pub mod process;
pub mod random;
pub mod redis;
pub mod redis_cluster;
pub mod wait;

pub use fake_data::*;

use sha2::Digest as _;

/// SHA-256 of `text` in lower-case hex, as configuration wants it.
pub fn sha256_hex(text: &str) -> String {
    let hex: String =
        sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    canary::register_hash(text, &hex);
    hex
}
