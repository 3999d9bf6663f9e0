//! How much of the traffic is too much: a pure function of the window's signals and of its own last state.
//!
//! TODO reasoning.

use super::shed::{Cut, Demand};
use super::signals::{Counts, LEVELS, Level, SLOTS, Window};
use super::switch::{Switch, latency_us};
use crate::config::Measured;
use crate::health::Health;

/// Signals are read over the newest slots that saw so many responses, but over no fewer than [`LEAST_SPAN`].
const ENOUGH_ANSWERS: u32 = 100;
const LEAST_SPAN: usize = 4;

/// The strain that is aimed at: half of the way from what is usual to the bound. The upstream is busy, and well.
const TARGET: f64 = 0.5;

/// How far the rate departs from the limit, for a strain off by one.
const GAIN: f64 = 0.15;

/// What is sent at least while a queue is drained, of what the upstream can do. An important tier that asks for 0.8 of
/// that is to be left alone.
const DRAIN: f64 = 0.85;

/// Below this strain there is room, and the limit grows, by [`FIRST_STEP`] in the first slot; the step doubles every
/// [`DOUBLING_SLOTS`] for as long as there is room, up to [`LARGEST_STEP`].
const ROOM: f64 = 0.35;
const FIRST_STEP: f64 = 0.005;
const DOUBLING_SLOTS: f64 = 2.0;
const LARGEST_STEP: f64 = 0.25;

/// What the limit grows by in a slot between [`ROOM`] and the bound, so that it never stays where it is for good.
const PROBING_STEP: f64 = 0.002;

/// A cut is judged after so many slots, and those that the signals are read over.
const SETTLING_SLOTS: u32 = 2;

/// A cut can be judged where what is sent fell at least to this.
const REAL_CUT: f64 = 0.9;

/// A trial is over when the strain is back below this.
const MENDED: f64 = 0.8;

/// For how many slots a cut that did not help is not tried again; twice as many each time.
const FIRST_REST: u32 = 60;
const LONGEST_REST: u32 = 1_200;

/// A limit never is below this, in requests a second: somebody has to find out whether the upstream is back.
const LEAST_LIMIT: f64 = 1.0;

/// Where nothing is known to succeed, the first cut is to such a part of what is sent.
const BLIND_CUT: f64 = 1.0 / 64.0;

/// What is being shed, and what led there. All rates are in requests a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Controller {
    severity: f64,
    cut: Cut,
    /// What the upstream is taken to bear; 0 where no limit is known.
    limit: f64,
    /// What was to be sent in the last slot; 0 without a limit.
    aim: f64,
    /// What callers with their different rates make of a share of callers: aimed at over sent, as a logarithm.
    correction: f64,
    /// For how many slots there has been room.
    roomy: u32,
    /// The cut that is on trial.
    trial: Trial,
    /// Strain that cutting did not mend, over 1; 0 where there is none.
    unmended: f64,
    /// Slots until it is tried again.
    rest: u32,
    /// How often in a row a cut has not helped.
    failures: u32,
    /// By level, the share of requests that their own buckets refused, as it was last seen.
    refused: [f64; LEVELS],
}

/// A cut, until it is known whether it helps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Trial {
    /// Slots since the last step of it; 0 where there is none.
    age: u32,
    /// What was sent, and answered well, before it.
    sent: f64,
    good: f64,
    /// The limit before it.
    limit: f64,
}

/// What the newest slots say.
struct Seen {
    /// How many they are.
    span: usize,
    sent: f64,
    good: f64,
    /// 0 where all is as usual, 1 at a bound.
    strain: f64,
}

impl Controller {
    /// One slot further. `health` is what holds now, an operator's word included; nothing is shed while it is `NORMAL`.
    pub fn step(self, window: &Window, bounds: &Measured, switch: &Switch, health: Health) -> Self {
        let refused = self.refused_by_level(window);
        if health == Health::Normal || !bounds.shed {
            return Self { refused, ..Self::default() };
        }
        let seen = Seen::read(window, bounds, switch.baseline_us());
        let mut next = Self { refused, ..self };
        next.rest_from_cuts(seen.strain);
        let strain = seen.strain / next.unmended.max(1.0);
        if strain > 1.0 {
            next.press(&seen, window);
        } else {
            next.ease(&seen, strain);
        }
        next.aim = next.limit * leaning(strain);
        next.turn_away(window, seen.sent);
        next
    }

    /// The share of the demand that is to be turned away, 0 to 1.
    pub fn severity(&self) -> f64 {
        self.severity
    }

    /// Who is turned away for it.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// Strain that cutting did not mend is borne until it lessens by itself, or the time to try again has come.
    fn rest_from_cuts(&mut self, strain: f64) {
        self.rest = self.rest.saturating_sub(1);
        self.unmended = if self.rest == 0 { 0.0 } else { self.unmended.min(strain * 1.25) };
        if self.unmended <= 1.0 {
            self.unmended = 0.0;
            self.rest = 0;
        }
    }

    /// A bound is broken: cut to what the upstream does well, then see whether that helped.
    fn press(&mut self, seen: &Seen, window: &Window) {
        self.roomy = 0;
        if self.trial.age == 0 {
            self.trial = Trial { age: 1, sent: seen.sent, good: seen.good, limit: self.limit };
            // An upstream that has just collapsed under its queue has shown before what it can do.
            let doable = seen.good.max(best(window) / 2.0).max(seen.sent * BLIND_CUT);
            self.lower(doable);
            return;
        }
        self.trial.age = self.trial.age.saturating_add(1);
        if self.trial.age <= SETTLING_SLOTS.saturating_add(seen.span as u32) {
            return;
        }
        self.trial.age = 1;
        let sent = seen.sent / self.trial.sent.max(f64::MIN_POSITIVE);
        if sent >= REAL_CUT {
            self.lower(seen.good.min(self.limit * DRAIN));
        } else if seen.good > self.trial.good * sent.sqrt() {
            self.lower(seen.good);
        } else {
            self.give_up(seen.strain);
        }
    }

    fn lower(&mut self, rate: f64) {
        let limit = if self.limit > 0.0 { self.limit.min(rate) } else { rate };
        self.limit = limit.max(LEAST_LIMIT);
    }

    /// What succeeded has fallen as what was sent: it was not too much that was sent. Everything is as before the cut.
    fn give_up(&mut self, strain: f64) {
        self.limit = self.trial.limit;
        self.trial = Trial::default();
        self.unmended = strain * 1.25;
        self.rest = FIRST_REST.saturating_mul(1 << self.failures.min(5)).min(LONGEST_REST);
        self.failures = self.failures.saturating_add(1);
    }

    /// All bounds hold: let more through where there is room and where it is asked for.
    fn ease(&mut self, seen: &Seen, strain: f64) {
        if strain < MENDED && self.trial.age > 0 {
            self.trial = Trial::default();
            self.failures = 0;
        }
        self.roomy = if strain < ROOM { self.roomy.saturating_add(1) } else { 0 };
        let is_used = self.severity > 0.0 && seen.sent > self.aim * DRAIN;
        if is_used || self.roomy > 0 && self.severity > 0.0 {
            let quick = FIRST_STEP * (f64::from(self.roomy) / DOUBLING_SLOTS).exp2();
            let step = if self.roomy > 0 { quick.min(LARGEST_STEP) } else { PROBING_STEP };
            self.limit *= 1.0 + step;
        }
    }

    /// Which share of whom is turned away so that no more is sent than is aimed at.
    fn turn_away(&mut self, window: &Window, sent: f64) {
        let newest = window.newest(2);
        let slots = window.slots().len().clamp(1, 2);
        let seconds = slots as f64 * slot_seconds(window);
        let mut demand = [Demand::default(); LEVELS];
        for ((demand, level), refused) in demand.iter_mut().zip(&newest.levels).zip(self.refused) {
            demand.rate = (f64::from(level.passed) + f64::from(level.shed) * (1.0 - refused)) / seconds;
            demand.kept = (level.kept_milli as f64 / 1_000.0 / level.offered().max(1) as f64).min(1.0);
        }
        let total: f64 = demand.iter().map(|level| level.rate).sum();
        let _ = sent;
        self.severity = if self.aim > 0.0 && total > self.aim { 1.0 - self.aim / total } else { 0.0 };
        self.cut = Cut::of(self.severity, &demand);
    }

    fn refused_by_level(&self, window: &Window) -> [f64; LEVELS] {
        let mut shares = self.refused;
        for (share, Level { passed, refused, .. }) in shares.iter_mut().zip(&window.total().levels) {
            if passed.saturating_add(*refused) > 0 {
                *share = f64::from(*refused) / (f64::from(*passed) + f64::from(*refused));
            }
        }
        shares
    }
}

impl Seen {
    fn read(window: &Window, bounds: &Measured, baseline_us: Option<f64>) -> Self {
        let span = (LEAST_SPAN..SLOTS).find(|span| window.newest(*span).answered >= ENOUGH_ANSWERS);
        let span = span.unwrap_or(SLOTS);
        let counts = window.newest(span);
        let seconds = span.min(window.slots().len()).max(1) as f64 * slot_seconds(window);
        Self {
            span,
            sent: counts.passed() as f64 / seconds,
            good: f64::from(counts.good()) / seconds,
            strain: strain(&counts, bounds, baseline_us),
        }
    }
}

/// The worst of the signals, on a scale from what is usual (0) to its bound (1).
fn strain(counts: &Counts, bounds: &Measured, baseline_us: Option<f64>) -> f64 {
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

/// Which part of the limit is sent, so that the strain comes to what is aimed at.
fn leaning(strain: f64) -> f64 {
    (1.0 + GAIN * (TARGET - strain)).clamp(DRAIN, 1.0 + GAIN * TARGET)
}

/// The most that was answered well in two slots of the window, in requests a second.
fn best(window: &Window) -> f64 {
    let pairs = window.slots().zip(window.slots().skip(1));
    let best = pairs.map(|(one, next)| one.good().saturating_add(next.good())).max();
    f64::from(best.unwrap_or_default()) / (2.0 * slot_seconds(window))
}

fn slot_seconds(window: &Window) -> f64 {
    window.slot_us().max(1) as f64 / 1e6
}

impl Controller {
    /// As bytes, for [`Controller::decode`].
    pub fn encode(&self) -> [u8; FIELDS * 8] {
        let trial = self.trial;
        let fields = [
            self.severity,
            self.cut.share,
            f64::from(self.cut.level),
            self.limit,
            self.aim,
            self.correction,
            f64::from(self.roomy),
            f64::from(trial.age),
            trial.sent,
            trial.good,
            trial.limit,
            self.unmended,
            f64::from(self.rest),
            f64::from(self.failures),
        ];
        let mut bytes = [0; FIELDS * 8];
        let fields = fields.into_iter().chain(self.refused).flat_map(f64::to_le_bytes);
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// The state that these bytes are; `None` where they are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fields: &[u8; FIELDS * 8] = bytes.try_into().ok()?;
        let mut fields = fields.chunks_exact(8).map(|field| field.try_into().map_or(f64::NAN, f64::from_le_bytes));
        let mut next = || fields.next().filter(|field| field.is_finite());
        // Out of range is clipped by the conversions to whole numbers.
        Some(Self {
            severity: next()?.clamp(0.0, 1.0),
            cut: Cut { share: next()?, level: next()? as u8 },
            limit: next()?,
            aim: next()?,
            correction: next()?,
            roomy: next()? as u32,
            trial: Trial { age: next()? as u32, sent: next()?, good: next()?, limit: next()? },
            unmended: next()?,
            rest: next()? as u32,
            failures: next()? as u32,
            refused: {
                let mut refused = [0.0; LEVELS];
                for share in &mut refused {
                    *share = next()?;
                }
                refused
            },
        })
    }
}

/// Numbers that a state is made of.
const FIELDS: usize = 14 + LEVELS;
