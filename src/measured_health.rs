//! Puts measured health into force for all workers of one Envoy.

use crate::control::Control;
use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::overload::{self, DegradeReason, OverloadReport};
use crate::store::SharedData;

/// Makes all workers follow what was measured. The worker that changes it tells the log and counts it.
pub fn put_into_force(
    report: &OverloadReport,
    current: Control,
    namespace: &str,
    data: &impl SharedData,
    metrics: &mut Metrics,
) {
    let measured = report.health();
    if current.measured == measured {
        return;
    }
    // Another worker may have measured since and put that into force. Then its change is in the record that is read
    // here, or this one conflicts with it and is tried again.
    let is_newest = || overload::measured_health(namespace, data) == Some(measured);
    if !change(measured, is_newest, &Control::key(namespace), data) {
        return;
    }
    let signals = report.signals;
    let permille = |share: f64| (share * 1_000.0).round() as u64;
    match report.reason {
        Some(reason) => {
            let (counter, bound, value) = match reason {
                DegradeReason::ErrorRatio => {
                    (metrics::DEGRADED_BY_ERRORS, "server errors", signals.error_ratio)
                }
                DegradeReason::Latency => (metrics::DEGRADED_BY_LATENCY, "too slow", signals.slow_ratio),
                DegradeReason::Shed => (metrics::DEGRADED_BY_SHEDDING, "shed", signals.shed_ratio),
            };
            metrics.count(counter, 1);
            log::warn!("health measured as {measured}: {} of 1000 requests were {bound}", permille(value));
        }
        None => {
            metrics.count(metrics::RECOVERED, 1);
            log::info!("health measured as {measured}");
        }
    }
}

/// Where health is not measured any more, what was measured ends.
pub fn forget(current: Control, control_key: &str, data: &impl SharedData) {
    if current.measured != Health::default() {
        change(Health::default(), || true, control_key, data);
    }
}

/// Whether it was this call that changed what is measured. Where it fails, it is tried again at the next tick.
fn change(measured: Health, is_newest: impl Fn() -> bool, control_key: &str, data: &impl SharedData) -> bool {
    let changed = |control| if is_newest() { Control { measured, ..control } } else { control };
    Control::change(data, control_key, changed).is_ok_and(|previous| previous.measured != measured)
        && is_newest()
}
