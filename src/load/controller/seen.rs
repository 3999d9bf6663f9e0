//! What the newest slots say: rates, and the signs of a queue.

use crate::config::Measured;
use crate::load::signals::Window;
use crate::load::switch::Switch;
use crate::load::{LATENCY_QUANTILE, QUICKEST};

/// How far is looked back for what changes quickly: as few slots as hold so many answers, within bounds in seconds.
pub(super) const LOOK: Span = Span { answers: 30, least: 1.0, most: 4.0 };
/// The same for rates, which vary more.
pub(super) const RATES: Span = Span { answers: 100, least: 2.0, most: 4.0 };

/// How much more requests in flight may let a queue seem than it has been seen to be.
const MOST_GROWTH: f64 = 2.0;

/// With a queue shorter than this, in multiples of what may be waited, nobody waits; and nearly all is as quick as usual
/// where nine in ten take at most this, in multiples of what is usual.
pub(super) const IDLE: f64 = 0.05;
const NEARLY_USUAL: f64 = 1.5;

/// A bound is at least that much over what is usual, as a share of it.
const LEAST_WAIT: f64 = 0.2;

/// How far to look back.
pub(super) struct Span {
    answers: u64,
    least: f64,
    most: f64,
}

/// What the newest slots say. Rates are in requests a second.
pub(super) struct Seen {
    /// How long they are, in seconds.
    pub(super) seconds: f64,
    /// What was sent, and what was worked on in time, whether it was answered well or not.
    pub(super) sent: f64,
    pub(super) worked: f64,
    /// The share that was refused at once.
    pub(super) refused: f64,
    /// How long the quickest took, in seconds.
    pub(super) quickest: f64,
    /// How long nine in ten took at most, in multiples of what is usual.
    pub(super) slowness: f64,
    /// How long everybody waits for their turn, in multiples of what may be waited until a bound is broken; `None`
    /// where nobody gets an answer, or no bound is on latency.
    pub(super) queue: Option<f64>,
}

impl Seen {
    /// `is_limited`: whether it is known that the upstream can be asked for too much. Until it is, nothing is made of chance.
    pub(super) fn over(
        window: &Window,
        span: &Span,
        bounds: &Measured,
        switch: &Switch,
        is_limited: bool,
    ) -> Self {
        let slots = span.slots(window);
        let counts = window.newest(slots);
        let seconds = slots.min(window.slots().len()).max(1) as f64 * slot_seconds(window);
        let worked = f64::from(counts.worked());
        let latency_us = counts.latency.quantile_us(LATENCY_QUANTILE).map(|us| us as f64);
        let quickest = counts.latency.quantile_us(QUICKEST).map(|us| us as f64 / 1e6);
        // A queue that grows is seen by its requests in flight before it is by their latency; one that is gone, too.
        let now = in_flight(window) * seconds / worked;
        let waited = quickest.map(|quickest| (quickest * growth(window, is_limited)).min(now));
        Self {
            seconds,
            sent: counts.passed() as f64 / seconds,
            worked: worked / seconds,
            refused: counts.refused_ratio(),
            quickest: quickest.unwrap_or_default(),
            slowness: latency_us
                .zip(switch.baseline_us())
                .map_or(f64::INFINITY, |(us, usual_us)| us / usual_us),
            queue: waited
                .zip(may_wait(bounds, switch))
                .map(|(waited, may_wait)| ((waited - switch.quickest_us() / 1e6) / may_wait).max(0.0)),
        }
    }

    /// Whether nobody waits, and nearly all is as quick as usual.
    pub(super) fn is_usual(&self) -> bool {
        self.slowness < NEARLY_USUAL && self.queue.is_some_and(|queue| queue < IDLE)
    }
}

/// What was worked on in time in the newest seconds, and a standard deviation more, in requests a second.
pub(super) fn doable(window: &Window, seconds: f64) -> f64 {
    let slots = slots(window, seconds).min(window.slots().len());
    let worked = f64::from(window.newest(slots).worked());
    (worked + worked.sqrt()) / (slots.max(1) as f64 * slot_seconds(window))
}

impl Span {
    fn slots(&self, window: &Window) -> usize {
        let answered =
            |slots| window.slots().rev().take(slots).map(|slot| u64::from(slot.answered)).sum::<u64>();
        let is_enough = |slots: &usize| answered(*slots) >= self.answers;
        let most = slots(window, self.most);
        (slots(window, self.least)..most).find(is_enough).unwrap_or(most)
    }
}

/// How long a request may wait for its turn until a bound is broken, in seconds.
fn may_wait(bounds: &Measured, switch: &Switch) -> Option<f64> {
    let usual_us = switch.baseline_us().unwrap_or_default();
    let bound_us = switch.bound_us(bounds)?;
    Some((bound_us - usual_us).max(bound_us * LEAST_WAIT) / 1e6)
}

/// Of the requests that the upstream took on in the last second, the share that got nothing in time. Those that it
/// refused at once it did not take on. Of a hang nothing comes to an end.
pub(super) fn late(window: &Window) -> f64 {
    let counts = window.newest(slots(window, 1.0));
    let (passed, ended) = (counts.passed(), counts.ended());
    let all = if ended.saturating_mul(2) < passed { passed } else { ended };
    let accepted = all.saturating_sub(counts.at_once.into());
    if accepted == 0 { 0.0 } else { 1.0 - (f64::from(counts.worked()) / accepted as f64).min(1.0) }
}

/// The most that was worked on in time in a second of the window, in requests a second.
pub(super) fn best(window: &Window) -> f64 {
    let slots = slots(window, 1.0);
    let worked: Vec<_> = window.slots().map(|slot| f64::from(slot.worked())).collect();
    let best = worked.windows(slots).map(|slots| slots.iter().sum()).fold(0.0, f64::max);
    best / (slots as f64 * slot_seconds(window))
}

/// Requests in flight, in the newest slot.
fn in_flight(window: &Window) -> f64 {
    window.newest(1).in_flight_us as f64 / window.slot_us().max(1) as f64
}

/// How many times as many requests are in flight now as a second ago, when those were sent that are answered now. Where no
/// limit is known, a standard deviation of them is chance.
fn growth(window: &Window, is_limited: bool) -> f64 {
    let second = slots(window, 1.0);
    let before = window.slots().rev().skip(second).take(second);
    let (sum_us, count) =
        before.fold((0, 0), |(sum_us, count), slot| (slot.in_flight_us.saturating_add(sum_us), count + 1));
    if count == 0 {
        return 1.0;
    }
    let before = sum_us as f64 / f64::from(count) / window.slot_us().max(1) as f64;
    let now = in_flight(window);
    let chance = if is_limited { 0.0 } else { now.sqrt() };
    ((now - chance) / before.max(1.0)).clamp(1.0, MOST_GROWTH)
}

/// How many slots such a time is; where slots are longer than half a second, as many as if they were not.
pub(super) fn slots(window: &Window, seconds: f64) -> usize {
    ((seconds / slot_seconds(window).min(0.5)).ceil() as usize).clamp(1, window.size())
}

/// How long a slot is.
pub(super) fn slot_seconds(window: &Window) -> f64 {
    window.slot_us().max(1) as f64 / 1e6
}

/// How many half seconds a slot is, if less than one: what happens within half a second is not seen before that is over.
pub(super) fn pace(window: &Window) -> f64 {
    (slot_seconds(window) * 2.0).min(1.0)
}
