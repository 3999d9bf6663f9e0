//! On a real Redis, the bucket in Lua makes the same decisions as the bucket in Rust, exact to the last unit.
//!
//! Needs a `redis-server` on the `PATH`, or its path in `REDIS_SERVER`. The long random run is
//!
//! ```text
//! BUCKET_OPERATIONS=20_000_000 cargo test --release --test redis_script -- --nocapture at_random
//! ```
//!
//! A failure prints the seed that repeats it in `BUCKET_SEED`.

mod case_by_case;
mod keys;
mod lua_bucket;
mod random;

use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN};
use dynamic_rate_limiter::limit::{Limit, MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use dynamic_rate_limiter::store::redis::script::Take;
use harness::{SECOND, limit};
use lua_bucket::{Client, LuaBucket, Stored, decimal};

/// A year of 365 days, in microseconds.
const YEAR: u64 = 365 * 24 * 3600 * SECOND;

/// The start of 2024 and of 2200, in Unix microseconds.
const YEAR_2024: u64 = 1_704_067_200 * SECOND;
const YEAR_2200: u64 = 7_258_118_400 * SECOND;

/// Takes from the bucket `key`, which is kept for an hour at least.
fn take_of(key: &str, limit: Limit) -> Take {
    Take { key: key.to_owned(), limit, other_limit: limit, ttl_ms: 3_600_000 }
}
