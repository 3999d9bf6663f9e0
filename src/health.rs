//! System health: `NORMAL` or `DEGRADED`.

use std::fmt;

/// Which limits hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Bursts pass: a bucket holds the tier's burst capacity.
    #[default]
    Normal,
    /// Load is shed: the tier's degraded limit holds.
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

    /// The health of that exact name; names are upper case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Health::Normal, Health::Degraded].into_iter().find(|health| health.name() == name)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
