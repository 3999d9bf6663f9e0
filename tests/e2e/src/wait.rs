//! Waiting for something to become true, with a deadline and a word on what was waited for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a change inside Envoy may take to show, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(15);

/// Between two looks. Short against everything the tests wait for.
const PAUSE: Duration = Duration::from_millis(20);

/// The most that one look and the pause after it count for. A virtual machine may stand still for
/// a minute between two looks, and then nobody had a minute to do anything.
const MOST_PER_LOOK: Duration = Duration::from_secs(1);

/// Asks `probe` until it gives a value; `None` when `limit` passes first.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let mut waited = Duration::ZERO;
    loop {
        let looked_at = Instant::now();
        let value = probe();
        if value.is_some() || waited >= limit {
            return value;
        }
        std::thread::sleep(PAUSE);
        waited += looked_at.elapsed().min(MOST_PER_LOOK);
    }
}

/// Asks `probe` until it gives a value.
///
/// # Panics
///
/// When `limit` passes first; the message says `what` was waited for.
#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, probe: impl FnMut() -> Option<T>) -> T {
    match poll(limit, probe) {
        Some(value) => value,
        None => panic!("not within {limit:?}: {what}"),
    }
}

/// [`until_within`] the usual time, [`SOON`].
#[track_caller]
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(SOON, what, probe)
}

/// Unix time in seconds.
///
/// # Panics
///
/// When this machine's clock stands before 1970.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands after 1970").as_secs_f64()
}

/// Held by a test that keeps every core busy, so that two of them do not measure each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}
