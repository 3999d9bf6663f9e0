//! How often the root context ticks: as often as what waits needs it.

use std::time::Duration;

use proxy_wasm::hostcalls;

/// Between ticks while nothing waits: metrics are at most so old, and so is the wall clock.
const SLOWEST: Duration = Duration::from_secs(1);

/// The timer of a root context.
#[derive(Default)]
pub(super) struct Ticks {
    period: Duration,
}

impl Ticks {
    /// Ticks as often as the shortest of these periods says.
    pub(super) fn set(&mut self, periods: impl IntoIterator<Item = Option<Duration>>) {
        let period = periods.into_iter().flatten().min().unwrap_or(SLOWEST).min(SLOWEST);
        if period != self.period {
            self.period = period;
            let _ = hostcalls::set_tick_period(period);
        }
    }
}
