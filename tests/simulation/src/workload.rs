//! The random parameters of a world: stores, limits, callers, and their rates.

use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::request::Request;

use crate::random::Random;

pub const TOKEN: &str = "the admin token";

/// Tiers of a world; callers without a known key have the first.
const TIERS: usize = 3;

/// Callers with a key. The last is unknown at first, and becomes known by a delivered configuration.
pub const KEYS: usize = 5;

/// The shortest timeout, in microseconds, at which a busy worker has to distinguish its own delay from a failure of
/// Redis: see `docs/stores.md`.
const FAIR_TIMEOUT_US: u64 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In each Envoy.
    SharedData,
    /// In Redis, with this policy without it.
    Redis(&'static str),
}

#[derive(Debug)]
pub struct Plan {
    pub store: Store,
    /// How long a request waits for Redis.
    pub timeout_us: u64,
    /// Limiters by the number of their process and their namespace.
    pub envoys: Vec<(usize, &'static str)>,
    /// Workers of each.
    pub workers: usize,
    /// Callers without a key.
    pub addresses: usize,
    /// Room in the address table.
    pub max_buckets: u32,
    /// Whether limits come as documents, or else with the plugin configuration.
    pub by_documents: bool,
    pub operations: u64,
    /// Mean pause between bursts of requests.
    pub gap_us: u64,
    /// Before one in this many calls of shared data, another worker acts.
    pub race_one_in: u64,
    /// Mean pause between faults.
    pub fault_gap_us: u64,
    /// Mean pause between times at which a worker is busy; `None` where that would look like a failure of Redis.
    pub busy_gap_us: Option<u64>,
}

impl Plan {
    pub fn draw(random: &mut Random) -> Self {
        let on_failure = random.choose(&["local", "local", "allow", "deny"]);
        let store = if random.one_in(3) { Store::SharedData } else { Store::Redis(on_failure) };
        let envoys = match random.below(4) {
            0 => vec![(0, "default")],
            1 => vec![(0, "default"), (0, "other")],
            2 => vec![(0, "default"), (1, "default")],
            _ => vec![(0, "default"), (1, "default"), (1, "other")],
        };
        let is_crowded = random.one_in(4);
        let timeout_us = random.choose(&[5_000, 20_000, 100_000]);
        let busy_gap_us = random.choose(&[None, Some(50_000), Some(1_000_000)]);
        Self {
            store,
            timeout_us,
            envoys,
            workers: random.choose(&[1, 2, 3]),
            addresses: if is_crowded { 40 } else { 6 },
            max_buckets: if is_crowded { random.choose(&[1, 3, 8, 16]) } else { 65_536 },
            by_documents: random.one_in(2),
            operations: 2_000 + random.below(4_000),
            gap_us: random.choose(&[200, 2_000, 10_000, 20_000]),
            race_one_in: random.choose(&[3, 20]),
            fault_gap_us: random.choose(&[300_000, 2_000_000, 10_000_000]),
            busy_gap_us: busy_gap_us.filter(|_| timeout_us >= FAIR_TIMEOUT_US),
        }
    }

    pub fn owners(&self) -> usize {
        KEYS + self.addresses
    }

    pub fn configuration(&self, limits: &Limits, namespace: &str) -> String {
        let store = match self.store {
            Store::SharedData => format!(r#"{{"kind": "shared_data", "max_buckets": {}}}"#, self.max_buckets),
            Store::Redis(on_failure) => format!(
                r#"{{"kind": "redis", "cluster": "redis", "on_failure": "{on_failure}", "timeout_ms": {},
                     "max_buckets": {}}}"#,
                self.timeout_us / 1_000,
                self.max_buckets
            ),
        };
        let source = match self.by_documents {
            true => r#""config_source": {"cluster": "documents", "tiers": "/tiers"}, "#,
            false => "",
        };
        let key = |key: usize| format!(r#""key-{key}": {{"tier": "t{}", "id": "id-{key}"}}"#, tier_of(key));
        let keys: Vec<String> = (0..limits.known_keys).map(key).collect();
        format!(
            r#"{{{source}"default_tier": "t0", "namespace": "{namespace}", "tiers": {}, "api_keys": {{{}}},
                 "store": {store}}}"#,
            limits.document(),
            keys.join(", ")
        )
    }
}

fn tier_of(key: usize) -> usize {
    key % TIERS
}

#[derive(Clone, Copy, Debug)]
struct Tier {
    normal: Limit,
    degraded: Limit,
    ttl_seconds: u32,
}

/// One version of the limits that operators configure.
#[derive(Clone, Debug)]
pub struct Limits {
    tiers: [Tier; TIERS],
    pub known_keys: usize,
}

impl Limits {
    /// Draws the first version, or one that replaces `previous`.
    pub fn draw(random: &mut Random, plan: &Plan, previous: Option<&Limits>) -> Self {
        let mut limit = || {
            let capacity = random.choose(&[1, 2, 3, 5, 20]);
            let rate = random.choose(&[100_000, 700_001, 1_000_000, 3_333_333, 50_000_000, 400_000_000]);
            Limit::new(capacity, rate).expect("a limit in range")
        };
        let mut tiers = [(); TIERS].map(|()| Tier { normal: limit(), degraded: limit(), ttl_seconds: 1 });
        tiers.iter_mut().for_each(|tier| tier.ttl_seconds = random.choose(&[1, 2, 60]));
        if plan.max_buckets < 1_000 {
            // The oracle's bound for shared records is for one limit.
            tiers[0] = previous.map_or(tiers[0], |previous| previous.tiers[0]);
            tiers[0].degraded = tiers[0].normal;
        }
        let known_keys = match previous {
            Some(_) if !plan.by_documents => KEYS,
            _ => KEYS - 1,
        };
        Self { tiers, known_keys }
    }

    pub fn document(&self) -> String {
        let rate = |limit: Limit| {
            let micro = limit.refill_micro_per_sec();
            format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
        };
        let tier = |(index, tier): (usize, &Tier)| {
            let Tier { normal, degraded, ttl_seconds } = tier;
            format!(
                r#""t{index}": {{"base": {{"capacity": {}, "refill_rate": {}}},
                     "degraded": {{"capacity": {}, "refill_rate": {}}}, "ttl": {ttl_seconds}}}"#,
                normal.capacity(),
                rate(*normal),
                degraded.capacity(),
                rate(*degraded)
            )
        };
        let tiers: Vec<String> = self.tiers.iter().enumerate().map(tier).collect();
        format!("{{{}}}", tiers.join(", "))
    }

    /// The owner of a caller's requests: a known key, or else the address.
    pub fn owner(&self, caller: Caller) -> usize {
        match caller.key {
            Some(key) if key < self.known_keys => key,
            _ => KEYS + caller.address,
        }
    }

    pub fn limit(&self, owner: usize, health: Health) -> Limit {
        let tier = self.tier(owner);
        match health {
            Health::Normal => tier.normal,
            Health::Degraded => tier.degraded,
        }
    }

    fn tier(&self, owner: usize) -> &Tier {
        &self.tiers[if owner < KEYS { tier_of(owner) } else { 0 }]
    }
}

pub fn full_in_us(limit: Limit, left_pico: u64) -> u64 {
    let full = u128::from(limit.capacity()) * 1_000_000_000_000;
    full.saturating_sub(left_pico.into()).div_ceil(limit.refill_micro_per_sec().into()) as u64
}

pub fn bucket_name(owner: usize) -> String {
    match owner.checked_sub(KEYS) {
        None => format!("id-{owner}"),
        Some(address) => format!("192.0.2.{address}"),
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    pub key: Option<usize>,
    pub address: usize,
}

impl Caller {
    /// A few callers send most requests.
    pub fn draw(random: &mut Random, plan: &Plan) -> Self {
        let few = |random: &mut Random, all: usize| {
            let index = random.below(all as u64);
            if random.one_in(2) { 0 } else { index as usize }
        };
        let key = random.one_in(2).then(|| few(random, KEYS));
        Self { key, address: few(random, plan.addresses) }
    }
}

/// A request as Envoy shows it.
pub struct SimulatedRequest {
    pub caller: Caller,
    /// Whether it changes health.
    pub is_post: bool,
}

impl Request for SimulatedRequest {
    fn header(&self, name: &str) -> Option<Vec<u8>> {
        match name {
            ":path" if self.is_post => Some("/system/health".into()),
            ":path" => Some("/".into()),
            ":method" => Some(if self.is_post { "POST" } else { "GET" }.into()),
            "x-admin-token" if self.is_post => Some(TOKEN.into()),
            "x-api-key" => self.caller.key.map(|key| format!("key-{key}").into_bytes()),
            _ => None,
        }
    }

    fn source_address(&self) -> Option<Vec<u8>> {
        Some(format!("192.0.2.{}:4711", self.caller.address).into_bytes())
    }
}
