//! One look at Envoy's stats, and at the tiers file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// What the limiter had counted at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Since the watch began.
    pub(super) at: Duration,
    pub(super) tiers: BTreeMap<String, Tier>,
    /// Missing until a worker has said so.
    pub(super) degraded: Option<bool>,
    /// Missing where there is no Redis.
    pub(super) redis_connected: Option<bool>,
    /// Whether health is measured; missing in a limiter that cannot.
    pub(super) is_automatic: Option<bool>,
    pub(super) severity_permille: Option<u64>,
    pub(super) fallbacks: u64,
    pub(super) store_failures: u64,
    pub(super) reloads_applied: u64,
    pub(super) reloads_rejected: u64,
    is_limiter: bool,
}

/// What one tier's callers have been given.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tier {
    /// `allowed` and `exempt`.
    pub(super) allowed: u64,
    /// `limited` and `blocked`.
    pub(super) refused: u64,
    /// Missing in a limiter that sheds nothing.
    pub(super) shed: Option<u64>,
    /// Of the caller that was seen last.
    pub(super) tokens_remaining: Option<u64>,
}

impl Sample {
    /// Reads `/stats`: a line for each, `wasmcustom.<name>.<label>.<value>...: <number>`. Histograms are no numbers.
    pub(super) fn parse(at: Duration, text: &str) -> Self {
        let mut sample = Self { at, ..Self::default() };
        for line in text.lines() {
            let Some((name, value)) = line.trim().rsplit_once(": ") else { continue };
            let Some(name) = name.strip_prefix("wasmcustom.rate_limiter_") else { continue };
            sample.is_limiter = true;
            if let Ok(value) = value.parse() {
                sample.add(name, value);
            }
        }
        sample
    }

    /// Whether any of it is the limiter's.
    pub(super) fn is_limiter(&self) -> bool {
        self.is_limiter
    }

    fn add(&mut self, name: &str, value: u64) {
        let parts: Vec<_> = name.split('.').collect();
        match parts[..] {
            ["requests_total", "tier", tier, "status", "allowed" | "exempt"] => {
                self.tier(tier).allowed += value;
            }
            ["requests_total", "tier", tier, "status", "limited" | "blocked"] => {
                self.tier(tier).refused += value;
            }
            ["tokens_remaining", "tier", tier] => self.tier(tier).tokens_remaining = Some(value),
            ["shed_total", "tier", tier] => self.tier(tier).shed = Some(value),
            ["system_degraded"] => self.degraded = Some(value > 0),
            ["redis_connected"] => self.redis_connected = Some(value > 0),
            ["health_mode_auto"] => self.is_automatic = Some(value > 0),
            ["severity_permille"] => self.severity_permille = Some(value),
            ["fallback_decisions_total", "policy", _] => self.fallbacks += value,
            ["store_failures_total", "reason", _] => self.store_failures += value,
            ["config_reloads_total", "result", "applied"] => self.reloads_applied = value,
            ["config_reloads_total", "result", "rejected"] => self.reloads_rejected = value,
            _ => {}
        }
    }

    fn tier(&mut self, name: &str) -> &mut Tier {
        self.tiers.entry(name.to_owned()).or_default()
    }
}

/// What a full bucket of each tier holds, `(NORMAL, DEGRADED)`. No stat tells that.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Capacities(BTreeMap<String, (u64, u64)>);

impl Capacities {
    /// Reads the tiers file as far as it can: a file that is being edited is no reason to stop.
    pub(super) fn parse(text: &str) -> Self {
        let document: Value = serde_json::from_str(text).unwrap_or_default();
        let tiers = document.as_object().into_iter().flatten();
        Self(tiers.filter_map(|(name, tier)| Some((name.clone(), capacities(tier)?))).collect())
    }

    pub(super) fn of(&self, tier: &str, is_degraded: bool) -> Option<u64> {
        self.0.get(tier).map(|(normal, degraded)| if is_degraded { *degraded } else { *normal })
    }

    pub(super) fn tiers(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

fn capacities(tier: &Value) -> Option<(u64, u64)> {
    let capacity = |limit: &str| tier[limit]["capacity"].as_u64();
    let base = capacity("base")?;
    Some((capacity("burst").unwrap_or(base), capacity("degraded").unwrap_or(base)))
}
