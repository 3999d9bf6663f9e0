//! Overload control: how much may be in flight to each upstream cluster, which requests wait, and which are shed.
//!
//! Pure: the time is an argument, what workers share is a trait ([`Shared`]), and what to do is polled. One
//! [`OverloadControl`] in each worker; call `handle_timeout` when `poll_timeout` is due, and after `admit`,
//! `finish` or `handle_timeout` call `poll_output` until it returns `None`.

mod admission_queue;
mod cluster;
mod cluster_record;
mod concurrency_limit;
mod health_detector;
mod parameters;
mod shared;
mod window;
mod worker;

pub use admission_queue::{AdmissionQueue, Rank};
pub use cluster_record::{ClusterRecord, WorkerEntry};
pub use concurrency_limit::{ConcurrencyLimit, Estimate, State};
pub use health_detector::{HealthDetector, Reason, Signals};
pub use parameters::Parameters;
pub use shared::{ClusterId, Gauge, Gauges, Shared};
pub use window::{CallerCounts, CallerObservations, Observations, Outcome};
pub use worker::{Admission, Arrival, ClusterReport, Output, OverloadControl, RequestId, rotating_place};
