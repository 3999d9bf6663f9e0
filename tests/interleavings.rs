//! Compare-and-swap under every interleaving of several workers, explored by shuttle.
//!
//! Every host call is one step, before which any other worker may run: Envoy's shared data is a map under a lock.
//! Shuttle runs a model once for each order of the steps, depth first; nothing is sampled. Each test prints the number
//! of orders. One test breaks compare-and-swap, which has to be detected.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN, available_pico};
use dynamic_rate_limiter::identity::Network;
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::record_key::keyed_bucket_key;
use dynamic_rate_limiter::store::{AddressTable, Conflict, SharedData, Taken, take_keyed};
use dynamic_rate_limiter::time::StoreTime;
use harness::{SECOND, limit};
use shuttle::scheduler::DfsScheduler;
use shuttle::thread;

const TTL: Duration = Duration::from_secs(60);

/// A hundred thousandth of a token per microsecond: the steps of a run refill less than a token.
const RATE: u64 = 10_000_000;

/// Envoy's shared data, with a switch of workers at every call, and a clock that each read advances.
struct SteppedData {
    state: Mutex<State>,
    /// Read before every call: the point at which shuttle may switch workers.
    step: shuttle::sync::atomic::AtomicUsize,
    /// Whether workers may also switch between a read and the clock. With three of them, that makes too many
    /// orders for a test that runs every time.
    steps_at_clock: bool,
    /// Whether a write compares the version, as in Envoy.
    compares: bool,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, (Vec<u8>, u32)>,
    last_version: u32,
    now_us: u64,
}

impl SteppedData {
    fn new() -> Self {
        let state = State { now_us: SECOND, ..State::default() };
        Self { state: Mutex::new(state), step: Default::default(), steps_at_clock: false, compares: true }
    }

    fn call<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        self.step.load(Ordering::SeqCst);
        self.with(act)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("no worker has panicked"))
    }
}

impl SharedData for SteppedData {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.call(|state| state.records.get(key).cloned())
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        self.call(|state| {
            let stored = state.records.get(key).map(|(_, version)| *version);
            if self.compares && stored != version {
                return Err(Conflict);
            }
            state.last_version += 1;
            state.records.insert(key.to_owned(), (value.to_vec(), state.last_version));
            Ok(())
        })
    }

    fn changes(&self) -> Option<u64> {
        Some(0)
    }

    fn announce_change(&self) {}

    fn now(&self) -> StoreTime {
        if self.steps_at_clock {
            self.step.load(Ordering::SeqCst);
        }
        self.with(|state| {
            state.now_us += 1;
            StoreTime::from_micros(state.now_us)
        })
    }
}

/// Runs `model` under every interleaving; returns their number.
fn explore(model: impl Fn() + Send + Sync + 'static) -> usize {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let scheduler = DfsScheduler::new(None, false);
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let orders = runs.load(Ordering::Relaxed);
    println!("{orders} orders");
    orders
}

/// [`explore`], which has to find more than `bound` orders.
fn explore_more_than(bound: usize, model: impl Fn() + Send + Sync + 'static) {
    let orders = explore(model);
    assert!(orders > bound, "{orders}");
}

/// Runs a worker for each of these at once; returns their results in the same order.
fn at_once<W: Send + 'static, T: Send + 'static>(
    workers: impl IntoIterator<Item = W>,
    run: impl Fn(W) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let spawn = |worker| {
        let run = run.clone();
        thread::spawn(move || run(worker))
    };
    let threads: Vec<_> = workers.into_iter().map(spawn).collect();
    threads.into_iter().map(|thread| thread.join().expect("a worker that ends")).collect()
}

/// Each worker takes a token from one new bucket.
fn take_from_one_bucket(data: SteppedData, workers: usize, limit: Limit) -> Vec<Taken> {
    let (data, key) = (Arc::new(data), keyed_bucket_key("test", "pro"));
    at_once(0..workers, move |_| take_keyed(&*data, &key, limit).expect("no contention").value)
}

/// Exactly `min(requests, capacity)` were admitted, and no two of them have the same token.
fn assert_exact(taken: &[Taken], limit: Limit) {
    let admitted: Vec<_> = taken.iter().filter(|taken| taken.verdict.outcome == Outcome::Admitted).collect();
    assert_eq!(admitted.len(), taken.len().min(limit.capacity() as usize), "{taken:?}");
    let remaining: BTreeSet<_> = admitted.iter().map(|taken| taken.verdict.remaining).collect();
    assert_eq!(remaining.len(), admitted.len(), "a token was spent twice: {taken:?}");
}

#[test]
fn three_workers_create_one_bucket_and_take_from_it() {
    for capacity in 1..=2 {
        let limit = limit(capacity, RATE);
        explore_more_than(100, move || {
            assert_exact(&take_from_one_bucket(SteppedData::new(), 3, limit), limit)
        });
    }
}

#[test]
fn two_workers_take_from_one_bucket_with_steps_at_the_clock() {
    let limit = limit(1, RATE);
    explore_more_than(50, move || {
        let data = SteppedData { steps_at_clock: true, ..SteppedData::new() };
        assert_exact(&take_from_one_bucket(data, 2, limit), limit);
    });
}

#[test]
fn a_compare_and_swap_without_the_comparison_is_detected() {
    let limit = limit(1, RATE);
    let explored = catch_unwind(AssertUnwindSafe(|| {
        explore(move || {
            let broken = SteppedData { compares: false, ..SteppedData::new() };
            assert_exact(&take_from_one_bucket(broken, 2, limit), limit);
        })
    }));
    assert!(explored.is_err(), "two workers spend one token in some order, and no order showed it");
}

fn network(number: u8) -> Network {
    Network::of_source(format!("10.0.0.{number}").as_bytes(), 64)
}

/// A table of two buckets in one full record, and then a worker for each of `callers`.
///
/// Afterwards there are at most the tokens before, less the taken ones, plus the refill: an evicted caller that returns
/// has no more tokens than it would have had, and a new one starts with at most the tokens of the bucket it replaces.
fn take_from_a_full_record(stored: [(u8, u32); 2], callers: [u8; 3]) -> Vec<(u8, Taken)> {
    let limit = limit(3, RATE);
    let data = Arc::new(SteppedData::new());
    let table = AddressTable::open(&*data, "test", 2, (1, 2)).expect("no contention");
    for (number, takes) in stored {
        for _ in 0..takes {
            let taken = table.take(&*data, network(number), limit, TTL).expect("no contention");
            assert_eq!(taken.value.verdict.outcome, Outcome::Admitted);
        }
    }
    let before = tokens(&data, limit);
    let shared = Arc::clone(&data);
    let taken = at_once(callers, move |number| {
        let taken = table.take(&*shared, network(number), limit, TTL).expect("no contention");
        (number, taken.value)
    });
    let admitted = admitted(&taken) as u64;
    // The most reads of the clock, each a microsecond in which both buckets refill.
    let refilled = 2 * 30 * RATE;
    assert!(
        tokens(&data, limit) + admitted * PICO_PER_TOKEN <= before + refilled,
        "a token was minted: {taken:?}"
    );
    taken
}

fn admitted(taken: &[(u8, Taken)]) -> usize {
    taken.iter().filter(|(_, taken)| taken.verdict.outcome == Outcome::Admitted).count()
}

/// All tokens of the record, in units of 10⁻¹².
fn tokens(data: &SteppedData, limit: Limit) -> u64 {
    let (record, now_us) = data.with(|state| {
        let key = "rate_limiter/test/address/0";
        (state.records.get(key).map(|(bytes, _)| bytes.clone()).unwrap_or_default(), state.now_us)
    });
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let buckets = record.chunks_exact(24).map(|entry| {
        let bucket = Bucket { tokens_pico: number(&entry[8..16]), refilled_at_us: number(&entry[16..]) };
        available_pico(Some(bucket), limit, now_us)
    });
    buckets.sum()
}

#[test]
fn new_callers_that_race_for_a_full_record_mint_nothing() {
    // One bucket has two tokens left and the other one: three new callers can spend only these.
    explore_more_than(100, || {
        let taken = take_from_a_full_record([(1, 1), (2, 2)], [3, 4, 5]);
        assert_eq!(admitted(&taken), 3, "every token is spent: {taken:?}");
    });
}

#[test]
fn one_address_on_three_workers_is_one_bucket_in_a_full_record() {
    explore_more_than(100, || {
        let taken = take_from_a_full_record([(1, 2), (2, 1)], [1, 1, 3]);
        let own =
            taken.iter().filter(|(number, taken)| *number == 1 && taken.verdict.outcome == Outcome::Admitted);
        assert!(own.count() >= 1, "the caller's own token is not lost to a new caller: {taken:?}");
    });
}

#[test]
fn a_rejected_caller_stays_rejected_while_new_callers_race() {
    // Address 1 has spent all its tokens; 2 has one left, and two new callers and 1 itself race.
    explore_more_than(100, || {
        let taken = take_from_a_full_record([(1, 3), (2, 2)], [1, 3, 4]);
        for (number, taken) in &taken {
            assert!(*number != 1 || taken.verdict.outcome == Outcome::Rejected, "{taken:?}");
        }
        assert_eq!(admitted(&taken), 1, "the one remaining token: {taken:?}");
    });
}
