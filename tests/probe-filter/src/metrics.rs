//! Stats: their scope, and the calls that each kind accepts.

use crate::abi::{self, Metric, Status};
use crate::state::fresh;
use crate::{Check, Next};

pub(crate) fn run(check: &Check) -> Option<Next> {
    let define = |kind, name: &str| abi::define_metric(kind, name).unwrap_or(u32::MAX);
    let value = |id| match abi::metric(id) {
        Ok(value) => value.to_string(),
        Err(status) => status.to_string(),
    };
    let name = format!("probe_{}", fresh(&check.name).replace('/', "_"));
    Some(Next::Answer(match check.name.as_str() {
        "defined_twice" => {
            let (one, two) = (define(Metric::Counter, &name), define(Metric::Counter, &name));
            abi::increment_metric(one, 3);
            format!("the same id: {}; the other reads {}", one == two, value(two))
        }
        "counter" => {
            let id = define(Metric::Counter, &name);
            let add = abi::increment_metric(id, 3);
            let less = abi::increment_metric(id, -1);
            let record = abi::record_metric(id, 5);
            format!("add 3: {add}; add -1: {less}; record 5: {record}; reads {}", value(id))
        }
        "gauge" => {
            let id = define(Metric::Gauge, &name);
            let (record, add, less) =
                (abi::record_metric(id, 5), abi::increment_metric(id, 3), abi::increment_metric(id, -1));
            format!("record 5: {record}; add 3: {add}; add -1: {less}; reads {}", value(id))
        }
        "histogram" => {
            let id = define(Metric::Histogram, &name);
            let record: Status = abi::record_metric(id, 5);
            format!("record: {record}; add: {}; reads {}", abi::increment_metric(id, 1), value(id))
        }
        "unknown_id" => {
            let id = 1 << 20;
            format!(
                "record: {}; add: {}; reads {}",
                abi::record_metric(id, 1),
                abi::increment_metric(id, 1),
                value(id)
            )
        }
        "gauge_set" => abi::record_metric(define(Metric::Gauge, &check.argument), 7).to_string(),
        "gauge_read" => value(define(Metric::Gauge, &check.argument)),
        _ => return None,
    }))
}
