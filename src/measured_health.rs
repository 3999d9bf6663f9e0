//! Puts measured health into force for all workers of one Envoy.

use crate::control::Control;
use crate::health::Health;
use crate::metrics::{self, Metrics};
use crate::overload::{self, DegradeReason, OverloadReport};
use crate::store::SharedData;

/// Makes all workers follow what was measured. The worker that changes it logs and counts the change.
pub fn put_into_force(
    report: &OverloadReport,
    current: Control,
    namespace: &str,
    data: &impl SharedData,
    metrics: &mut Metrics,
) {
    let measured = if report.reason.is_some() { Health::Degraded } else { Health::Normal };
    if current.measured == measured {
        return;
    }
    let changed = Control::change(data, &Control::key(namespace), |control| {
        // Another worker may have measured since and put that into force. Then its change is in the record that is read
        // here, or this one conflicts with it and is tried again.
        let is_newest = overload::measured_reason(namespace, data) == Some(report.reason);
        if is_newest { Control { measured, ..control } } else { control }
    });
    // Where it failed, it is tried again at the next tick.
    if !changed.is_ok_and(|(previous, now)| previous.measured != now.measured) {
        return;
    }
    let signals = report.signals;
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
            let permille = metrics::permille(value);
            log::warn!("health measured as {measured}: {permille} of 1000 requests were {bound}");
        }
        None => {
            metrics.count(metrics::RECOVERED, 1);
            log::info!("health measured as {measured}");
        }
    }
}

/// Resets measured health when it is not measured any more.
pub fn forget(current: Control, control_key: &str, data: &impl SharedData) {
    let measured = Health::default();
    if current.measured != measured {
        // Where it fails, it is tried again at the next tick.
        let _ = Control::change(data, control_key, |control| Control { measured, ..control });
    }
}
