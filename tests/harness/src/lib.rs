//! Shared code of the test suites.
//!
//! [`fake_data`] is a worker's view of an Envoy, [`fake_redis`] a model of Redis in memory, [`fake_stream`] a session with
//! it, and [`random`] a random generator with a seed. [`redis`] is a real Redis, [`redis_cluster`] a Redis Cluster; both
//! are started by [`process`] on a reserved [`port`]. [`bootstrap`] has parts of Envoy's configuration, [`wait`] the only
//! loop that waits for a condition, [`canary`] the search for secrets.

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

use std::panic::{AssertUnwindSafe, catch_unwind};

use sha2::Digest as _;

/// Runs `work`; the error is the message of its panic.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

/// SHA-256 of `text` in lower-case hex, as in configurations.
pub fn sha256_hex(text: &str) -> String {
    let hex: String =
        sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    canary::register_hash(text, &hex);
    hex
}
