//! A load-aware rate limiter that stock Envoy and Istio load as a WebAssembly filter.
//!
//! It maps `X-API-Key` to a tier, takes one token a request from the caller's bucket, lets bursts through while
//! the system is healthy, sheds requests by tier when an upstream is overloaded, and answers `429` itself.
//!
//! Four things always hold:
//!
//! - **Safety.** For every bucket and every interval of the store's clock, admitted ≤ capacity + rate × elapsed.
//! - **Liveness.** A request whose bucket has a whole token is admitted, unless it is shed, its tier is blocked,
//!   `on_failure` denies it, or the store is contended.
//! - **Bounds.** Memory, loops and queues have a bound, whatever clients, operators and upstreams send.
//! - **No trap.** Nothing from outside makes the filter panic: bytes are never taken for text, nothing is
//!   indexed or unwrapped unchecked.
//!
//! In reading order: [`tier`], [`limit`] and [`bucket`] (limits and the arithmetic), [`identity`] (who is calling),
//! [`health`], [`config`] with [`json`] (what operators write), [`store`] (where buckets live), [`control`],
//! [`generation`] and [`documents`] (how changes reach every worker), [`charge`], [`redis_limiter`] and
//! [`health_sync`] (what many Envoys share), [`overload`] (how much may be in flight), [`in_force`] (what holds in a
//! worker), [`admission`] (the decision), [`requests`] (a request until it ends), [`admin`] with [`login_throttle`]
//! and `health_change`, [`headers`], [`metrics`], [`limiter`] (all of it in one worker), and last `host`, the only
//! code that knows Envoy.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::todo,
    clippy::unimplemented
)]

pub mod admin;
pub mod admission;
pub mod bucket;
pub mod callers;
pub mod charge;
pub mod codec;
pub mod config;
pub mod control;
pub mod credentials;
pub mod documents;
pub mod generation;
pub mod headers;
pub mod health;
mod health_change;
pub mod health_sync;
#[cfg(target_arch = "wasm32")]
mod host;
mod id_map;
pub mod identity;
pub mod in_force;
pub mod json;
pub mod limit;
pub mod limiter;
pub mod login_throttle;
pub mod measured_health;
pub mod metrics;
pub mod overload;
pub mod record_key;
pub mod redis_limiter;
pub mod request;
pub mod requests;
pub mod shown;
pub mod store;
pub mod tier;
pub mod time;
