//! Several Envoys with one Redis: exact limits, the deny cache and shared health.
//!
//! Each Envoy has its own shared data and clock; Redis is in memory. The bytes between them are the real protocol.
//! Random cases are in `tests/simulation`.

mod commands;
mod deny_cache;
mod health;
mod world;

use dynamic_rate_limiter::admission::Decision;
use harness::{FakeRequest, SECOND, keyed, replied};
use world::{Name, UNIX_START, Worker, World, answer, kind, only};

const MS: u64 = 1_000;

const POLL_US: u64 = dynamic_rate_limiter::health_sync::POLL_INTERVAL.as_micros() as u64;

/// The default timeout of a request that waits for Redis.
const TIMEOUT: u64 = 20 * MS;

/// A worker, another one of the same Envoy, and one of another Envoy.
const WORKER: Name = (0, 0);
const OTHER: Name = (0, 1);
const ELSEWHERE: Name = (1, 0);

/// A tier of one token, refilled in ten seconds.
const SLOW: &str =
    r#""default_tier": "slow", "tiers": {"slow": {"base": {"capacity": 1, "refill_rate": 0.1}}}"#;

/// The key of the health that an operator sets.
const HEALTH: &str = "system:health:status";

const DEGRADED: &str = r#"{"status":"DEGRADED"}"#;

fn get() -> FakeRequest {
    FakeRequest::get("/")
}
