//! System health: `NORMAL` or `DEGRADED`, set by an operator, or measured.

use std::fmt;

/// Which limits hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Bursts pass: a bucket holds the tier's burst capacity.
    #[default]
    Normal,
    /// The tier's degraded limit holds.
    Degraded,
}

impl Health {
    /// The name that headers and the admin endpoint use.
    pub fn name(self) -> &'static str {
        match self {
            Health::Normal => "NORMAL",
            Health::Degraded => "DEGRADED",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The health that an operator has set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthOverride {
    /// No override: health is measured. If it is not measured, it is `NORMAL`.
    #[default]
    Auto,
    /// It is `NORMAL`, whatever is measured.
    Normal,
    /// It is `DEGRADED`, whatever is measured.
    Degraded,
}

impl HealthOverride {
    const ALL: [HealthOverride; 3] = [HealthOverride::Auto, HealthOverride::Normal, HealthOverride::Degraded];

    /// The name that the admin endpoint and Redis use.
    pub fn name(self) -> &'static str {
        self.health().map_or("AUTO", Health::name)
    }

    /// What that exact name says; names are upper case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|health_override| health_override.name() == name)
    }

    /// The health that it says holds; `None` where that is to be measured.
    pub fn health(self) -> Option<Health> {
        match self {
            HealthOverride::Auto => None,
            HealthOverride::Normal => Some(Health::Normal),
            HealthOverride::Degraded => Some(Health::Degraded),
        }
    }
}

impl fmt::Display for HealthOverride {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
