//! How often the root context ticks: as often as what waits needs it.

use std::time::Duration;

use proxy_wasm::hostcalls;

use crate::limiter::Limiter;
use crate::requests::Requests;

/// Between ticks while nothing waits: metrics are at most so old, and so is the wall clock.
const SLOWEST_TICK: Duration = Duration::from_secs(1);

/// Before the first tick, and between two while a document is missing: it is fetched as soon as Envoy can serve it.
const FIRST_TICK: Duration = Duration::from_millis(100);

/// Between two looks whether documents are there, while requests wait for them.
const DOCUMENT_WAIT_TICK: Duration = Duration::from_millis(10);

/// Between two slices of a publication, so that requests go on between them.
const PUBLICATION_TICK: Duration = Duration::from_millis(5);

/// The same while requests may wait for it.
const FIRST_PUBLICATION_TICK: Duration = Duration::from_millis(1);

/// The timer of a root context.
#[derive(Default)]
pub(super) struct Ticks {
    period: Duration,
    has_ticked: bool,
    /// Whether no period was set since the last tick.
    is_at_tick: bool,
}

impl Ticks {
    /// Ticks as often as the shortest of these periods says. Envoy starts the timer anew with each new period, so a
    /// longer one is set only at a tick: changes back and forth would put the next tick off again and again.
    pub(super) fn set(&mut self, periods: impl IntoIterator<Item = Option<Duration>>) {
        let slowest = if self.has_ticked { SLOWEST_TICK } else { FIRST_TICK };
        let period = periods.into_iter().flatten().min().unwrap_or(slowest).min(slowest);
        let may_be_longer = std::mem::take(&mut self.is_at_tick) || self.period.is_zero();
        if period < self.period || may_be_longer && period != self.period {
            self.period = period;
            let _ = hostcalls::set_tick_period(period);
        }
    }

    /// Between two ticks.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// A tick has come.
    pub(super) fn note_tick(&mut self) {
        (self.has_ticked, self.is_at_tick) = (true, true);
    }
}

/// How often documents need a tick.
pub(super) fn documents_tick_period(limiter: &Limiter, requests: &Requests) -> Option<Duration> {
    let lacks_documents = limiter.lacks_documents();
    match limiter.is_publishing() {
        true if lacks_documents => Some(FIRST_PUBLICATION_TICK),
        true => Some(PUBLICATION_TICK),
        false if requests.any_waits_for_documents() => Some(DOCUMENT_WAIT_TICK),
        false => lacks_documents.then_some(FIRST_TICK),
    }
}
