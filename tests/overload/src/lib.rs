//! Simulated upstreams that can be overloaded, callers of three tiers, and the workers of an Envoy that run the
//! filter's overload control, under a virtual clock. A world is determined by its scenario and its seed.
//!
//! [`judge`] compares each run with the table of section 12 of the specification. A model of Envoy's
//! `adaptive_concurrency` runs in the same worlds. In reading order: [`scenario`], [`upstream`], [`protection`],
//! [`workers`], [`gradient`], [`world`], [`judge`].

pub mod chance;
pub mod gradient;
pub mod judge;
pub mod protection;
pub mod scenario;
pub mod upstream;
pub mod workers;
pub mod world;
