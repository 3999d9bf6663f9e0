//! The check of the admin token takes the same time for every token, wrong or right.
//!
//! A timed test, which is ignored in CI: run it on a machine without other load, and read its output.
//!
//! ```text
//! cargo test --release --test constant_time -- --ignored --nocapture
//! ```
//!
//! It works as `dudect` does (Reparaz, Balasch, Verbauwhede 2017): two kinds of input come in random order, each call
//! is timed, and Welch's t shows whether the means differ: above 10 they do, below 4.5 no difference was found.

use std::hint::black_box;
use std::time::Instant;

use dynamic_rate_limiter::identity::KeyHash;
use harness::random::{Random, seed_from_env};
use harness::{FakeData, FakeRequest, SECOND, START, TOKEN, decide, limiter};

/// Timed calls for each pair.
const CALLS: u32 = 400_000;

/// The bound of `dudect` for a certain leak.
const CERTAIN: f64 = 10.0;

/// Running mean and variance of the times of one kind of input (Welford).
#[derive(Default)]
struct Times {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Times {
    fn add(&mut self, time: f64) {
        self.count += 1.0;
        let delta = time - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (time - self.mean);
    }

    fn squared_error(&self) -> f64 {
        self.squares / (self.count - 1.0) / self.count
    }
}

/// Welch's t of the times that `call` takes with 0 and with 1. The slowest tenth, in which other programs ran,
/// is left out.
fn t(random: &mut Random, mut call: impl FnMut(usize)) -> f64 {
    let mut timed: Vec<(usize, u64)> = Vec::new();
    for _ in 0..CALLS {
        let kind = random.below(2) as usize;
        let start = Instant::now();
        call(kind);
        timed.push((kind, start.elapsed().as_nanos() as u64));
    }
    let mut sorted: Vec<u64> = timed.iter().map(|(_, ns)| *ns).collect();
    sorted.sort_unstable();
    let longest = sorted[sorted.len() * 9 / 10];
    let mut times = [Times::default(), Times::default()];
    timed.iter().filter(|(_, ns)| *ns <= longest).for_each(|(kind, ns)| times[*kind].add(*ns as f64));
    let [one, other] = times;
    println!("  means {:.1} and {:.1} ns", one.mean, other.mean);
    (one.mean - other.mean) / (one.squared_error() + other.squared_error()).sqrt()
}

#[test]
#[ignore = "timed: run it alone, on a machine without other load"]
fn the_time_of_a_comparison_does_not_depend_on_where_two_hashes_differ() {
    let mut random = Random::new(seed_from_env("TIMING_SEED"));
    let right = KeyHash::of(TOKEN.as_bytes());
    let hex = right.to_hex();
    let with =
        |first: &str, last: &str| format!("{first}{}{last}", &hex[first.len()..hex.len() - last.len()]);
    let other = |digits: &str| if digits.starts_with('0') { "1" } else { "0" };
    let differs_first = KeyHash::from_hex(&with(other(&hex), "")).expect("a hash");
    let differs_last = KeyHash::from_hex(&with("", other(&hex[63..]))).expect("a hash");
    for (what, pair) in [
        ("the first digit or the last", [differs_first, differs_last]),
        ("the first digit or none", [differs_first, right]),
    ] {
        let t = t(&mut random, |kind| {
            for _ in 0..8 {
                black_box(black_box(pair[kind]).matches(black_box(right)));
            }
        });
        println!("{what}: t = {t:.2}");
        assert!(t.abs() < CERTAIN, "{what}: t = {t:.2}");
    }
}

#[test]
#[ignore = "timed: run it alone, on a machine without other load"]
fn a_comparison_that_stops_at_the_first_difference_is_detected() {
    let mut random = Random::new(seed_from_env("TIMING_SEED"));
    let hex = KeyHash::of(TOKEN.as_bytes()).to_hex().into_bytes();
    let [mut differs_first, mut differs_last] = [hex.clone(), hex.clone()];
    (differs_first[0], differs_last[63]) = (b'x', b'x');
    let pair = [differs_first, differs_last];
    let t = t(&mut random, |kind| {
        for _ in 0..8 {
            let same =
                black_box(&pair[kind]).iter().zip(black_box(&hex)).position(|(one, other)| one != other);
            black_box(same);
        }
    });
    println!("the first digit or the last, with a loop that stops early: t = {t:.2}");
    assert!(t.abs() > CERTAIN, "the measurement finds no difference: t = {t:.2}");
}

#[test]
#[ignore = "timed: run it alone, on a machine without other load"]
fn the_time_of_a_response_does_not_depend_on_how_much_of_a_wrong_token_is_right() {
    let mut random = Random::new(seed_from_env("TIMING_SEED"));
    // Each call begins with an empty login throttle, so that every response is a 403.
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    let mut wrong = [TOKEN.to_owned(), TOKEN.to_owned()];
    wrong[0].replace_range(..1, "#");
    wrong[1].replace_range(TOKEN.len() - 1.., "#");
    let requests = wrong.map(|token| FakeRequest::post("/system/health").with("x-admin-token", token));
    let t = t(&mut random, |kind| {
        data.advance(61 * SECOND);
        black_box(decide(&mut limiter, &data, black_box(&requests[kind]), START));
    });
    println!("the first byte or the last: t = {t:.2}");
    assert!(t.abs() < CERTAIN, "the first byte or the last: t = {t:.2}");
}
