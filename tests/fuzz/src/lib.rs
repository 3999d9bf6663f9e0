//! Bytes from outside, into the limiter's own functions.
//!
//! Everything that an operator, a client or Redis can send reaches the limiter as bytes. Each target takes such bytes
//! and panics where a property does not hold; the search changes the inputs of the corpus at random and hands them
//! over, always the same ones from the same seed. In reading order: [`targets`] (what must hold), [`corpus`] (where
//! the search starts), [`mutation`] (how an input becomes another), [`coverage`] (which inputs are worth keeping),
//! [`search`].

#[path = "../../common/mod.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::should_implement_trait,
    reason = "it belongs to the tests of the root crate"
)]
mod common;
pub mod corpus;
pub mod coverage;
pub mod mutation;
pub mod search;
pub mod targets;

pub use common::random::Random;
