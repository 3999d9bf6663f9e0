//! The shown values: the last sample, and the rates since earlier ones.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use dynamic_rate_limiter::config::parse_tier_document;
use dynamic_rate_limiter::tier::Tier;

use super::stats::{Counts, Sample};

/// Workers report once a second. Over two seconds their reports even out.
const RATE_OVER: Duration = Duration::from_secs(2);

/// The maximum of points of a curve: more than the columns of a terminal.
const HISTORY: usize = 300;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) allowed: f64,
    pub(super) rejected: f64,
    pub(super) shed: f64,
}

/// The rates a second between two samples. If a counter has fallen, Envoy was restarted, and it counts from zero.
pub(super) fn rates(before: &Sample, now: &Sample) -> BTreeMap<String, Rates> {
    let seconds = now.at.saturating_sub(before.at).as_secs_f64();
    let none = Counts::default();
    let of = |name: &String, tier: &Counts| {
        let old = before.tiers.get(name).unwrap_or(&none);
        let per_second = |old: u64, new: u64| {
            let gained = new.checked_sub(old).unwrap_or(new);
            if seconds > 0.0 { gained as f64 / seconds } else { 0.0 }
        };
        Rates {
            allowed: per_second(old.allowed, tier.allowed),
            rejected: per_second(old.rejected, tier.rejected),
            shed: per_second(old.shed, tier.shed),
        }
    };
    now.tiers.iter().map(|(name, tier)| (name.clone(), of(name, tier))).collect()
}

#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) admin: String,
    /// The configured tiers: no stat has their capacities.
    configured: Vec<Tier>,
    pub(super) error: Option<String>,
    /// Notices for the user, the newest last.
    pub(super) notices: Vec<String>,
    /// The samples for rates, the newest last.
    samples: VecDeque<Sample>,
    /// The newest last.
    history: BTreeMap<String, VecDeque<Rates>>,
}

impl Board {
    pub(super) fn new(admin: SocketAddr) -> Self {
        Self { admin: admin.to_string(), ..Self::default() }
    }

    /// Adds a sample, and the tiers file. Errors in that are ignored, because it may be edited meanwhile.
    pub(super) fn add(&mut self, sample: Sample, tiers: &[u8]) {
        self.configured = parse_tier_document(tiers).unwrap_or_default();
        self.error = None;
        // The first remaining sample is the newest one that is at least [`RATE_OVER`] old.
        let is_old = |other: &Sample| sample.at.saturating_sub(other.at) >= RATE_OVER;
        while self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
        if let Some(before) = self.samples.front() {
            for (tier, rates) in rates(before, &sample) {
                let points = self.history.entry(tier).or_default();
                points.push_back(rates);
                if points.len() > HISTORY {
                    points.pop_front();
                }
            }
        }
        self.samples.push_back(sample);
    }

    pub(super) fn now(&self) -> Option<&Sample> {
        self.samples.back()
    }

    /// The tiers that are configured or counted, small buckets first.
    pub(super) fn tiers(&self) -> Vec<String> {
        let counted = self.now().into_iter().flat_map(|sample| sample.tiers.keys());
        let configured = self.configured.iter().filter(|tier| !tier.unlimited).map(|tier| &tier.name);
        let mut names: Vec<_> = configured.chain(counted).cloned().collect();
        let order = |name: &String| (self.capacity(name).unwrap_or(u64::MAX), name.clone());
        names.sort_by_key(order);
        names.dedup();
        names
    }

    pub(super) fn capacity(&self, tier: &str) -> Option<u64> {
        let tier = self.configured.iter().find(|other| other.name == tier && !other.unlimited)?;
        let is_degraded = self.now().and_then(|sample| sample.degraded) == Some(true);
        let limit = if is_degraded { tier.degraded } else { tier.normal };
        Some(limit.capacity().into())
    }

    pub(super) fn tier(&self, name: &str) -> Option<&Counts> {
        self.now()?.tiers.get(name)
    }

    pub(super) fn rates(&self, tier: &str) -> Rates {
        self.history.get(tier).and_then(VecDeque::back).copied().unwrap_or_default()
    }

    /// One of a tier's rates over time, the newest last, in tenths.
    pub(super) fn curve(&self, tier: &str, rate: impl Fn(&Rates) -> f64) -> Vec<u64> {
        let points = self.history.get(tier).into_iter().flatten();
        points.map(|rates| (rate(rates) * 10.0).round() as u64).collect()
    }
}
