//! Envoy's stats: each is defined once in a VM, because every definition makes a new one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use proxy_wasm::hostcalls;
use proxy_wasm::types::MetricType;

use super::hostcalls::HostData;
use crate::metrics::{
    CONTROL_CHANGES, COUNTERS, DECISION_DURATION, MEASURED_COUNTERS, REDIS_COUNTERS, StatUpdate,
};
use crate::store::SharedData;
use crate::time::{StoreTime, whole_micros};

thread_local! {
    static DEFINED: RefCell<HashMap<String, u32>> = RefCell::default();
    static CHANGES: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Defines what will be counted.
///
/// Envoy tries a delivered configuration in a VM that it discards later, and forgets a stat that no VM refers to. So
/// every VM defines these counters: then what was counted in the discarded VM stays.
pub(super) fn define(with_redis: bool, is_measured: bool) {
    let redis_counters = REDIS_COUNTERS.into_iter().filter(|_| with_redis);
    let measured_counters = MEASURED_COUNTERS.into_iter().filter(|_| is_measured);
    for name in COUNTERS.into_iter().chain(redis_counters).chain(measured_counters) {
        id(MetricType::Counter, name);
    }
}

/// Hands the updates of stats to Envoy.
pub(super) fn report(updates: Vec<StatUpdate>) {
    for update in updates {
        // A stat that Envoy does not take is lost; no request depends on it.
        let _ = match update {
            StatUpdate::Count(name, amount) => {
                let offset = i64::try_from(amount).unwrap_or(i64::MAX);
                id(MetricType::Counter, &name).map(|id| hostcalls::increment_metric(id, offset))
            }
            StatUpdate::SetGauge(name, value) => {
                id(MetricType::Gauge, &name).map(|id| hostcalls::record_metric(id, value))
            }
            StatUpdate::DefineGauge(name) => {
                id(MetricType::Gauge, &name);
                None
            }
        };
    }
}

/// One decision in so many is timed: timing costs two host calls, which a request is better off without.
const TIMED_ONE_IN: u32 = 16;

/// Measures how long decisions take.
pub(super) struct DecisionTimer {
    histogram: Option<u32>,
    /// How many requests have been decided.
    pub(super) decisions: u32,
}

impl DecisionTimer {
    pub(super) fn new() -> Self {
        Self { histogram: id(MetricType::Histogram, DECISION_DURATION), decisions: 0 }
    }

    /// A request is decided whose headers came in at that time.
    pub(super) fn note_decision(&mut self, started: StoreTime) {
        let timed = self.histogram.filter(|_| self.decisions.is_multiple_of(TIMED_ONE_IN));
        self.decisions = self.decisions.wrapping_add(1);
        if let Some(histogram) = timed {
            let _ = hostcalls::record_metric(histogram, whole_micros(HostData.now().since(started)));
        }
    }
}

pub(super) fn gauge(name: &str) -> Option<u32> {
    id(MetricType::Gauge, name)
}

pub(super) fn add(id: u32, difference: i64) {
    let _ = hostcalls::increment_metric(id, difference);
}

pub(super) fn read(id: u32) -> Option<u64> {
    hostcalls::get_metric(id).ok()
}

/// Whether a gauge counts: an Envoy whose `stats_matcher` leaves it out keeps no number behind it.
pub(super) fn counts(id: u32) -> bool {
    add(id, 1);
    let counts = read(id).is_some_and(|value| value > 0);
    add(id, -1);
    counts
}

/// Finds out whether changes can be counted. This counts as one: taken back, it could hide a change from a worker that
/// has read it.
pub(super) fn probe_changes() {
    let counts = |gauge: &u32| {
        add(*gauge, 1);
        read(*gauge).is_some_and(|value| value > 0)
    };
    CHANGES.set(gauge(CONTROL_CHANGES).filter(counts));
}

/// How many changes were announced; `None` where Envoy does not count them.
pub(super) fn change_count() -> Option<u64> {
    CHANGES.get().and_then(|gauge| hostcalls::get_metric(gauge).ok())
}

pub(super) fn count_change() {
    if let Some(gauge) = CHANGES.get() {
        let _ = hostcalls::increment_metric(gauge, 1);
    }
}

fn id(kind: MetricType, name: &str) -> Option<u32> {
    DEFINED.with_borrow_mut(|defined| {
        if let Some(id) = defined.get(name) {
            return Some(*id);
        }
        let id = hostcalls::define_metric(kind, name).ok()?;
        defined.insert(name.to_owned(), id);
        Some(id)
    })
}
