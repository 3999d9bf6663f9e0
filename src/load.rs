//! The load on the upstream, as the workers of one Envoy see it together; and what follows from it.
//!
//! Workers count ([`signals`]), and hand in what they counted several times a second. It is added up in one record in
//! shared data; whoever hands in when a slot of time is over closes it, by pure functions: [`switch`] says which health
//! the bounds ask for, [`controller`] how much of the traffic is too much, [`shed`] who is turned away for it. Every
//! worker finds the outcome in the same record. Knows nothing of requests, Envoy or operators.

pub mod controller;
pub mod shed;
pub mod signals;
pub mod switch;
