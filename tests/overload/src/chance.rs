//! Chance, brought back by its seed.

#[path = "../../common/random.rs"]
#[allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::should_implement_trait,
    reason = "shared with other tests"
)]
mod random;

pub use random::Random;

/// How long the upstream works on a request, beside the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// Always as long.
    Constant,
    /// Exponential: as varied as calls by telephone.
    Exponential,
    /// Half of it always, and half of it exponential: a part that is the same for all, and one that is not.
    HalfExponential,
    /// Lognormal with this standard deviation of the logarithm: most are quick, a few are slow.
    Lognormal(f64),
}

/// From 0 to 1, neither included.
pub fn uniform(random: &mut Random) -> f64 {
    ((random.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// A time until the next of events that happen once in `mean` on average.
pub fn exponential(random: &mut Random, mean: f64) -> f64 {
    -mean * uniform(random).ln()
}

impl Spread {
    /// One draw with this mean.
    pub fn draw(self, random: &mut Random, mean: f64) -> f64 {
        match self {
            Self::Constant => mean,
            Self::Exponential => exponential(random, mean),
            Self::HalfExponential => mean / 2.0 + exponential(random, mean / 2.0),
            Self::Lognormal(sigma) => {
                let angle = std::f64::consts::TAU * uniform(random);
                let normal = (-2.0 * uniform(random).ln()).sqrt() * angle.cos();
                mean * (sigma * normal - sigma * sigma / 2.0).exp()
            }
        }
    }
}
