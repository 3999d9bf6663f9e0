//! The harness, as the tests of the limiter name it.

#![allow(unused_imports, reason = "each test binary uses its own part")]

pub use harness::fake_redis as redis;
pub use harness::*;
