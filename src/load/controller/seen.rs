//! What the newest slots say, as rates and as one number for how much the upstream strains.

use super::super::signals::{Counts, Window};
use super::super::switch::latency_us;
use crate::config::Measured;

/// How many slots are looked at: as few as hold so many answers, within these bounds.
pub(super) const LOOK: Span = Span { answers: 100, least: 2, most: 8 };
/// The same for rates, which vary more.
pub(super) const RATES: Span = Span { answers: 100, least: 4, most: 8 };
/// The same for a cut that is judged, which takes more certainty.
pub(super) const JUDGEMENT: Span = Span { answers: 300, least: 4, most: 8 };

/// How many slots to look at. Only as many as hold so many answers, within bounds.
pub(super) struct Span {
    pub(super) answers: u32,
    pub(super) least: usize,
    most: usize,
}

/// What the newest slots say.
pub(super) struct Seen {
    /// How many they are.
    pub(super) slots: usize,
    pub(super) counts: Counts,
    pub(super) sent: f64,
    pub(super) answered: f64,
    pub(super) good: f64,
    /// What was sent in the last two.
    pub(super) newest: f64,
}

impl Seen {
    pub(super) fn over(window: &Window, span: Span) -> Self {
        let is_enough = |slots: &usize| window.newest(*slots).answered >= span.answers;
        let slots = (span.least..span.most).find(is_enough).unwrap_or(span.most);
        let counts = window.newest(slots);
        let seconds = slots.min(window.slots().len()).max(1) as f64 * slot_seconds(window);
        Self {
            slots,
            sent: counts.passed() as f64 / seconds,
            answered: f64::from(counts.answered) / seconds,
            good: f64::from(counts.good()) / seconds,
            newest: window.newest(2).passed() as f64 / (2.0 * slot_seconds(window)),
            counts,
        }
    }
}

/// The worst of the signals, on a scale from what is usual (0) to its bound (1).
pub(super) fn strain(counts: &Counts, bounds: &Measured, baseline_us: Option<f64>) -> f64 {
    let errors = counts.error_ratio() / bounds.error_ratio;
    let Some(seen_us) = latency_us(counts) else { return errors };
    let usual_us = baseline_us.unwrap_or_default();
    let absolute_us = bounds.latency_ms.map(|ms| f64::from(ms) * 1_000.0);
    let relative_us = bounds.latency_ratio.filter(|_| usual_us > 0.0).map(|ratio| usual_us * ratio);
    let bounds_us = absolute_us.into_iter().chain(relative_us);
    bounds_us.fold(errors, |worst, bound_us| {
        let usual_us = usual_us.min(bound_us * 0.8);
        worst.max((seen_us - usual_us) / (bound_us - usual_us).max(1.0))
    })
}

/// The most that was answered well in two slots of the window, in requests a second.
pub(super) fn best(window: &Window) -> f64 {
    let pairs = window.slots().zip(window.slots().skip(1));
    let best = pairs.map(|(one, next)| one.good().saturating_add(next.good())).max();
    f64::from(best.unwrap_or_default()) / (2.0 * slot_seconds(window))
}

/// How long a slot is.
pub(super) fn slot_seconds(window: &Window) -> f64 {
    window.slot_us().max(1) as f64 / 1e6
}
