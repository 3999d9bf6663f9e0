//! Who asks for how much, and when: the same plan with the same seed is the same arrivals to the microsecond.

use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// How many tiers there are.
pub const TIERS: usize = 3;

/// The callers' tiers, the least important first.
pub const TIER_NAMES: [&str; TIERS] = ["free", "pro", "enterprise"];

/// The tiers' shares of what is asked. At ten times the capacity enterprise callers ask for half of it, pro callers
/// for one and a half times, and free callers for eight times.
pub const SHARES: [f64; TIERS] = [0.8, 0.15, 0.05];

/// How many callers a tier has, each with an address or a key of its own.
pub const CALLERS: [u32; TIERS] = [2_000, 200, 40];

/// What is asked, over time, as multiples of the capacity.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args, Deserialize, Serialize)]
pub struct Plan {
    /// What the upstream can serve, in requests a second
    #[arg(long, default_value_t = 100.0)]
    pub capacity: f64,
    /// Seconds of normal load before the overload
    #[arg(long, default_value_t = 10)]
    pub before: u32,
    /// Seconds of overload
    #[arg(long, default_value_t = 30)]
    pub overload: u32,
    /// Seconds of normal load after the overload
    #[arg(long, default_value_t = 30)]
    pub after: u32,
    /// How many times the capacity is asked for in overload
    #[arg(long, default_value_t = 10.0)]
    pub times: f64,
    /// The same for the normal load
    #[arg(long, default_value_t = 0.5)]
    pub normal: f64,
    /// Decides who asks when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub patience: Patience,
}

/// How a caller's client behaves.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args, Deserialize, Serialize)]
pub struct Patience {
    /// How long a client waits for an answer, in milliseconds
    #[arg(long, default_value_t = 1_000)]
    pub timeout_ms: u64,
    /// After how many milliseconds, tries and pauses included, the answer is of no use any more
    #[arg(long, default_value_t = 3_000)]
    pub deadline_ms: u64,
    /// How often a client tries again after a server error or a timeout, unless a Retry-After leads past the deadline
    #[arg(long, default_value_t = 2)]
    pub retries: u32,
    /// The pause before the first retry is half to one and a half of this, then twice as long each time
    #[arg(long, default_value_t = 200)]
    pub back_off_ms: u64,
}

/// One request of a caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When, from the start.
    pub at: Duration,
    /// Whose: an index into [`TIER_NAMES`].
    pub tier: usize,
    /// Which caller of that tier.
    pub caller: u32,
}

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Normal load, before.
    Before,
    /// More than the upstream can bear.
    Overload,
    /// Normal load, after.
    After,
}

impl Phase {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Before => "before",
            Phase::Overload => "overload",
            Phase::After => "after",
        }
    }
}

impl Plan {
    /// How long arrivals go on.
    pub fn seconds(&self) -> u32 {
        self.before + self.overload + self.after
    }

    /// What is going on in this second, counted from zero.
    pub fn phase(&self, second: u32) -> Phase {
        if second < self.before {
            Phase::Before
        } else if second < self.before + self.overload {
            Phase::Overload
        } else {
            Phase::After
        }
    }

    /// How many requests a second are asked for, on average.
    pub fn rate(&self, phase: Phase) -> f64 {
        let times = if phase == Phase::Overload { self.times } else { self.normal };
        self.capacity * times
    }

    /// Everything that is asked, in order: a Poisson process, which is what many callers who know nothing of each
    /// other are together.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let mut rng = Rng::with_seed(self.seed);
        let mut arrivals = Vec::new();
        for second in 0..self.seconds() {
            let rate = self.rate(self.phase(second));
            let mut at = f64::from(second);
            loop {
                at += -(1.0 - rng.f64()).ln() / rate;
                if at >= f64::from(second + 1) {
                    break;
                }
                let tier = tier(rng.f64());
                let caller = rng.u32(0..CALLERS[tier]);
                arrivals.push(Arrival { at: Duration::from_secs_f64(at), tier, caller });
            }
        }
        arrivals
    }
}

fn tier(chance: f64) -> usize {
    let mut below = 0.0;
    for (tier, share) in SHARES.into_iter().enumerate() {
        below += share;
        if chance < below {
            return tier;
        }
    }
    0
}

impl Arrival {
    /// The header by which the caller is known: an address of its own for free callers, else an API key.
    pub fn identity(&self) -> (&'static str, String) {
        let caller = self.caller;
        match self.tier {
            0 => ("x-forwarded-for", format!("10.1.{}.{}", caller / 250, caller % 250 + 1)),
            tier => ("x-api-key", key(tier, caller)),
        }
    }
}

/// The API key of a caller.
pub fn key(tier: usize, caller: u32) -> String {
    format!("{}-{caller}", TIER_NAMES[tier])
}

#[cfg(test)]
impl Plan {
    pub(crate) fn example() -> Self {
        Self {
            capacity: 100.0,
            before: 10,
            overload: 30,
            after: 30,
            times: 10.0,
            normal: 0.5,
            seed: 1,
            patience: Patience { timeout_ms: 1_000, deadline_ms: 3_000, retries: 2, back_off_ms: 200 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase, Plan, SHARES};

    #[test]
    fn arrivals_are_as_many_as_planned_and_mixed_as_planned() {
        let plan = Plan::example();
        let arrivals = plan.arrivals();
        let of =
            |phase| arrivals.iter().filter(move |arrival| plan.phase(arrival.at.as_secs() as u32) == phase);
        for (phase, wanted) in [(Phase::Before, 500.0), (Phase::Overload, 30_000.0), (Phase::After, 1_500.0)]
        {
            let found = of(phase).count() as f64;
            assert!((found - wanted).abs() < 5.0 * f64::sqrt(wanted), "{}: {found}", phase.name());
        }
        for (tier, share) in SHARES.into_iter().enumerate() {
            let found = of(Phase::Overload).filter(|arrival| arrival.tier == tier).count() as f64 / 30_000.0;
            assert!((found - share).abs() < 0.02, "{tier}: {found}");
        }
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
    }

    #[test]
    fn a_seed_decides_all() {
        let plan = Plan::example();
        assert_eq!(plan.arrivals(), plan.arrivals());
        assert_ne!(plan.arrivals(), Plan { seed: 2, ..plan }.arrivals());
    }
}
