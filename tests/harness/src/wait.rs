//! Waiting for something to become true, with a deadline and a word on what was waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
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
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands after 1970").as_secs_f64()
}

/// Held by a test that keeps every core busy, so that two of them do not measure each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Times at which this machine ran somebody else: a thread that wants to sleep for a millisecond was not woken
/// for several. Whatever a test times in such a moment says nothing about Envoy.
#[derive(Debug)]
pub struct Stalls {
    /// The watcher has the other one, and ends when it is the last.
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

    /// Ends; gives what was seen.
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
