//! The compiled filter in a hostile host.
//!
//! Loads the `.wasm` that Envoy would load and implements every host call with Envoy's semantics. Tests control the
//! clocks and script failures. A callback that traps, runs out of fuel or exceeds the memory of a VM fails the test,
//! with the history of callbacks and host calls.
//!
//! [`World`] is a set of Envoys with their workers, [`Upstream`] answers the requests, [`redis`] is the connection to
//! Redis through the real bridge, [`failures`] scripts failing host calls, [`secrets`] searches all outputs for
//! secrets. [`costs`] and [`fuzz`] build on these. Requests and responses are those of the scenarios.

pub mod costs;
mod exchange;
pub mod failures;
pub mod fuzz;
mod guest;
mod imports;
mod module;
pub mod process;
pub mod redis;
pub mod secrets;
mod state;
mod vm;
mod world;

pub use exchange::{Forwarded, Id, Upstream};
pub use state::HttpCall;
pub use vm::Vm;
pub use world::{LIMITER, Setup, World};
