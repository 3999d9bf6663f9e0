//! Overload control: how much may be in flight to each upstream cluster, which requests wait, which are shed, and
//! health.
//!
//! Pure: the time is an argument, what workers share is a trait ([`Shared`]), and what to do is polled. There is one
//! [`OverloadControl`] in each worker; call `handle_timeout` when `poll_timeout` is due, and after each call
//! `poll_output` until it returns `None`. In reading order: [`parameters`], `observations`, `latency`,
//! `concurrency_limit`, `health_detector`, `shared`, `cluster`, `worker`.

mod cluster;
mod concurrency_limit;
mod health_detector;
mod latency;
mod observations;
pub mod parameters;
mod shared;
mod worker;

pub use cluster::ClusterRecord;
pub use health_detector::{DegradeReason, Signals};
pub use observations::RequestOutcome;
pub use shared::{ClusterId, FORMAT, Gauge, Shared};
pub use worker::{Output, OverloadControl, OverloadReport, PlaceRequest, measured_reason, rotating_order};

#[cfg(test)]
#[path = "../tests/overload_units/mod.rs"]
mod tests;
