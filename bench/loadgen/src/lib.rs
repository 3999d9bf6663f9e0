//! Overload: an upstream with limited capacity, and callers that send more requests than that.
//!
//! In reading order: [`upstream`] is the server with limited capacity, [`plan`] defines when which caller sends a
//! request, [`callers`] send them, [`report`] counts the outcomes by second; [`table`] and [`plot`] compare reports.
//! What is between callers and upstream is not known here: `cargo xtask bench --overload` puts an Envoy there.

pub mod callers;
pub mod plan;
pub mod plot;
pub mod report;
pub mod table;
pub mod upstream;
