//! The compiled filter in a hostile host.
//!
//! Loads the `.wasm` that Envoy would load and implements every host call with Envoy's semantics. Tests control the
//! clocks and script failures. A callback that traps, runs out of fuel or exceeds the memory of a VM fails the test,
//! with the history of callbacks and host calls.
//!
//! [`World`] is a set of Envoys with their workers, [`Request`] is a client's request, [`redis`] the connection to
//! Redis through the real bridge, [`failures`] scripts failing host calls, [`secrets`] searches all outputs for
//! secrets. [`costs`] and [`fuzz`] build on these.

pub mod costs;
mod exchange;
pub mod failures;
pub mod fuzz;
mod guest;
mod imports;
mod module;
pub mod process;
pub mod redis;
mod request;
pub mod secrets;
mod state;
mod vm;
mod world;

pub use exchange::Id;
pub use module::path;
pub use request::{Forwarded, Request, Response};
pub use state::{Headers, HttpCall, MAX_MEMORY_BYTES};
pub use vm::{MAX_FUEL, Vm};
pub use world::{LIMITER, Setup, World};
