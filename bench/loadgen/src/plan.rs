//! When which caller sends a request: the same plan with the same seed gives the same arrivals, to the microsecond.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

pub const TIERS: usize = 3;

/// The callers' tiers, the least important first.
pub const TIER_NAMES: [&str; TIERS] = ["free", "pro", "enterprise"];

/// The tiers' shares of the load. At a load of ten times the capacity, enterprise callers send half of the capacity,
/// pro callers one and a half times, and free callers eight times.
pub const SHARES: [f64; TIERS] = [0.8, 0.15, 0.05];

/// How many callers a tier has, each with its own address or key.
pub const CALLERS: [u32; TIERS] = [2_000, 200, 40];

/// The load over time, as multiples of the capacity.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args, Deserialize, Serialize)]
pub struct Plan {
    /// The capacity of the upstream, in requests a second
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
    /// The load in overload, as a multiple of the capacity
    #[arg(long, default_value_t = 10.0)]
    pub times: f64,
    /// The normal load, as a multiple of the capacity
    #[arg(long, default_value_t = 0.5)]
    pub normal: f64,
    /// Decides which requests arrive when
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub client: ClientPolicy,
}

/// The timeouts and retries of a caller's client.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args, Deserialize, Serialize)]
pub struct ClientPolicy {
    /// How long a client waits for a response, in milliseconds
    #[arg(long, default_value_t = 1_000)]
    pub timeout_ms: u64,
    /// After how many milliseconds, retries and pauses included, a client gives up
    #[arg(long, default_value_t = 3_000)]
    pub deadline_ms: u64,
    /// How often a client retries after a server error or a timeout, unless a Retry-After is past the deadline
    #[arg(long, default_value_t = 2)]
    pub retries: u32,
    /// The pause before the first retry is half to one and a half of this, then twice as long each time
    #[arg(long, default_value_t = 200)]
    pub back_off_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// From the start.
    pub at: Duration,
    /// The caller's tier: an index into [`TIER_NAMES`].
    pub tier: usize,
    pub caller: u32,
}

/// A phase of the load: normal before and after the overload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Before,
    Overload,
    After,
}

impl Plan {
    pub fn seconds(&self) -> u32 {
        self.before + self.overload + self.after
    }

    /// Counted from zero, as all seconds.
    pub fn overload_seconds(&self) -> Range<u32> {
        self.before..self.before + self.overload
    }

    pub fn after_seconds(&self) -> Range<u32> {
        self.overload_seconds().end..self.seconds()
    }

    pub fn phase(&self, second: u32) -> Phase {
        let overload = self.overload_seconds();
        if second < overload.start {
            Phase::Before
        } else if second < overload.end {
            Phase::Overload
        } else {
            Phase::After
        }
    }

    /// The average load, in requests a second.
    pub fn rate(&self, phase: Phase) -> f64 {
        let times = if phase == Phase::Overload { self.times } else { self.normal };
        self.capacity * times
    }

    /// All requests in order: a Poisson process, as for many independent callers.
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
    (0..TIERS).find(|tier| chance < SHARES[..=*tier].iter().sum()).unwrap_or(0)
}

impl Arrival {
    /// The header that identifies the caller: an address for free callers, else an API key.
    pub fn identity(&self) -> (&'static str, String) {
        let caller = self.caller;
        match self.tier {
            0 => ("x-forwarded-for", format!("10.1.{}.{}", caller / 250, caller % 250 + 1)),
            tier => ("x-api-key", key(tier, caller)),
        }
    }
}

pub fn key(tier: usize, caller: u32) -> String {
    format!("{}-{caller}", TIER_NAMES[tier])
}

#[cfg(test)]
impl Plan {
    /// The plan without any arguments.
    pub(crate) fn example() -> Self {
        let command = <Self as clap::Args>::augment_args(clap::Command::new("load"));
        clap::FromArgMatches::from_arg_matches(&command.get_matches_from(["load"]))
            .expect("all have defaults")
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase, Plan, SHARES};

    #[test]
    fn arrivals_have_the_planned_rate_and_shares() {
        let plan = Plan::example();
        let arrivals = plan.arrivals();
        let of =
            |phase| arrivals.iter().filter(move |arrival| plan.phase(arrival.at.as_secs() as u32) == phase);
        for (phase, wanted) in [(Phase::Before, 500.0), (Phase::Overload, 30_000.0), (Phase::After, 1_500.0)]
        {
            let found = of(phase).count() as f64;
            assert!((found - wanted).abs() < 5.0 * f64::sqrt(wanted), "{phase:?}: {found}");
        }
        for (tier, share) in SHARES.into_iter().enumerate() {
            let found = of(Phase::Overload).filter(|arrival| arrival.tier == tier).count() as f64 / 30_000.0;
            assert!((found - share).abs() < 0.02, "{tier}: {found}");
        }
        assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
    }

    #[test]
    fn a_seed_determines_all_arrivals() {
        let plan = Plan::example();
        assert_eq!(plan.arrivals(), plan.arrivals());
        assert_ne!(plan.arrivals(), Plan { seed: 2, ..plan }.arrivals());
    }
}
