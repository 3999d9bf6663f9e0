//! One worker's part in measuring health: it counts, hands in, and sees to it that what follows holds.

use crate::config::Measured;
use crate::control::Control;
use crate::health::Health;
use crate::load::switch::Reason;
use crate::load::{Load, Tally, hand_in_us};
use crate::metrics::{self, Metrics};
use crate::reply::rounded;
use crate::store::SharedData;

/// One worker's part.
#[derive(Debug)]
pub struct Measuring {
    /// What it has counted.
    pub tally: Tally,
    bounds: Measured,
    load_key: String,
    control_key: String,
    /// When to hand in next, by the store's clock, in microseconds.
    next_us: u64,
}

impl Measuring {
    /// A worker that has counted nothing yet. `random` starts its jitter.
    pub fn new(bounds: Measured, namespace: &str, random: u64, now_us: u64) -> Self {
        Self {
            tally: Tally::new(random, now_us),
            bounds,
            load_key: Load::key(namespace),
            control_key: Control::key(namespace),
            next_us: now_us,
        }
    }

    /// Whether it is time to hand in. Ticks may come much more often.
    pub fn is_due(&self, now_us: u64) -> bool {
        now_us >= self.next_us
    }

    /// Drops what was counted, and sheds no longer.
    pub fn discard(&mut self, now_us: u64) {
        self.tally.take(now_us);
        self.tally.stop_shedding();
    }

    /// Hands in what was counted, and follows what was made of it.
    pub fn hand_in(&mut self, now_us: u64, control: Control, data: &impl SharedData, metrics: &mut Metrics) {
        self.next_us = now_us.saturating_add(hand_in_us(&self.bounds));
        let counts = self.tally.take(now_us);
        // Where shared data is contended beyond reason, these counts are lost and the next ones are not.
        let Ok(load) = Load::hand_in(data, &self.load_key, &counts, &self.bounds, control.told) else {
            return;
        };
        self.tally.follow(&load, &self.bounds);
        metrics.load(&load, control.told);
        if load.switch.health() != control.measured {
            self.switch(&load, data, metrics);
        }
    }

    /// Puts the measured health into force for all workers, and tells of it, unless one of them has.
    fn switch(&self, load: &Load, data: &impl SharedData, metrics: &mut Metrics) {
        let measured = load.switch.health();
        let changed = Control::change(data, &self.control_key, |control| Control { measured, ..control });
        if !changed.is_ok_and(|previous| previous.measured != measured) {
            return;
        }
        match load.switch.reason().filter(|_| measured == Health::Degraded) {
            Some(reason) => {
                metrics.count(transition(reason), 1);
                let (bound, value) = (reason.bound(), rounded(reason.value()));
                log::warn!("health measured as {measured}: {bound} was {value}");
            }
            None => {
                metrics.count(metrics::RECOVERED, 1);
                log::info!("health measured as {measured}");
            }
        }
    }
}

/// Where health is not measured any more, what was measured ends.
pub fn forget(control: Control, control_key: &str, data: &impl SharedData) {
    if control.measured != Health::default() {
        let measured = Health::default();
        // Where this fails, it is tried again at the next tick.
        let _ = Control::change(data, control_key, |control| Control { measured, ..control });
    }
}

/// The counter of switches to `DEGRADED` for that reason.
fn transition(reason: Reason) -> &'static str {
    match reason {
        Reason::ErrorRatio(_) => metrics::DEGRADED_BY_ERRORS,
        Reason::LatencyMs(_) => metrics::DEGRADED_BY_LATENCY,
        Reason::LatencyRatio(_) => metrics::DEGRADED_BY_LATENCY_RATIO,
    }
}
