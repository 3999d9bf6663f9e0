//! Parses Envoy's stats.

use std::collections::BTreeMap;
use std::time::Duration;

use dynamic_rate_limiter::metrics::{self, Status, without_labels};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Since the watch began.
    pub(super) at: Duration,
    pub(super) tiers: BTreeMap<String, Counts>,
    /// Missing until a worker has reported it.
    pub(super) degraded: Option<bool>,
    /// Missing without Redis.
    pub(super) redis_connected: Option<bool>,
    /// Whether health is measured; missing if it is not configured.
    pub(super) is_automatic: Option<bool>,
    /// The share of shed requests, in thousandths; missing if measured health is not configured.
    pub(super) shed_permille: Option<u64>,
    pub(super) clusters: BTreeMap<String, Cluster>,
    pub(super) fallbacks: u64,
    pub(super) store_failures: u64,
    pub(super) reloads_applied: u64,
    pub(super) reloads_rejected: u64,
    /// Whether it contains stats of the limiter.
    pub(super) is_limiter: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// `allowed` and `exempt`.
    pub(super) allowed: u64,
    /// `limited` and `blocked`.
    pub(super) rejected: u64,
    pub(super) shed: u64,
    /// Tokens of the last caller. Envoy shows 0 from the start.
    tokens_remaining: Option<u64>,
}

impl Counts {
    /// The tokens of the last caller; missing if there was none.
    pub(super) fn tokens_remaining(&self) -> Option<u64> {
        self.tokens_remaining.filter(|left| *left > 0 || self.allowed + self.rejected > 0)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cluster {
    pub(super) in_flight: u64,
    pub(super) limit: u64,
    pub(super) waiting: u64,
}

impl Sample {
    /// Parses `/stats`: lines of `wasmcustom.<name>.<label>.<value>...: <number>`. Histograms are not numbers.
    pub(super) fn parse(at: Duration, text: &str) -> Self {
        let mut sample = Self { at, ..Self::default() };
        for line in text.lines() {
            let Some((name, value)) = line.trim().rsplit_once(": ") else { continue };
            let Some(name) = name.strip_prefix("wasmcustom.") else { continue };
            sample.is_limiter |= name.starts_with("rate_limiter_");
            if let Ok(value) = value.parse() {
                sample.add(name, value);
            }
        }
        sample
    }

    fn add(&mut self, name: &str, value: u64) {
        let parts: Vec<_> = name.split('.').collect();
        match parts[..] {
            [metrics::REQUESTS, "tier", tier, "status", status] => {
                let is = |wanted: &[Status]| wanted.iter().any(|wanted| status == wanted.label());
                let tier = self.tier(tier);
                if is(&[Status::Allowed, Status::Exempt]) {
                    tier.allowed += value;
                } else if is(&[Status::Limited, Status::Blocked]) {
                    tier.rejected += value;
                } else if is(&[Status::Shed]) {
                    tier.shed += value;
                }
            }
            [metrics::TOKENS_REMAINING, "tier", tier] => self.tier(tier).tokens_remaining = Some(value),
            [metrics::SYSTEM_DEGRADED] => self.degraded = Some(value > 0),
            [metrics::REDIS_CONNECTED] => self.redis_connected = Some(value > 0),
            [metrics::HEALTH_MODE_AUTO] => self.is_automatic = Some(value > 0),
            [metrics::SHED_RATIO] => self.shed_permille = Some(value),
            [metrics::CLUSTER_IN_FLIGHT, "cluster", cluster] => self.cluster(cluster).in_flight = value,
            [metrics::CLUSTER_LIMIT, "cluster", cluster] => self.cluster(cluster).limit = value,
            [metrics::CLUSTER_WAITING, "cluster", cluster] => self.cluster(cluster).waiting = value,
            [metric, "policy", _] if metric == without_labels(metrics::FALLBACK_LOCAL) => {
                self.fallbacks += value;
            }
            [metric, "reason", _] if metric == without_labels(metrics::STORE_TIMEOUT) => {
                self.store_failures += value;
            }
            _ if name == metrics::CONFIG_APPLIED => self.reloads_applied = value,
            _ if name == metrics::CONFIG_REJECTED => self.reloads_rejected = value,
            _ => {}
        }
    }

    fn cluster(&mut self, name: &str) -> &mut Cluster {
        self.clusters.entry(name.to_owned()).or_default()
    }

    fn tier(&mut self, name: &str) -> &mut Counts {
        self.tiers.entry(name.to_owned()).or_default()
    }
}
