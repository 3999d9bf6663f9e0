//! The monotonic clock, which buckets use, and the wall clock, which headers use.

use crate::abi::{self, MONOTONIC, WALL};
use crate::{Check, Next};

const SECOND_NS: u64 = 1_000_000_000;

/// Reads after which any clock has advanced.
const MANY: u32 = 100_000;

pub(crate) fn run(check: &Check) -> Option<Next> {
    Some(Next::Answer(match check.name.as_str() {
        "monotonic_never_steps_back" => {
            let mut last = 0;
            let backwards = (0..1_000)
                .filter(|_| {
                    let now = abi::clock(MONOTONIC).unwrap_or(0);
                    std::mem::replace(&mut last, now) > now
                })
                .count();
            format!("steps back: {backwards}; it stands at nothing: {}", last == 0)
        }
        "time_passes_within_a_callback" => {
            let moves = |clock| {
                let start = abi::clock(clock);
                (0..MANY).any(|_| abi::clock(clock) != start)
            };
            format!("monotonic: {}", moves(MONOTONIC))
        }
        "wall_clock_is_wasis" => {
            let (host, wasi) = (abi::host_time().unwrap_or(0), abi::clock(WALL).unwrap_or(0));
            format!(
                "within a second: {}; after 2020: {}",
                host.abs_diff(wasi) < SECOND_NS,
                wasi / SECOND_NS > 1_577_836_800
            )
        }
        "unknown_clock" => match abi::clock(17) {
            Ok(_) => "a time".to_owned(),
            Err(_) => "an error".to_owned(),
        },
        _ => return None,
    }))
}
