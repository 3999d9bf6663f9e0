//! The harness of the end-to-end tests: a real Envoy with the filter in it, clients that can
//! say anything, and an upstream that answers what the test tells it to.
//!
//! In reading order: [`setup`] says what an Envoy is to look like, [`envoy`] is one that runs,
//! [`client`] speaks HTTP/1.1 to it byte by byte, [`http2`] speaks HTTP/2 and gRPC, [`load`]
//! sends many requests at once, [`crowd`] sends them whatever becomes of them, [`upstream`] stands behind it, [`prometheus`] reads its metrics.
//! [`redis`] is a Redis that runs, [`redis_cluster`] several that share the work, [`wire`] breaks the
//! connection to one in every way there is, [`certificates`] are for TLS.
//! [`prometheus_server`] is a Prometheus that scrapes them, [`shipped_files`] reads and checks YAML.
//! [`probe`] is the filter that asks Envoy about itself, [`canary`] looks for secrets wherever there should
//! be none. [`gateway`] plays the scenarios that the hostile host plays, too. [`wait`] holds the only loop that waits for something.
//!
//! Nothing here knows what the filter should do; that is in the tests.

pub mod canary;
pub mod certificates;
pub mod client;
pub mod crowd;
pub mod envoy;
pub mod gateway;
pub mod http2;
pub mod load;
pub mod port;
pub mod probe;
pub mod prometheus;
pub mod prometheus_server;
pub mod redis;
pub mod redis_cluster;
pub mod resp;
pub mod setup;
pub mod shipped_files;
pub mod upstream;
pub mod wait;
pub mod wire;

#[allow(unreachable_pub, reason = "shared with xtask")]
#[path = "../../common/envoy_version.rs"]
mod envoy_version;
mod http1;
mod process;

use sha2::Digest as _;

/// SHA-256 of `text` in lower-case hex, as configuration wants it.
pub fn sha256_hex(text: &str) -> String {
    let hex: String =
        sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    canary::register_hash(text, &hex);
    hex
}
