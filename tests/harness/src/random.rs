//! Random numbers from a seed.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `bound - 1`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From 1 to `largest`, small numbers as likely as large ones.
    pub fn of_any_size(&mut self, largest: u64) -> u64 {
        let bits = self.below(64 - u64::from(largest.leading_zeros())) + 1;
        1 + self.below((u64::MAX >> (64 - bits)).min(largest - 1) + 1)
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(choices.len() as u64) as usize;
        choices[index]
    }
}

/// A number from an environment variable, with or without underscores; `default` if it is not set.
pub fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}: found {text:?}, wanted a number"))
    })
}

/// A seed that follows from the time.
pub fn new_seed() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970");
    since.as_nanos() as u64 % 1_000_000_000_000
}

/// The seed in an environment variable, or a new one. Printed, so that a failure can be reproduced.
pub fn seed_from_env(name: &str) -> u64 {
    let seed = number_from_env(name, new_seed());
    println!("{name}={seed}");
    seed
}
