//! Overload, from both ends: an upstream that can bear only so much, and callers who ask for more.
//!
//! In reading order: [`upstream`] is the server of limited capacity, [`plan`] says who asks for how much and when,
//! [`callers`] ask, [`report`] says what became of it, second by second; [`table`] and [`plot`] show reports side by
//! side. What stands between the two ends is not known here: `cargo xtask bench overload` puts Envoys there.

pub mod callers;
pub mod plan;
pub mod plot;
pub mod report;
pub mod table;
pub mod upstream;
