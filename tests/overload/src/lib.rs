//! Upstreams that can be overloaded, callers of three tiers, and between them the workers of an Envoy that run the
//! filter's own overload control, under a virtual clock. A world follows from its scenario and its seed.
//!
//! [`judge`] holds each run to the table of section 12 of the specification. Envoy's `adaptive_concurrency` is modelled
//! beside it, in the same worlds. In reading order: [`scenario`], [`upstream`], [`protection`], [`workers`],
//! [`gradient`], [`world`], [`judge`].

pub mod chance;
pub mod gradient;
pub mod judge;
pub mod protection;
pub mod scenario;
pub mod upstream;
pub mod workers;
pub mod world;
