//! TODO
pub mod chance;
pub mod envoy;
pub mod judge;
pub mod scenario;
pub mod upstream;
pub mod world;
