//! How much of the traffic is too much: a pure function of the window's signals and of its own last state.
//!
//! TODO reasoning.

use super::shed::{Cut, Demand};
use super::signals::{Counts, LEVELS, Level, Window};
use super::switch::{Switch, latency_us};
use crate::config::Measured;
use crate::health::Health;

/// How many slots are looked at: as few as hold so many answers, within these bounds.
const LOOK: Span = Span { answers: 100, least: 2, most: 8 };
/// The same for rates, which vary more.
const RATES: Span = Span { answers: 100, least: 4, most: 8 };
/// The same for a cut that is judged, which takes more certainty.
const JUDGEMENT: Span = Span { answers: 300, least: 4, most: 8 };

/// A cut is judged after so many slots, and those that are looked at for it.
const SETTLING_SLOTS: u32 = 2;

/// The strain that is aimed at: half of the way from what is usual to the bound. The upstream is busy, and well.
const TARGET: f64 = 0.5;

/// How far the rate departs from the limit, for a strain off by one.
const GAIN: f64 = 0.15;

/// What is sent at least while a queue is drained, of what the upstream can do. An important tier that asks for 0.8 of
/// that is to be left alone.
const DRAIN: f64 = 0.85;

/// Below this strain there is room, and the limit grows, by [`FIRST_STEP`] in the first slot; the step doubles every
/// [`DOUBLING_SLOTS`] for as long as there is room, up to [`LARGEST_STEP`].
const ROOM: f64 = 0.45;
const FIRST_STEP: f64 = 0.005;
const DOUBLING_SLOTS: f64 = 2.0;
const LARGEST_STEP: f64 = 0.15;

/// Less than this of what is aimed at says nothing about whether more could be borne.
const USED: f64 = 0.75;

/// What the limit grows by in a slot between [`ROOM`] and the bound, so that it never stays where it is for good.
const PROBING_STEP: f64 = 0.001;

/// How much of the way to a higher floor is gone in one slot; over this, a floor is only what cutting did not mend, and
/// the bound gives way to so much more.
const FLOOR_RISE: f64 = 0.05;
const FLOOR_FALL: f64 = 0.15;
const HIGH_FLOOR: f64 = 0.8;
const STEP_OVER_FLOOR: f64 = 0.4;

/// How much of the difference between what was to be sent and what was is learned from in a slot, and the most that can
/// be learned.
const LEARNING: f64 = 0.4;
const MOST_INSISTENCE: f64 = 3.0;

/// A limit that proves to be a little too high is lowered to this at most.
const SMALL_STEP: f64 = 0.96;

/// A cut can be judged where what is sent fell at least to this.
const REAL_CUT: f64 = 0.9;

/// Where less than such a part of what is sent is answered at all, less is sent in each of the next slots, and then for so
/// many slots in all it is seen whether that helps.
const FUTILE: f64 = 0.25;
const FUTILE_STEP: f64 = 0.7;
const FUTILE_STEPS: u32 = 4;
const FUTILE_SLOTS: u32 = 24;

/// A strain that falls below this within a trial is mending, one that rises over that is not held up by the cut.
const MENDING: f64 = 0.9;
const WORSENING: f64 = 1.3;

/// After so many slots in which all that is sent has succeeded, what is left of a strain is how the upstream is.
const LONGEST_TRIAL: u32 = 24;

/// What counts at least of what is sent where it fails anyway.
const MOST_LOST: f64 = 0.95;

/// Where so much more succeeds than is sent, a queue drains; where less than this does, some of it fails.
const DRAINING: f64 = 1.05;
const SERVED: f64 = 0.95;

/// A trial is over when the strain is back below this.
const MENDED: f64 = 0.8;

/// What of that which is known is sent to an upstream that is back; and what is still known of it a slot later.
const COME_BACK: f64 = 0.5;
const FADING: f64 = 0.999;

/// For how many slots a cut that did not help is not tried again; twice as many each time.
const FIRST_REST: u32 = 60;
const LONGEST_REST: u32 = 1_200;

/// Where next to nothing succeeds, the first cut is to such a part of what is sent.
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
    /// How often a caller that is shed asks, for once that it would ask if it were served, as a logarithm.
    insistence: f64,
    /// For how many slots there has been room.
    roomy: u32,
    /// The cut that is on trial.
    trial: Trial,
    /// The strain that is there however little is sent.
    floor: f64,
    /// The share of what is sent that fails however little that is.
    lost: f64,
    /// Slots until a cut that did not help is tried again.
    rest: u32,
    /// What was answered well while nothing was wrong; fades.
    known: f64,
    /// How often in a row a cut has not helped.
    failures: u32,
    /// By level, the share of requests that their own buckets refused, as it was last seen.
    refused: [f64; LEVELS],
}

/// A cut, until it is known whether it helps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Trial {
    /// Slots since the first step of it.
    slots: u32,
    /// Slots since the last one; 0 where there is none.
    age: u32,
    /// Slots in which nobody got an answer.
    futile: u32,
    /// What was sent, and answered well, before it.
    sent: f64,
    good: f64,
    /// The strain then, or when it was last seen to lessen.
    strain: f64,
    /// The limit before it.
    limit: f64,
}

/// How many slots to look at.
struct Span {
    answers: u32,
    least: usize,
    most: usize,
}

/// What the newest slots say.
struct Seen {
    /// How many they are.
    slots: usize,
    counts: Counts,
    sent: f64,
    good: f64,
    /// What was sent in the last two.
    newest: f64,
}

impl Controller {
    /// One slot further. `health` is what holds now, an operator's word included; nothing is shed while it is `NORMAL`.
    pub fn step(self, window: &Window, bounds: &Measured, switch: &Switch, health: Health) -> Self {
        let refused = self.refused_by_level(window);
        if health == Health::Normal || !bounds.shed {
            let known = (self.known * FADING).max(Seen::over(window, RATES).good);
            return Self { refused, known, ..Self::default() };
        }
        let mut next = Self { refused, ..self };
        let seen = Seen::over(window, RATES);
        let strain_over = |counts| strain(counts, bounds, switch.baseline_us());
        // A burst is no overload, and what is over is over.
        let strain = strain_over(&Seen::over(window, LOOK).counts).min(strain_over(&seen.counts));
        next.learn_floor(strain);
        if next.over_floor(strain) > 1.0 {
            next.press(&seen, strain, window, bounds);
        } else {
            next.ease(&seen, strain);
        }
        next.aim = next.limit * leaning(next.over_floor(strain));
        next.turn_away(window, self.aim);
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

    /// Where the strain would be, on a scale from its floor (0) to the bound (1), or to somewhat above a floor that is
    /// near the bound or over it.
    fn over_floor(&self, strain: f64) -> f64 {
        let width =
            if self.floor > HIGH_FLOOR { STEP_OVER_FLOOR * (1.0 + self.floor) } else { 1.0 - self.floor };
        ((strain - self.floor) / width).max(0.0)
    }

    /// A strain that is there with nobody waiting is no reason to send less. What is seen is believed at once where it is
    /// less, and slowly where it is more; too little is sent for a while, and never too much.
    fn learn_floor(&mut self, strain: f64) {
        self.rest = self.rest.saturating_sub(1);
        if self.rest == 0 && (self.floor > HIGH_FLOOR || self.severity <= 0.0) {
            self.floor = 0.0;
            self.lost = 0.0;
        }
        if strain < self.floor {
            self.floor += FLOOR_FALL * (strain - self.floor);
        } else if self.over_floor(strain) <= 1.0 && self.floor <= HIGH_FLOOR && self.severity > 0.0 {
            self.floor += FLOOR_RISE * (strain.min(HIGH_FLOOR) - self.floor).max(0.0);
        }
    }

    /// A bound is broken: cut to what the upstream does well, then see whether that helped.
    fn press(&mut self, seen: &Seen, strain: f64, window: &Window, bounds: &Measured) {
        self.roomy = 0;
        self.trial.slots = self.trial.slots.saturating_add(1);
        if self.trial.age == 0 {
            // An upstream that has just collapsed under its queue has shown before what it can do.
            let doable = seen.good.max(best(window) / 4.0).max(seen.sent * BLIND_CUT);
            // What did not help the last time is tried with care.
            let doable = if self.failures > 0 { doable.max(seen.sent * REAL_CUT) } else { doable };
            // Little is wrong with a limit that has held so far.
            let small = self.limit * SMALL_STEP;
            let doable = if doable > small * DRAIN { doable.max(small) } else { doable };
            self.cut_to(doable, strain, seen, bounds);
            return;
        }
        let newest = window.newest(LOOK.least);
        let is_futile = f64::from(newest.answered) < newest.passed() as f64 * FUTILE;
        if is_futile && self.trial.futile < FUTILE_SLOTS {
            // Nobody gets an answer, so that nothing is lost by sending less, and the queue may drain.
            self.trial.futile = self.trial.futile.saturating_add(1);
            self.trial.age = 1;
            let step = if self.trial.futile <= FUTILE_STEPS { FUTILE_STEP } else { 1.0 };
            self.lower(self.limit * step, bounds);
            return;
        }
        self.trial.age = self.trial.age.saturating_add(1);
        let judged = Seen::over(window, JUDGEMENT);
        if self.trial.age <= SETTLING_SLOTS.saturating_add(judged.slots as u32) {
            return;
        }
        let share = judged.sent / self.trial.sent.max(f64::MIN_POSITIVE);
        let (was, served) = (self.trial.strain, judged.good > judged.sent * SERVED);
        let is_draining = judged.good > judged.sent * DRAINING && judged.counts.answered > JUDGEMENT.answers;
        if self.trial.slots > LONGEST_TRIAL && served && !is_draining {
            self.bear(strain);
        } else if is_draining || served && strain < was * MENDING {
            self.trial.age = 1;
            self.trial.strain = strain;
        } else if strain > was * WORSENING {
            self.cut_to(judged.good * DRAIN, strain, &judged, bounds);
        } else if share < REAL_CUT && judged.good <= self.trial.good * share.sqrt() {
            // What succeeded has fallen as what was sent: it was not too much that was sent. All is as before the cut.
            self.limit = self.trial.limit;
            self.bear(strain);
            self.lost = (1.0 - judged.good / judged.sent.max(f64::MIN_POSITIVE)).clamp(0.0, MOST_LOST);
        } else if served && self.trial.slots > LONGEST_TRIAL / 2 {
            // All that is sent succeeds, and less of it changes nothing: this is how the upstream is.
            self.bear(strain);
        } else if served {
            self.cut_to(judged.good * DRAIN, strain, &judged, bounds);
        } else {
            self.cut_to(judged.good, strain, &judged, bounds);
        }
    }

    /// Takes a step down, whose worth is then to be seen.
    fn cut_to(&mut self, rate: f64, strain: f64, seen: &Seen, bounds: &Measured) {
        let slots = self.trial.slots;
        self.trial =
            Trial { slots, age: 1, futile: 0, sent: seen.sent, good: seen.good, strain, limit: self.limit };
        // What fails anyway does not count against what can be sent.
        self.lower(rate / (1.0 - self.lost), bounds);
    }

    fn lower(&mut self, rate: f64, bounds: &Measured) {
        // Somebody has to find out whether the upstream is back.
        let least = f64::from(bounds.min_requests) / f64::from(bounds.window_seconds.max(1));
        let limit = if self.limit > 0.0 { self.limit.min(rate) } else { rate };
        self.limit = limit.max(least);
    }

    /// Shedding does not mend this strain; it is tried again later.
    fn bear(&mut self, strain: f64) {
        self.trial = Trial::default();
        self.floor = strain;
        self.rest = FIRST_REST.saturating_mul(1 << self.failures.min(5)).min(LONGEST_REST);
        self.failures = self.failures.saturating_add(1);
    }

    /// All bounds hold: let more through where there is room and where it is asked for.
    fn ease(&mut self, seen: &Seen, strain: f64) {
        let strain = self.over_floor(strain);
        if strain < MENDED && self.trial.age > 0 {
            if self.trial.futile > 0 && seen.good > seen.sent * SERVED {
                // It is back, and need not be found out anew from next to nothing.
                self.limit = self.limit.max(self.known * COME_BACK);
            }
            self.trial = Trial::default();
            self.failures = 0;
        }
        self.roomy = if strain < ROOM { self.roomy.saturating_add(1) } else { 0 };
        let quick = FIRST_STEP * (f64::from(self.roomy) / DOUBLING_SLOTS).exp2();
        let step = match strain {
            strain if strain < ROOM => quick.min(LARGEST_STEP),
            strain if strain < TARGET => PROBING_STEP,
            _ => PROBING_STEP / 4.0,
        };
        // What is not asked for is not known to be borne.
        if self.severity > 0.0 && seen.newest > self.aim * USED {
            self.limit *= 1.0 + step;
        }
    }

    /// What is turned away, and whose, so that no more is sent than is aimed at.
    fn turn_away(&mut self, window: &Window, aimed: f64) {
        let newest = window.newest(1);
        let seconds = slot_seconds(window);
        let sent = newest.passed() as f64 / seconds;
        self.insistence = if self.severity > 0.0 && aimed > 0.0 {
            let off = (aimed / sent.max(aimed / 4.0)).min(4.0).ln();
            (self.insistence + LEARNING * off).clamp(-MOST_INSISTENCE, MOST_INSISTENCE)
        } else {
            0.0
        };
        let mut demand = [Demand::default(); LEVELS];
        for ((demand, level), refused) in demand.iter_mut().zip(&newest.levels).zip(self.refused) {
            let shed = f64::from(level.shed) * (1.0 - refused) / self.insistence.exp();
            demand.rate = (f64::from(level.passed) + shed) / seconds;
            demand.kept = (level.kept_milli as f64 / 1_000.0 / level.offered().max(1) as f64).min(1.0);
        }
        let total: f64 = demand.iter().map(|level| level.rate).sum();
        let kept = if self.aim > 0.0 { (self.aim / total.max(f64::MIN_POSITIVE)).min(1.0) } else { 1.0 };
        self.severity = 1.0 - kept;
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
    fn over(window: &Window, span: Span) -> Self {
        let is_enough = |slots: &usize| window.newest(*slots).answered >= span.answers;
        let slots = (span.least..span.most).find(is_enough).unwrap_or(span.most);
        let counts = window.newest(slots);
        let seconds = slots.min(window.slots().len()).max(1) as f64 * slot_seconds(window);
        Self {
            slots,
            sent: counts.passed() as f64 / seconds,
            good: f64::from(counts.good()) / seconds,
            newest: window.newest(2).passed() as f64 / (2.0 * slot_seconds(window)),
            counts,
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
            self.insistence,
            f64::from(self.roomy),
            f64::from(trial.slots),
            f64::from(trial.age),
            f64::from(trial.futile),
            trial.sent,
            trial.good,
            trial.strain,
            trial.limit,
            self.floor,
            self.lost,
            f64::from(self.rest),
            self.known,
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
        let mut fields =
            fields.chunks_exact(8).map(|field| field.try_into().map_or(f64::NAN, f64::from_le_bytes));
        let mut next = || fields.next().filter(|field| field.is_finite());
        // Out of range is clipped by the conversions to whole numbers.
        Some(Self {
            severity: next()?.clamp(0.0, 1.0),
            cut: Cut { share: next()?, level: next()? as u8 },
            limit: next()?,
            aim: next()?,
            insistence: next()?,
            roomy: next()? as u32,
            trial: Trial {
                slots: next()? as u32,
                age: next()? as u32,
                futile: next()? as u32,
                sent: next()?,
                good: next()?,
                strain: next()?,
                limit: next()?,
            },
            floor: next()?,
            lost: next()?.clamp(0.0, MOST_LOST),
            rest: next()? as u32,
            known: next()?,
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
const FIELDS: usize = 19 + LEVELS;
