//! The search: one input after the other, the same ones from the same seed.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::mutation::mutated;
use crate::targets::Target;
use crate::{Random, corpus, coverage};

/// Most inputs that a search adds to those of the corpus.
const MAX_POOL: usize = 20_000;

/// Panics are kept and not printed while an input is checked.
static HOOK: Once = Once::new();

thread_local! {
    static IS_CHECKING: Cell<bool> = const { Cell::new(false) };
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Most inputs that are kept in the corpus of a target besides those that people wrote.
const MAX_KEPT: usize = 12;

#[derive(Clone, Copy, Debug)]
pub enum Until {
    Inputs(u64),
    Time(Duration),
}

/// An input for which a property does not hold.
#[derive(Debug)]
pub struct Found {
    pub input: Vec<u8>,
    pub message: String,
    /// How many inputs were fine before it.
    pub number: u64,
}

/// What a search without a find has done.
#[derive(Debug, Default)]
pub struct Searched {
    pub inputs: u64,
    /// How many counters were reached; none where the build does not count.
    pub reached: usize,
    /// Those that reached something first, the corpus included; empty where the build does not count.
    pub pool: Vec<Vec<u8>>,
}

/// Hands the corpus to the target, then changed inputs until it is time to stop.
pub fn search(target: Target, seed: u64, until: Until) -> Result<Searched, Found> {
    let start = Instant::now();
    let mut random = Random::new(seed);
    let mut pool = corpus::inputs(target);
    let mut reached = HashSet::new();
    let mut searched = Searched::default();
    coverage::take();
    for input in &pool {
        checked(target, input, searched.inputs)?;
        searched.inputs += 1;
        reached.extend(coverage::take());
    }
    loop {
        // The clock is asked now and then: that it is dear must not decide how many inputs there are.
        let is_over = match until {
            Until::Inputs(most) => searched.inputs >= most,
            Until::Time(most) => searched.inputs % 64 == 0 && start.elapsed() >= most,
        };
        if is_over {
            break;
        }
        let [parent, other] = [(); 2].map(|()| &pool[random.below(pool.len() as u64) as usize]);
        let input = mutated(parent, other, target.words, &mut random);
        checked(target, &input, searched.inputs)?;
        searched.inputs += 1;
        let now = coverage::take();
        if now.iter().any(|counter| !reached.contains(counter)) && pool.len() < MAX_POOL {
            reached.extend(now);
            pool.push(input);
        }
    }
    searched.reached = reached.len();
    if coverage::is_counted() {
        searched.pool = pool;
    }
    Ok(searched)
}

/// The few inputs of `pool` that together reach most: again and again the one that reaches most for its length.
pub fn minimised(target: Target, pool: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut reached: Vec<HashSet<u32>> = Vec::new();
    for input in &pool {
        coverage::take();
        let _ = checked(target, input, 0);
        reached.push(coverage::take().into_iter().map(|(counter, _)| counter).collect());
    }
    let mut chosen = Vec::new();
    while chosen.len() < MAX_KEPT {
        let worth = |index: &usize| (reached[*index].len() << 10) / (pool[*index].len() + 64);
        let Some(best) = (0..pool.len()).max_by_key(worth).filter(|best| !reached[*best].is_empty()) else {
            break;
        };
        let news = std::mem::take(&mut reached[best]);
        reached.iter_mut().for_each(|other| other.retain(|counter| !news.contains(counter)));
        chosen.push(pool[best].clone());
    }
    chosen
}

/// Whether the property holds for `input`, the `number`-th.
pub fn checked(target: Target, input: &[u8], number: u64) -> Result<(), Found> {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match IS_CHECKING.get() {
            true => MESSAGE.set(panic.to_string()),
            false => usual(panic),
        }));
    });
    IS_CHECKING.set(true);
    let held = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    IS_CHECKING.set(false);
    held.map_err(|_| Found { input: input.to_vec(), message: MESSAGE.take(), number })
}
