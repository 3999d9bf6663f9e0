//! Everything that steers the overload control: name, unit, value, and where the value comes from.
//!
//! "Sweep" as a source means that the value was chosen by trial in the worlds of `tests/overload`.

use std::time::Duration;

/// The lowest limit while no request waits; half of it is the limit at the start. Source: sweep.
pub const INITIAL_LIMIT: f64 = 18.0;
/// The mean latency that the limit aims at, in multiples of the baseline. Source: the most important tier's latency
/// may triple at most (SPEC, section 12), and its own wait comes on top.
pub const LATENCY_TARGET: f64 = 1.4;
/// The limit over the mean in flight while none waits; also the largest cut, and a silence over the baseline. Source: an
/// upstream four times slower than usual under light load sheds nothing (SPEC, section 12).
pub const HEADROOM: f64 = 4.5;
/// Samples: fewer decide nothing. Source: the mean of eight exponential latencies varies by a third.
pub const MIN_SAMPLES: f64 = 8.0;
/// Samples that the baseline remembers; while there is room for all, it takes at most as many in `VERIFY_INTERVAL`.
/// Source: their mean varies by a fourteenth at most.
pub const BASELINE_SAMPLES: f64 = 300.0;
/// Standard errors by which two means have to differ. Source: one time in forty by chance.
pub const SIGMAS: f64 = 2.0;
/// Of places that are given back while the limit falls, the share that is not taken again. Source: at most this much is
/// missing to the most important tier while a queue in the upstream is worked off; sweep.
pub const DRAIN: f64 = 0.4;
/// The share of requests that is not noticed: that wait, are shed, or are slow. Source: SPEC, section 12.
pub const TOLERANCE: f64 = 0.1;
/// Time between two flushes of a worker. Source: a tenfold rise doubles the limit every two of them.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two measurements of the baseline under load. Source: each costs half of the throughput for a third of a
/// second; 1 % in all.
pub const VERIFY_INTERVAL: Duration = Duration::from_secs(20);
/// How often a worker with a queue looks for a free place. Source: "within milliseconds" (issue: across workers).
pub const TICK: Duration = Duration::from_millis(2);
/// Longest wait in the queue, and longest silence of the upstream. Source: SPEC, section 12.
pub const MAX_WAIT: Duration = Duration::from_secs(1);
