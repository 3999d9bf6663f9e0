//! The harness of the end-to-end tests: a real Envoy with the filter in it, clients that can send any bytes, and an
//! upstream whose responses the test chooses.
//!
//! In reading order: [`setup`] describes an Envoy, [`envoy`] is a running one, [`client`] speaks HTTP/1.1 to it byte
//! by byte, [`http2`] speaks HTTP/2 and gRPC. [`load`] sends many requests at once, [`open_loop`] sends without waiting
//! for responses. [`upstream`] is the service behind Envoy, [`prometheus`] reads its metrics. [`wire`] injects faults
//! into the connection to a Redis, [`certificates`] are for TLS. [`prometheus_server`] is a Prometheus that scrapes the
//! metrics, [`shipped_files`] reads and checks YAML. [`probe`] is the filter that checks facts about Envoy itself,
//! [`gateway`] runs the scenarios that the hostile host runs, too.
//!
//! Nothing here knows what the filter should do; that is in the tests.

pub mod certificates;
pub mod client;
pub mod envoy;
pub mod gateway;
pub mod http2;
pub mod load;
pub mod open_loop;
pub mod probe;
pub mod prometheus;
pub mod prometheus_server;
pub mod setup;
pub mod shipped_files;
pub mod upstream;
pub mod wire;

mod http1;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use harness::{canary, port, redis, redis_cluster, sha256_hex, wait};

/// Locks what a thread that has panicked may have left.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
