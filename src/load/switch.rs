//! Whether the upstream is well, by the bounds that an operator has set.
//!
//! A bound is judged over the whole window. It has to be broken at every slot's end for `degrade_after_seconds` before
//! health turns `DEGRADED`. For the way back it has to hold, with a margin, at every slot's end for
//! `recover_after_seconds`, judged over the newer half of the window: what was seen before that time says nothing about
//! it, nor does it about what comes after. As long as anything is shed the way back does not begin, since shedding that holds the bounds is no recovery; and
//! it needs as many responses as a judgement does, so that a silent upstream stays what it was.
//!
//! What usual is, is learned while all is well: a quicker upstream is believed at once, a slower one over ten minutes, so
//! that a load that rises slowly does not pass for usual. Knows nothing of operators and of who is turned away.

use super::signals::{Counts, Window};
use super::{LATENCY_QUANTILE, QUICKEST};
use crate::config::Measured;
use crate::health::Health;

/// Of a bound, what has to be kept to on the way back.
const MARGIN: f64 = 0.9;

/// What takes less than this share of what the quickest take is not worked on.
const LEAST_WORK: f64 = 0.5;

/// How much of the way to a smaller baseline is gone in one slot.
const FALL: f64 = 0.2;

/// How long it takes to believe a larger one, in seconds.
const RISE_SECONDS: f64 = 600.0;

/// A bound that was broken, and the value that broke it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The share of server errors.
    ErrorRatio(f64),
    /// The time to response headers, in milliseconds.
    LatencyMs(f64),
    /// The time to response headers, in multiples of what is usual.
    LatencyRatio(f64),
}

impl Reason {
    /// The field of the configuration that sets the bound.
    pub fn bound(self) -> &'static str {
        match self {
            Self::ErrorRatio(_) => "error_ratio",
            Self::LatencyMs(_) => "latency_ms",
            Self::LatencyRatio(_) => "latency_ratio",
        }
    }

    /// What was measured.
    pub fn value(self) -> f64 {
        match self {
            Self::ErrorRatio(value) | Self::LatencyMs(value) | Self::LatencyRatio(value) => value,
        }
    }
}

/// Which health the bounds ask for, and since when they have asked for another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Switch {
    degraded: bool,
    /// At how many slots' ends in a row the signals asked for the other health.
    agreeing: u32,
    /// Responses during these slots.
    answered: u64,
    /// How many of the window's slots are of the time before the way back, and do not count any more.
    stale: u32,
    /// The usual time to response headers, in microseconds; 0 while it is not known.
    baseline_us: f64,
    /// The usual time of the quickest, in microseconds.
    quickest_us: f64,
    reason: Option<Reason>,
}

impl Switch {
    /// One slot further; `severity` is what is being shed.
    pub fn step(self, window: &Window, bounds: &Measured, severity: f64) -> Self {
        if self.degraded {
            self.step_degraded(window, bounds, severity)
        } else {
            self.step_normal(window, bounds)
        }
    }

    /// What the bounds ask for.
    pub fn health(&self) -> Health {
        if self.degraded { Health::Degraded } else { Health::Normal }
    }

    /// Why it is `DEGRADED`, or was the last time.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// The time to response headers that nine in ten did not exceed while all was well, in microseconds.
    pub fn baseline_us(&self) -> Option<f64> {
        (self.baseline_us > 0.0).then_some(self.baseline_us)
    }

    /// The time to response headers that one in ten did not exceed while all was well, in microseconds.
    pub fn quickest_us(&self) -> f64 {
        self.quickest_us
    }

    /// How long a response takes at least that is worked on, in microseconds; `None` while it is not known.
    pub fn working_us(&self) -> Option<f64> {
        (self.quickest_us > 0.0).then_some(self.quickest_us * LEAST_WORK)
    }

    /// How long a response may take at most without being too slow, in microseconds; `None`: no bound is on that.
    pub fn bound_us(&self, bounds: &Measured) -> Option<f64> {
        let absolute_us = bounds.latency_ms.map(|bound| f64::from(bound) * 1_000.0);
        let relative_us =
            self.baseline_us().zip(bounds.latency_ratio).map(|(usual_us, ratio)| usual_us * ratio);
        absolute_us.into_iter().chain(relative_us).min_by(f64::total_cmp)
    }

    fn step_normal(self, window: &Window, bounds: &Measured) -> Self {
        let total = window.newest(window.size().saturating_sub(self.stale as usize));
        let this = Self { stale: self.stale.saturating_sub(1), ..self };
        this.judge(&total, window, bounds)
    }

    fn judge(self, total: &Counts, window: &Window, bounds: &Measured) -> Self {
        let is_judged = is_enough(total, window, bounds);
        let worst = worst(total, bounds, self.baseline_us()).filter(|_| is_judged);
        match worst {
            Some((pressure, reason)) if pressure > 1.0 => {
                // From the first of the slots' ends that agree to this one, so many slots have passed.
                let is_over = seconds(self.agreeing, window) >= f64::from(bounds.degrade_after_seconds);
                if is_over {
                    return Self { degraded: true, agreeing: 0, answered: 0, reason: Some(reason), ..self };
                }
                Self { agreeing: self.agreeing.saturating_add(1), ..self }
            }
            _ => {
                let next = Self { agreeing: 0, ..self };
                if is_judged && window.slots().len() == window.size() {
                    next.learn(total, window)
                } else {
                    next
                }
            }
        }
    }

    fn step_degraded(self, window: &Window, bounds: &Measured, severity: f64) -> Self {
        let newer_half = window.size() / 2;
        let recent = window.newest(newer_half);
        let pressure = worst(&recent, bounds, self.baseline_us()).map_or(0.0, |(pressure, _)| pressure);
        if severity > 0.0 || pressure > MARGIN {
            return Self { agreeing: 0, answered: 0, ..self };
        }
        let is_over = seconds(self.agreeing, window) >= f64::from(bounds.recover_after_seconds);
        let answered = self.answered.saturating_add(window.newest(1).answered.into());
        if is_over && answered >= bounds.min_requests.into() {
            let stale = (window.size() - newer_half) as u32;
            return Self { degraded: false, agreeing: 0, answered: 0, stale, ..self };
        }
        Self { agreeing: self.agreeing.saturating_add(1), answered, ..self }
    }

    fn learn(self, total: &Counts, window: &Window) -> Self {
        let Some(seen_us) = total.latency.quantile_us(LATENCY_QUANTILE).map(|us| us as f64) else {
            return self;
        };
        let share = match self.baseline_us {
            0.0 => 1.0,
            usual if seen_us < usual => FALL,
            _ => (seconds(1, window) / RISE_SECONDS).min(1.0),
        };
        let quickest_us = total.latency.quantile_us(QUICKEST).map_or(self.quickest_us, |us| us as f64);
        Self {
            baseline_us: self.baseline_us + share * (seen_us - self.baseline_us),
            quickest_us: self.quickest_us + share * (quickest_us - self.quickest_us),
            ..self
        }
    }
}

/// The worst of the signals: in multiples of its bound, and by name.
pub(super) fn worst(counts: &Counts, bounds: &Measured, baseline_us: Option<f64>) -> Option<(f64, Reason)> {
    let errors = counts.error_ratio();
    let errors = Some((errors / bounds.error_ratio, Reason::ErrorRatio(errors)));
    let seen_us = latency_us(counts);
    let absolute = seen_us.zip(bounds.latency_ms).map(|(seen_us, bound)| {
        let ms = seen_us / 1_000.0;
        (ms / f64::from(bound), Reason::LatencyMs(ms))
    });
    let relative =
        seen_us.zip(baseline_us).zip(bounds.latency_ratio).map(|((seen_us, baseline_us), bound)| {
            let ratio = seen_us / baseline_us.max(1.0);
            (ratio / bound, Reason::LatencyRatio(ratio))
        });
    [errors, absolute, relative].into_iter().flatten().max_by(|(one, _), (other, _)| one.total_cmp(other))
}

/// The time to response headers, in microseconds: what nine in ten did not exceed. A hang is seen by what does not
/// happen: where most requests have not come to an end, it is the time that they wait in all, for each that has (Little's
/// law), which grows as long as the hang lasts.
pub(super) fn latency_us(counts: &Counts) -> Option<f64> {
    let seen_us = counts.latency.quantile_us(LATENCY_QUANTILE).map(|us| us as f64);
    let ended = counts.ended();
    if counts.passed() <= ended.saturating_mul(2) {
        return seen_us;
    }
    let waiting_us = counts.in_flight_us as f64 / ended.max(1) as f64;
    Some(seen_us.unwrap_or_default().max(waiting_us))
}

/// Whether there is enough to judge by: responses, or requests that wait for one.
fn is_enough(total: &Counts, window: &Window, bounds: &Measured) -> bool {
    let waiting = window.newest(1).in_flight_us / window.slot_us().max(1);
    u64::from(total.answered).saturating_add(waiting) >= bounds.min_requests.into()
}

/// How long so many slots are.
fn seconds(slots: u32, window: &Window) -> f64 {
    f64::from(slots) * window.slot_us() as f64 / 1e6
}

impl Switch {
    /// As bytes, for [`Switch::decode`].
    pub fn encode(&self) -> [u8; 42] {
        let (kind, value) = match self.reason {
            None => (0, 0.0),
            Some(Reason::ErrorRatio(value)) => (1, value),
            Some(Reason::LatencyMs(value)) => (2, value),
            Some(Reason::LatencyRatio(value)) => (3, value),
        };
        let mut bytes = [0; 42];
        let fields = [u8::from(self.degraded), kind].into_iter();
        let fields = fields.chain(self.agreeing.to_le_bytes()).chain(self.answered.to_le_bytes());
        let fields = fields.chain(self.stale.to_le_bytes());
        let fields = fields.chain(self.baseline_us.to_le_bytes());
        let fields = fields.chain(self.quickest_us.to_le_bytes()).chain(value.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// The state that these bytes are; `None` where they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[degraded, kind], rest) = bytes.split_first_chunk()?;
        let (agreeing, rest) = rest.split_first_chunk()?;
        let (answered, rest) = rest.split_first_chunk()?;
        let (stale, rest) = rest.split_first_chunk()?;
        let (baseline_us, rest) = rest.split_first_chunk()?;
        let (quickest_us, rest) = rest.split_first_chunk()?;
        let value = f64::from_le_bytes(rest.try_into().ok()?);
        let (baseline_us, quickest_us) = (f64::from_le_bytes(*baseline_us), f64::from_le_bytes(*quickest_us));
        let are_times = [baseline_us, quickest_us].iter().all(|us| us.is_finite() && *us >= 0.0);
        if !(are_times && value.is_finite() && degraded <= 1) {
            return None;
        }
        let reason = match kind {
            0 => None,
            1 => Some(Reason::ErrorRatio(value)),
            2 => Some(Reason::LatencyMs(value)),
            3 => Some(Reason::LatencyRatio(value)),
            _ => return None,
        };
        let (agreeing, answered) = (u32::from_le_bytes(*agreeing), u64::from_le_bytes(*answered));
        let stale = u32::from_le_bytes(*stale);
        Some(Self { degraded: degraded == 1, agreeing, answered, stale, baseline_us, quickest_us, reason })
    }
}
