//! Which parts of the limiter an input reaches, in a build that counts it.
//!
//! `cargo xtask soak` builds without, and the search then changes the inputs of the corpus alone. A build with
//! `RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3
//! -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"` and `--target x86_64-unknown-linux-gnu` keeps a counter for
//! every edge, and inputs that reach a new one join the corpus.

use std::sync::Mutex;

/// Where the counters are, a range for each compiled unit: first address and length.
static COUNTERS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by each compiled unit before `main`, with its counters.
///
/// # Safety
///
/// The compiler calls it with the first and the end of an array that lives as long as the program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let (start, end) = (start as usize, end as usize);
    if let Ok(mut counters) = COUNTERS.lock()
        && !counters.iter().any(|(known, _)| *known == start)
    {
        counters.push((start, end - start));
    }
}

pub fn is_counted() -> bool {
    COUNTERS.lock().is_ok_and(|counters| !counters.is_empty())
}

/// What was reached since this was last called: the number of each counter, and the size of its count in powers of two.
pub fn take() -> Vec<(u32, u8)> {
    let mut reached = Vec::new();
    let mut number = 0_u32;
    let Ok(counters) = COUNTERS.lock() else { return reached };
    for (start, length) in counters.iter() {
        // SAFETY: the array lives as long as the program, and the search runs on one thread.
        let counts = unsafe { std::slice::from_raw_parts_mut(*start as *mut u8, *length) };
        for count in counts {
            if *count > 0 {
                reached.push((number, count.ilog2() as u8));
                *count = 0;
            }
            number += 1;
        }
    }
    reached
}
