//! Stats: their scope, and the calls that each kind accepts.

use crate::abi::{self, Metric};
use crate::state::fresh;
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let define = |kind, name: &str| abi::define_metric(kind, name).unwrap_or(u32::MAX);
    let value = |id| match abi::metric(id) {
        Ok(value) => value.to_string(),
        Err(status) => status.to_string(),
    };
    let name = format!("probe_{}", fresh(&check.name).replace('/', "_"));
    let id = match check.name.as_str() {
        "counter" => define(Metric::Counter, &name),
        "gauge" => define(Metric::Gauge, &name),
        "histogram" => define(Metric::Histogram, &name),
        _ => 1 << 20,
    };
    let record = || format!("record 5: {}", abi::record_metric(id, 5));
    let add = |offset| format!("add {offset}: {}", abi::increment_metric(id, offset));
    let reads = || format!("reads {}", value(id));
    Some(Next::Answer(match check.name.as_str() {
        "defined_twice" => {
            let (one, two) = (define(Metric::Counter, &name), define(Metric::Counter, &name));
            abi::increment_metric(one, 3);
            format!("the same id: {}; the other reads {}", one == two, value(two))
        }
        "counter" => [add(3), add(-1), record(), reads()].join("; "),
        "gauge" => [record(), add(3), add(-1), reads()].join("; "),
        "histogram" | "unknown_id" => [record(), add(1), reads()].join("; "),
        "gauge_set" => abi::record_metric(define(Metric::Gauge, &check.argument), 7).to_string(),
        "gauge_read" => value(define(Metric::Gauge, &check.argument)),
        _ => return None,
    }))
}
