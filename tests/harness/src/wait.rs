//! Waiting for a condition, with a deadline and a description.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a change inside Envoy may take to be visible, on a machine that also runs other tests.
pub const SOON: Duration = Duration::from_secs(15);

/// The pause between two probes; much shorter than what the tests wait for.
const PAUSE: Duration = Duration::from_millis(20);

/// How much one probe and its pause count at most. A virtual machine may be stalled for a minute between two probes; in
/// that time no process could make progress.
const MAX_PER_PROBE: Duration = Duration::from_secs(1);

/// Calls `probe` until it returns a value; `None` if `limit` passes before that.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let mut waited = Duration::ZERO;
    loop {
        let probed_at = Instant::now();
        let value = probe();
        if value.is_some() || waited >= limit {
            return value;
        }
        std::thread::sleep(PAUSE);
        waited += probed_at.elapsed().min(MAX_PER_PROBE);
    }
}

/// Calls `probe` until it returns a value; panics after `limit`.
#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, probe: impl FnMut() -> Option<T>) -> T {
    match poll(limit, probe) {
        Some(value) => value,
        None => panic!("not within {limit:?}: {what}"),
    }
}

/// [`until_within`] [`SOON`].
#[track_caller]
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(SOON, what, probe)
}

/// Reads a value until it is as wanted, and returns it; panics with the last value after `limit`.
#[track_caller]
pub fn for_value<T: Debug>(
    limit: Duration,
    what: &str,
    mut read: impl FnMut() -> T,
    is_wanted: impl Fn(&T) -> bool,
) -> T {
    let mut last = None;
    let reached = poll(limit, || is_wanted(last.insert(read())).then_some(()));
    match (reached, last) {
        (Some(()), Some(value)) => value,
        (_, last) => panic!("not within {limit:?}: {what}, but {last:?}"),
    }
}

/// Unix time in seconds.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64()
}

/// Held by a test that keeps every core busy, so that two of them do not measure each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Detects the times in which this machine is stalled: a thread that sleeps for a millisecond is woken several
/// milliseconds late. Times that a test measures meanwhile are not Envoy's.
#[derive(Debug)]
pub struct Stalls {
    /// The watcher holds another reference, and ends when it is the last one.
    wanted: Arc<()>,
    watcher: JoinHandle<Vec<(Instant, Instant)>>,
}

/// How long the watcher sleeps, and how much longer than that counts as a stall.
const NAP: Duration = Duration::from_millis(1);
const STALL: Duration = Duration::from_millis(4);

impl Stalls {
    pub fn watch() -> Self {
        let wanted = Arc::new(());
        let still_wanted = Arc::clone(&wanted);
        let watcher = std::thread::spawn(move || {
            let mut stalls = Vec::new();
            while Arc::strong_count(&still_wanted) > 1 {
                let began = Instant::now();
                std::thread::sleep(NAP);
                if began.elapsed() > NAP + STALL {
                    stalls.push((began + NAP, Instant::now()));
                }
            }
            stalls
        });
        Self { wanted, watcher }
    }

    pub fn end(self) -> Stalled {
        drop(self.wanted);
        Stalled(self.watcher.join().expect("the watcher only sleeps"))
    }
}

/// The stalls that [`Stalls`] has seen.
#[derive(Debug)]
pub struct Stalled(Vec<(Instant, Instant)>);

impl Stalled {
    /// How much of the time `took` from `from` on was stalled.
    pub fn within(&self, from: Instant, took: Duration) -> Duration {
        let to = from + took;
        let overlap = |(began, ended): &(Instant, Instant)| {
            (*ended).min(to).saturating_duration_since((*began).max(from))
        };
        self.0.iter().map(overlap).sum()
    }
}
