//! The compiled filter in a hostile host.
//!
//! Loads the `.wasm` that Envoy would load and answers every host call that it makes, with Envoy's semantics, on clocks
//! that tests move and with failures that tests script. A callback that traps, runs out of fuel or takes more memory
//! than a VM may have ends the test with what had happened before.
//!
//! [`World`] is Envoys with their workers, [`Request`] what a client sends, [`redis`] the way there through the real
//! bridge, [`failures`] what goes wrong, [`secrets`] what must not show; [`costs`] and [`fuzz`] are built on them.

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
