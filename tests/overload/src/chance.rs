//! Random times.

use fastrand::Rng;

/// How service times vary around their mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    Constant,
    Exponential,
    /// With this standard deviation of the logarithm.
    Lognormal(f64),
}

impl Spread {
    /// The variance, for a mean of 1.
    pub fn variance(self) -> f64 {
        match self {
            Self::Constant => 0.0,
            Self::Exponential => 1.0,
            Self::Lognormal(sigma) => (sigma * sigma).exp_m1(),
        }
    }

    /// One value with a mean of 1.
    pub fn draw(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential => exponential(rng, 1.0),
            Self::Lognormal(sigma) => {
                let angle = std::f64::consts::TAU * rng.f64();
                let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * angle.cos();
                (sigma * normal - sigma * sigma / 2.0).exp()
            }
        }
    }
}

/// The time until the next of independent events with this mean interval.
pub fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}
