//! The harness of the end-to-end tests: a real Envoy with the filter in it, clients that can
//! say anything, and an upstream that answers what the test tells it to.
//!
//! In reading order: [`setup`] says what an Envoy is to look like, [`envoy`] is one that runs, [`client`] speaks
//! HTTP/1.1 to it byte by byte, [`http2`] speaks HTTP/2 and gRPC, [`load`] sends many requests at once, [`crowd`]
//! sends them whatever becomes of them, [`upstream`] stands behind it, [`prometheus`] reads its metrics. [`wire`]
//! breaks the connection to a Redis in every way there is, [`certificates`] are for TLS. [`prometheus_server`] is a
//! Prometheus that scrapes them, [`shipped_files`] reads and checks YAML. [`probe`] is the filter that asks Envoy
//! about itself, [`gateway`] plays the scenarios that the hostile host plays, too.
//!
//! Nothing here knows what the filter should do; that is in the tests.

pub mod certificates;
pub mod client;
pub mod crowd;
pub mod envoy;
pub mod gateway;
pub mod http2;
pub mod load;
pub mod probe;
pub mod prometheus;
pub mod prometheus_server;
pub mod setup;
pub mod shipped_files;
pub mod upstream;
pub mod wire;

mod http1;

pub use harness::{canary, port, redis, redis_cluster, sha256_hex, wait};
