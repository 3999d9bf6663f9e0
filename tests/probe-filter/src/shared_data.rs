//! Shared data: one map with versions for each VM id.

use crate::abi::{self, Status, shown};
use crate::state::fresh;
use crate::{Check, Next};

/// The version with which the limiter inserts missing records.
const NEVER_SET: u32 = u32::MAX;

/// A write without a version.
const ANY: u32 = 0;

pub(crate) fn run(check: &Check) -> Option<Next> {
    let key = fresh(&check.name);
    let get = || shown(&abi::shared(&key).map(|(value, _)| value));
    let set = |value: &str, version| abi::set_shared(&key, value.as_bytes(), version);
    let version = || abi::shared(&key).map_or(0, |(_, version)| version);
    Some(Next::Answer(match check.name.as_str() {
        "missing" => get(),
        "insert_if_absent" => {
            let (first, second) = (set("first", NEVER_SET), set("second", NEVER_SET));
            format!("missing: {first}; present: {second}; holds {}", get())
        }
        "without_a_version" => {
            let (first, second) = (set("first", ANY), set("second", ANY));
            format!("missing: {first}; present: {second}; holds {}", get())
        }
        "compare_and_swap" => {
            set("first", ANY);
            let old = version();
            let (right, again) = (set("second", old), set("third", old));
            format!("right version: {right}; the same again: {again}; holds {}", get())
        }
        "stale_after_any_write" => {
            set("first", ANY);
            let old = version();
            set("first", ANY);
            format!("after the same value was written without a version: {}", set("second", old))
        }
        "any_version_inserts" => format!("missing, version 7: {}; holds {}", set("first", 7), get()),
        "versions_differ" => {
            let other = fresh("other");
            let mut versions = Vec::new();
            for value in ["1", "2", "3"] {
                set(value, ANY);
                versions.push(version());
                abi::set_shared(&other, value.as_bytes(), ANY);
                versions.push(abi::shared(&other).map_or(0, |(_, version)| version));
            }
            let is_real = versions.iter().all(|version| ![ANY, NEVER_SET].contains(version));
            let count = versions.len();
            versions.sort_unstable();
            versions.dedup();
            format!("{} of {count} differ; none is 0 or 4294967295: {is_real}", versions.len())
        }
        "empty_value" => {
            let status = set("", NEVER_SET);
            format!(
                "{status}; holds {}; has a version: {}; again: {}",
                get(),
                version() != 0,
                set("", NEVER_SET)
            )
        }
        name @ ("any_bytes" | "large_value") => {
            let bytes: Vec<u8> = if name == "any_bytes" { (0..=255).collect() } else { vec![7; 1 << 20] };
            let status = abi::set_shared(&key, &bytes, ANY);
            let same = abi::shared(&key).is_ok_and(|(value, _)| value == bytes);
            format!("{status}; the same back: {same}")
        }
        "out_of_bounds" => format!("{}; holds {}", abi::set_shared_out_of_bounds(&key), get()),
        "put" => abi::set_shared(&check.argument, b"put", ANY).to_string(),
        "get" => match abi::shared(&check.argument) {
            Ok((_, ANY)) => "a record without a version".to_owned(),
            record => shown(&record.map(|(value, _)| value)),
        },
        // Each request adds one, in any worker, and returns the sum.
        "add" => loop {
            let (sum, version) = match abi::shared(&check.argument) {
                Ok((value, version)) => (value.len(), version),
                Err(_) => (0, NEVER_SET),
            };
            let written = abi::set_shared(&check.argument, vec![b'1'; sum + 1], version);
            if written == Status::OK {
                break (sum + 1).to_string();
            }
        },
        _ => return None,
    }))
}
