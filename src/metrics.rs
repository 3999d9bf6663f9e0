//! What operators see, counted in the worker and handed to Envoy once a second.
//!
//! Counting costs a request an addition in memory instead of a call into the host. Names carry their labels as
//! `metric.label.value`, which the shipped bootstrap turns into Prometheus labels. Never a label per caller.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use crate::health::{Health, HealthOverride};
use crate::overload::{ClusterRecord, Signals};
use crate::store::redis::failure::FailureKind;
use crate::tier::Tier;
use crate::time::whole_micros;

/// Counter: buckets of the address table that were evicted before they had expired.
pub const BUCKET_EVICTIONS: &str = "rate_limiter_bucket_evictions_total";
/// Counter: compare-and-swap races that were lost and tried again.
pub const CAS_RETRIES: &str = "rate_limiter_cas_retries_total";
/// Counter: requests rejected because every attempt lost its race.
pub const STORE_CONTENDED: &str = "rate_limiter_store_failures_total.reason.contended";
/// Counter: commands to Redis without a reply in time.
pub const STORE_TIMEOUT: &str = "rate_limiter_store_failures_total.reason.timeout";
/// Counter: commands to Redis whose connection was refused or lost.
pub const STORE_DISCONNECTED: &str = "rate_limiter_store_failures_total.reason.disconnected";
/// Counter: commands to Redis on a stream that was no stream of replies to them.
pub const STORE_PROTOCOL: &str = "rate_limiter_store_failures_total.reason.protocol";
/// Counter: commands to Redis that were not sent because too many were on their way.
pub const STORE_QUEUE_FULL: &str = "rate_limiter_store_failures_total.reason.queue_full";
/// Counter: commands to a Redis that was still loading its data.
pub const STORE_LOADING: &str = "rate_limiter_store_failures_total.reason.loading";
/// Counter: commands to a Redis that is a replica.
pub const STORE_READONLY: &str = "rate_limiter_store_failures_total.reason.readonly";
/// Counter: commands to a Redis that has reached `maxmemory`.
pub const STORE_OOM: &str = "rate_limiter_store_failures_total.reason.oom";
/// Counter: commands to Redis with credentials that are missing, wrong or not enough.
pub const STORE_AUTH: &str = "rate_limiter_store_failures_total.reason.auth";
/// Counter: commands to a node of a cluster that does not keep the key.
pub const STORE_MOVED: &str = "rate_limiter_store_failures_total.reason.moved";
/// Counter: commands to Redis that it answered with any other error.
pub const STORE_ERROR: &str = "rate_limiter_store_failures_total.reason.error";
/// Counter: requests decided by this Envoy's own bucket because Redis did not decide.
pub const FALLBACK_LOCAL: &str = "rate_limiter_fallback_decisions_total.policy.local";
/// Counter: requests admitted because Redis did not decide.
pub const FALLBACK_ALLOW: &str = "rate_limiter_fallback_decisions_total.policy.allow";
/// Counter: requests rejected with 503 because Redis did not decide.
pub const FALLBACK_DENY: &str = "rate_limiter_fallback_decisions_total.policy.deny";
/// Counter: configurations and documents taken into force.
pub const CONFIG_APPLIED: &str = "rate_limiter_config_reloads_total.result.applied";
/// Counter: configurations and documents rejected.
pub const CONFIG_REJECTED: &str = "rate_limiter_config_reloads_total.result.rejected";
/// Counter: changes of health carried out.
pub const ADMIN_OK: &str = "rate_limiter_admin_requests_total.result.ok";
/// Counter: admin requests with a wrong token or none.
pub const ADMIN_FORBIDDEN: &str = "rate_limiter_admin_requests_total.result.forbidden";
/// Counter: admin requests with a wrong method or body.
pub const ADMIN_INVALID: &str = "rate_limiter_admin_requests_total.result.invalid";
/// Counter: admin requests whose body was too large.
pub const ADMIN_TOO_LARGE: &str = "rate_limiter_admin_requests_total.result.too_large";
/// Counter: admin requests rejected after too many wrong tokens.
pub const ADMIN_THROTTLED: &str = "rate_limiter_admin_requests_total.result.throttled";
/// Counter: changes of health that could not be stored.
pub const ADMIN_FAILED: &str = "rate_limiter_admin_requests_total.result.failed";
/// Counter: switches to `DEGRADED` because too many responses were server errors.
pub const DEGRADED_BY_ERRORS: &str = "rate_limiter_health_transitions_total.reason.error_ratio";
/// Counter: switches to `DEGRADED` because too many requests took longer than a bound.
pub const DEGRADED_BY_LATENCY: &str = "rate_limiter_health_transitions_total.reason.latency";
/// Counter: switches to `DEGRADED` because too many requests were shed.
pub const DEGRADED_BY_SHEDDING: &str = "rate_limiter_health_transitions_total.reason.shed";
/// Counter: switches back to `NORMAL`.
pub const RECOVERED: &str = "rate_limiter_health_transitions_total.reason.recovered";
/// Histogram: microseconds from request headers in to decision.
pub const DECISION_DURATION: &str = "rate_limiter_decision_duration_microseconds";

/// Every counter whose name is known from the start: reported as zero until something happens.
pub const COUNTERS: [&str; 11] = [
    BUCKET_EVICTIONS,
    CAS_RETRIES,
    STORE_CONTENDED,
    CONFIG_APPLIED,
    CONFIG_REJECTED,
    ADMIN_OK,
    ADMIN_FORBIDDEN,
    ADMIN_INVALID,
    ADMIN_TOO_LARGE,
    ADMIN_THROTTLED,
    ADMIN_FAILED,
];

/// The same for those that only Redis adds to.
pub const REDIS_COUNTERS: [&str; 13] = [
    STORE_TIMEOUT,
    STORE_DISCONNECTED,
    STORE_PROTOCOL,
    STORE_QUEUE_FULL,
    STORE_LOADING,
    STORE_READONLY,
    STORE_OOM,
    STORE_AUTH,
    STORE_MOVED,
    STORE_ERROR,
    FALLBACK_LOCAL,
    FALLBACK_ALLOW,
    FALLBACK_DENY,
];

/// The same for those that only measured health adds to.
pub const MEASURED_COUNTERS: [&str; 4] =
    [DEGRADED_BY_ERRORS, DEGRADED_BY_LATENCY, DEGRADED_BY_SHEDDING, RECOVERED];

/// Most tiers that have series of their own. The requests of all others are counted together, as [`OTHER_TIERS`]:
/// each new document may name other tiers, and Envoy keeps every series that it was ever given.
pub const MAX_TIER_SERIES: usize = 128;

/// The label of tiers beyond [`MAX_TIER_SERIES`].
pub const OTHER_TIERS: &str = "other_tiers";

/// The counter of failures of this kind.
pub fn store_failures(reason: FailureKind) -> &'static str {
    match reason {
        FailureKind::Timeout => STORE_TIMEOUT,
        FailureKind::Disconnected => STORE_DISCONNECTED,
        FailureKind::Protocol => STORE_PROTOCOL,
        FailureKind::QueueFull => STORE_QUEUE_FULL,
        FailureKind::Loading => STORE_LOADING,
        FailureKind::ReadOnly => STORE_READONLY,
        FailureKind::OutOfMemory => STORE_OOM,
        FailureKind::Auth => STORE_AUTH,
        FailureKind::Moved => STORE_MOVED,
        FailureKind::Error => STORE_ERROR,
    }
}

/// Counter, by tier and status: requests.
pub const REQUESTS: &str = "rate_limiter_requests_total";
/// Gauge, by tier: what the bucket that was charged last holds.
pub const TOKENS_REMAINING: &str = "rate_limiter_tokens_remaining";
/// Gauge: 1 while health follows what is measured, 0 while an operator has set it.
pub const HEALTH_MODE_AUTO: &str = "rate_limiter_health_mode_auto";
/// Gauge: the share of server errors in the window, in thousandths.
pub const ERROR_RATIO: &str = "rate_limiter_upstream_error_ratio_permille";
/// Gauge: the share of requests in the window that took longer than a bound, in thousandths.
pub const SLOW_RATIO: &str = "rate_limiter_upstream_slow_ratio_permille";
/// Gauge: the share of requests in the window that were shed, in thousandths.
pub const SHED_RATIO: &str = "rate_limiter_upstream_shed_ratio_permille";
/// Gauge, by cluster: how many requests may be in flight.
pub const CLUSTER_LIMIT: &str = "rate_limiter_cluster_in_flight_limit";
/// Gauge, by cluster: requests in flight.
pub const CLUSTER_IN_FLIGHT: &str = "rate_limiter_cluster_in_flight";
/// Gauge, by cluster: requests that wait for a place in flight.
pub const CLUSTER_WAITING: &str = "rate_limiter_cluster_waiting";
/// Gauge, by cluster: the mean latency without a queue in the upstream, in microseconds.
pub const CLUSTER_BASELINE: &str = "rate_limiter_cluster_latency_baseline_microseconds";
/// Counter, by cluster: requests that were shed.
pub const CLUSTER_SHED: &str = "rate_limiter_cluster_shed_total";
/// Gauge, by cluster: what workers share about requests in flight. No number for operators.
pub const CLUSTER_IN_FLIGHT_STATE: &str = "rate_limiter_cluster_in_flight_state";
/// Gauge, by cluster: what workers share about their queues. No number for operators.
pub const CLUSTER_QUEUE_STATE: &str = "rate_limiter_cluster_queue_state";

/// Longest name of a cluster that is a label as it is.
const MAX_LABEL_BYTES: usize = 80;

/// A cluster's name as a label: characters that a stat's name cannot have there are replaced, and a hash keeps two
/// names apart that would be the same then. The clusters that share one limit are `_others`.
pub fn cluster_label(name: &[u8]) -> String {
    if name.is_empty() {
        return "_others".to_owned();
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.len() <= MAX_LABEL_BYTES && name.iter().all(is_plain) {
        return String::from_utf8_lossy(name).into_owned();
    }
    let kept = name.iter().take(MAX_LABEL_BYTES);
    let plain: String = kept.map(|byte| if is_plain(byte) { char::from(*byte) } else { '_' }).collect();
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!("{plain}-{:08x}", hasher.finish() as u32)
}

/// Gauge: 1 while Redis decides.
pub const REDIS_CONNECTED: &str = "rate_limiter_redis_connected";
/// Gauge: 1 while health is `DEGRADED`.
pub const SYSTEM_DEGRADED: &str = "rate_limiter_system_degraded";

/// Gauge: counts changes that workers announce, read without lock or copy. Not for operators.
pub const CONTROL_CHANGES: &str = "rate_limiter_control_changes";

/// The metrics for operators, without their labels.
pub fn names() -> BTreeSet<&'static str> {
    let others = [
        REQUESTS,
        TOKENS_REMAINING,
        DECISION_DURATION,
        SYSTEM_DEGRADED,
        REDIS_CONNECTED,
        HEALTH_MODE_AUTO,
        ERROR_RATIO,
        SLOW_RATIO,
        SHED_RATIO,
        CLUSTER_LIMIT,
        CLUSTER_IN_FLIGHT,
        CLUSTER_WAITING,
        CLUSTER_BASELINE,
        CLUSTER_SHED,
    ];
    let counters = COUNTERS.into_iter().chain(REDIS_COUNTERS).chain(MEASURED_COUNTERS);
    counters.chain(others).map(without_labels).collect()
}

pub fn without_labels(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It got its token.
    Allowed,
    /// Its bucket was empty.
    Limited,
    /// It needed no token.
    Exempt,
    /// Its tier's capacity is zero, or `on_failure` is `deny` and Redis did not answer.
    Blocked,
    /// It was shed: it waited too long for a place in flight, or the queue was full of more important requests.
    Shed,
}

impl Status {
    const ALL: [Status; 5] =
        [Status::Allowed, Status::Limited, Status::Exempt, Status::Blocked, Status::Shed];

    /// The value of the label `status`.
    pub fn label(self) -> &'static str {
        match self {
            Status::Allowed => "allowed",
            Status::Limited => "limited",
            Status::Exempt => "exempt",
            Status::Blocked => "blocked",
            Status::Shed => "shed",
        }
    }
}

/// A change of one of Envoy's stats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatUpdate {
    Count(String, u64),
    SetGauge(String, u64),
    /// The gauge is 0 until it is set.
    DefineGauge(String),
}

/// What was counted since the last [`Metrics::drain`].
#[derive(Debug, Default)]
pub struct Metrics {
    tiers: Vec<TierCounts>,
    /// The tiers that have series.
    labels: Vec<String>,
    /// How many of those were drained.
    drained_labels: usize,
    counts: Vec<(Cow<'static, str>, u64)>,
    gauges: Vec<GaugeValue>,
}

/// A gauge, set when it has changed.
#[derive(Debug)]
struct GaugeValue {
    name: Cow<'static, str>,
    current: u64,
    reported: Option<u64>,
}

#[derive(Debug)]
struct TierCounts {
    tier: Rc<Tier>,
    requests: [u64; Status::ALL.len()],
    tokens_remaining: Option<u32>,
}

impl Metrics {
    /// Makes the series of these tiers, each at 0: a rate needs to see a counter before it grows.
    pub fn define_tiers(&mut self, tiers: &[Rc<Tier>]) {
        // Those beyond share one series.
        for tier in tiers.iter().take(MAX_TIER_SERIES + 1) {
            self.label(&tier.name);
        }
    }

    fn label<'a>(&mut self, name: &'a str) -> &'a str {
        if self.labels.iter().any(|label| label == name) {
            return name;
        }
        let label = if self.labels.len() < MAX_TIER_SERIES { name } else { OTHER_TIERS };
        if !self.labels.iter().any(|known| known == label) {
            self.labels.push(label.to_owned());
        }
        label
    }

    /// Counts a request; `tokens_remaining` is what its bucket holds now, where it has one.
    pub fn request(&mut self, tier: &Rc<Tier>, status: Status, tokens_remaining: Option<u32>) {
        let known = self.tiers.iter().position(|counts| Rc::ptr_eq(&counts.tier, tier));
        let index = known.unwrap_or_else(|| {
            self.tiers.push(TierCounts {
                tier: tier.clone(),
                requests: [0; Status::ALL.len()],
                tokens_remaining: None,
            });
            self.tiers.len() - 1
        });
        let Some(counts) = self.tiers.get_mut(index) else {
            return;
        };
        if let Some(requests) = counts.requests.get_mut(status as usize) {
            *requests += 1;
        }
        counts.tokens_remaining = tokens_remaining.or(counts.tokens_remaining);
    }

    pub fn count(&mut self, name: impl Into<Cow<'static, str>>, amount: u64) {
        if amount == 0 {
            return;
        }
        let name = name.into();
        match self.counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, total)) => *total += amount,
            None => self.counts.push((name, amount)),
        }
    }

    /// Notes the health in force.
    pub fn health(&mut self, health: Health) {
        self.set_gauge(SYSTEM_DEGRADED, (health == Health::Degraded).into());
    }

    /// Notes whether Redis answers.
    pub fn redis_connected(&mut self, connected: bool) {
        self.set_gauge(REDIS_CONNECTED, connected.into());
    }

    /// Notes the signals of measured health, and whether they decide.
    pub fn signals(&mut self, signals: Signals, health_override: HealthOverride) {
        self.set_gauge(HEALTH_MODE_AUTO, (health_override == HealthOverride::Auto).into());
        self.set_gauge(ERROR_RATIO, permille(signals.error_ratio));
        self.set_gauge(SLOW_RATIO, permille(signals.slow_ratio));
        self.set_gauge(SHED_RATIO, permille(signals.shed_ratio));
    }

    /// Notes what is in flight to a cluster.
    pub fn cluster(&mut self, name: &[u8], record: &ClusterRecord) {
        let label = cluster_label(name);
        let limit = format!("{CLUSTER_LIMIT}.cluster.{label}");
        if !self.gauges.iter().any(|gauge| gauge.name == limit) {
            self.counts.push((format!("{CLUSTER_SHED}.cluster.{label}").into(), 0));
        }
        let baseline = record.limit.baseline().unwrap_or_default();
        let values = [
            // Of a part of a place, a whole one is used.
            (CLUSTER_LIMIT, record.limit.limit().ceil() as u64),
            (CLUSTER_IN_FLIGHT, record.in_flight()),
            (CLUSTER_WAITING, record.waiting()),
            (CLUSTER_BASELINE, whole_micros(baseline)),
        ];
        for (name, current) in values {
            self.set_gauge(format!("{name}.cluster.{label}"), current);
        }
    }

    /// Counts a request that was shed.
    pub fn shed(&mut self, cluster: &[u8]) {
        self.count(format!("{CLUSTER_SHED}.cluster.{}", cluster_label(cluster)), 1);
    }

    fn set_gauge(&mut self, name: impl Into<Cow<'static, str>>, current: u64) {
        let name = name.into();
        match self.gauges.iter_mut().find(|gauge| gauge.name == name) {
            Some(gauge) => gauge.current = current,
            None => self.gauges.push(GaugeValue { name, current, reported: None }),
        }
    }

    /// Takes out what has gathered.
    pub fn drain(&mut self) -> Vec<StatUpdate> {
        let mut updates = Vec::new();
        for counts in std::mem::take(&mut self.tiers) {
            let tier = self.label(&counts.tier.name);
            for (status, requests) in Status::ALL.into_iter().zip(counts.requests) {
                if requests > 0 {
                    updates.push(StatUpdate::Count(requests_total(tier, status), requests));
                }
            }
            if let Some(tokens) = counts.tokens_remaining {
                updates.push(StatUpdate::SetGauge(tokens_remaining(tier), tokens.into()));
            }
        }
        for tier in self.labels.iter().skip(self.drained_labels) {
            updates.extend(Status::ALL.map(|status| StatUpdate::Count(requests_total(tier, status), 0)));
            updates.push(StatUpdate::DefineGauge(tokens_remaining(tier)));
        }
        self.drained_labels = self.labels.len();
        for (name, amount) in self.counts.drain(..) {
            updates.push(StatUpdate::Count(name.into_owned(), amount));
        }
        for gauge in self.gauges.iter_mut().filter(|gauge| gauge.reported != Some(gauge.current)) {
            updates.push(StatUpdate::SetGauge(gauge.name.clone().into_owned(), gauge.current));
            gauge.reported = Some(gauge.current);
        }
        updates
    }
}

fn requests_total(tier: &str, status: Status) -> String {
    format!("{REQUESTS}.tier.{tier}.status.{}", status.label())
}

fn tokens_remaining(tier: &str) -> String {
    format!("{TOKENS_REMAINING}.tier.{tier}")
}

/// A share in thousandths.
pub fn permille(share: f64) -> u64 {
    // Casts of floats saturate, and make zero of what is no number.
    (share * 1_000.0).round() as u64
}
