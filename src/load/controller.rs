//! How much of the traffic is too much: a pure function of the window's signals and of its own last state.
//!
//! **What it does.** It holds a limit, in requests a second that the upstream is taken to bear, and sends about that.
//! The severity is what is asked for beyond it, so when demand rises tenfold severity follows in the same slot, and when
//! demand falls below the limit nothing is shed. The signals become one number, the strain: 0 as usual, 1 at a bound.
//!
//! - Over the bound, the limit falls to what the upstream does well, and a little less is sent until the strain is gone.
//! - Under it, the limit grows, faster the longer there is room, and only while what is let through is asked for.
//! - Near the aim, halfway to the bound, what is sent leans against the strain in proportion.
//!
//! **Only what helps.** Shedding mends an upstream that is asked for too much, and no other. So each cut is a trial. If
//! what succeeds falls as what is sent does, the cut was in vain: it is taken back, and the strain that is left is borne
//! until it lessens or, much later, the next trial. An upstream that is dead or fails whatever the load thus gets its
//! traffic back within seconds. Where clients give up before they are answered, nothing is lost by a deeper cut, and a
//! queue full of requests that nobody waits for has to be worked off first; so there the limit falls on.
//!
//! **Who insists.** Callers that are shed ask again, more often than if they were served, and some callers ask for much
//! more than others. So a share of what is asked is not a share of what would be sent. How far the two differ is learned
//! from slot to slot.
//!
//! **What was looked at, what was taken, and what not.**
//!
//! - *Envoy's admission control* turns away by a formula of the success ratio alone (after Google's client-side
//!   throttling). Taken: the limit after a cut is what succeeded. Not taken: a ratio alone is blind to latency, and
//!   sheds as much of an upstream that fails by itself, where shedding does not help.
//! - *Netflix's gradient* multiplies a limit on concurrency by the usual latency over the present one. Taken: a usual
//!   latency as the zero of the scale, and the lean in proportion. Not taken: a limit on requests in flight, which
//!   would have to be enforced within one request and so by all workers together at each; a rate holds for half a second.
//! - *Uber's Cinnamon* drives the share to reject by a PID on the balance of what comes in and goes out, and orders by
//!   tier and cohort. Taken: tier first, callers within it, and the balance of sent and answered as the sign of a queue.
//!   Not taken: integral and derivative on a share. A share that was right for one demand is wrong for the next; with
//!   a rate, a change of demand needs no control at all.
//! - *WeChat's DAGOR* moves a line through business and user priorities by fixed steps, down quickly and up slowly.
//!   Taken: the one line ([`super::shed`]), and the asymmetry. Not taken: fixed steps, which take many windows at
//!   twentyfold overload and overshoot at a little.
//! - *CUBIC and BBR*, from TCP: growth that starts anew from a known point and doubles, draining below the estimate
//!   after a queue was built, and a minimum that is relearned.
//!
//! `tests/overload` closes the loop around it, and says what holds and what does not.

mod bytes;
mod seen;

use self::seen::{JUDGEMENT, LOOK, RATES, Seen, best, slot_seconds, strain};
use super::shed::{Cut, Demand};
use super::signals::{LEVELS, Level, Window};
use super::switch::Switch;
use crate::config::Measured;
use crate::health::Health;

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

/// Where less than such a part of what is sent is answered at all, less is sent in each of the next slots.
const FUTILE: f64 = 0.25;
const FUTILE_STEP: f64 = 0.7;
const FUTILE_STEPS: u32 = 4;

/// A strain that falls below this within a trial is mending, one that rises over that is not held up by the cut.
const MENDING: f64 = 0.9;
const WORSENING: f64 = 1.3;

/// After so many slots in which all that is sent has succeeded, what is left of a strain is how the upstream is.
const LONGEST_TRIAL: u32 = 24;

/// Where less than this succeeds of what is sent, a cut costs next to nothing.
const WORTH_SPARING: f64 = 0.05;

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
    /// The strain when it began, or when that was last seen to lessen.
    strain: f64,
    /// How it was before its first step, and before its last.
    first: Before,
    last: Before,
}

/// What there was before a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Before {
    /// What was sent, and answered well.
    sent: f64,
    good: f64,
    limit: f64,
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

    /// A strain that is there with nobody waiting is no reason to send less. A lower one is soon
    /// believed and a higher one slowly: too little is sent for a while, and not too much.
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
            self.cut_to(self.first_cut(seen, window), strain, seen, bounds);
            return;
        }
        let newest = window.newest(LOOK.least);
        let is_futile = f64::from(newest.answered) < newest.passed() as f64 * FUTILE;
        if is_futile {
            // Nobody gets an answer, so that nothing is lost by sending less, and the queue may drain.
            self.trial.futile = self.trial.futile.saturating_add(1);
            self.trial.age = 1;
            let step = if self.trial.futile <= FUTILE_STEPS { FUTILE_STEP } else { 1.0 };
            self.lower(self.limit * step, bounds);
            return;
        }
        self.trial.age = self.trial.age.saturating_add(1);
        let judged = Seen::over(window, JUDGEMENT);
        if self.trial.age > SETTLING_SLOTS.saturating_add(judged.slots as u32) {
            self.judge(&judged, strain, bounds);
        }
    }

    /// What is sent first once a bound is broken.
    fn first_cut(&self, seen: &Seen, window: &Window) -> f64 {
        // An upstream that has just collapsed under its queue has shown before what it can do.
        let doable = seen.good.max(best(window) / 4.0).max(seen.sent * BLIND_CUT);
        // What did not help the last time is tried with care.
        let is_sparing = self.failures > 0 && seen.good > seen.sent * WORTH_SPARING;
        let doable = if is_sparing { doable.max(seen.sent * REAL_CUT) } else { doable };
        // Little is wrong with a limit that has held so far.
        let small = self.limit * SMALL_STEP;
        if doable > small * DRAIN { doable.max(small) } else { doable }
    }

    /// A bound is still broken some time after a cut.
    fn judge(&mut self, judged: &Seen, strain: f64, bounds: &Measured) {
        let (was, served) = (self.trial.strain, judged.good > judged.sent * SERVED);
        let is_draining = judged.good > judged.sent * DRAINING && judged.counts.answered > JUDGEMENT.answers;
        if self.trial.slots > LONGEST_TRIAL && served && !is_draining {
            self.bear(strain);
        } else if is_draining || served && strain < was * MENDING {
            self.trial.age = 1;
            self.trial.strain = strain;
        } else if strain > was * WORSENING {
            self.cut_to(judged.good * DRAIN, strain, judged, bounds);
        } else if let Some(before) = self.trial.in_vain(judged) {
            // It was not too much that was sent. All is as before the cut.
            self.limit = before.limit;
            self.bear(strain);
            self.lost = (1.0 - judged.good / judged.sent.max(f64::MIN_POSITIVE)).clamp(0.0, MOST_LOST);
        } else if served && self.trial.slots > LONGEST_TRIAL / 2 {
            // All that is sent succeeds, and less of it changes nothing: this is how the upstream is.
            self.bear(strain);
        } else if served {
            self.cut_to(judged.good * DRAIN, strain, judged, bounds);
        } else {
            self.cut_to(judged.good, strain, judged, bounds);
        }
    }

    /// Takes a step down, whose worth is then to be seen.
    fn cut_to(&mut self, rate: f64, strain: f64, seen: &Seen, bounds: &Measured) {
        let before = Before { sent: seen.sent, good: seen.good, limit: self.limit };
        let first = if self.trial.age == 0 { before } else { self.trial.first };
        self.trial = Trial { age: 1, strain, first, last: before, ..self.trial };
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
        if self.trial.futile > 0 && self.limit > 0.0 {
            // It is back, if not as it was, and need not be found out anew from next to nothing.
            self.limit = self.limit.max(self.known * COME_BACK / 2.0);
        }
        self.trial = Trial::default();
        self.floor = strain;
        self.rest = FIRST_REST.saturating_mul(1 << self.failures.min(5)).min(LONGEST_REST);
        self.failures = self.failures.saturating_add(1);
    }

    /// All bounds hold: let more through where there is room and where it is asked for.
    fn ease(&mut self, seen: &Seen, strain: f64) {
        let strain = self.over_floor(strain);
        if strain < MENDED && self.trial.age > 0 {
            if self.trial.futile > 0 {
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

impl Trial {
    /// Where to go back to if cutting was in vain: what succeeds has fallen as what is sent.
    fn in_vain(&self, judged: &Seen) -> Option<Before> {
        if judged.answered < judged.sent / 2.0 {
            // Most clients give up waiting, and what they waited for has yet to be worked off.
            return None;
        }
        let is_vain = |before: &Before| {
            let share = judged.sent / before.sent.max(f64::MIN_POSITIVE);
            share < REAL_CUT && judged.good <= before.good * share.sqrt()
        };
        [self.first, self.last].into_iter().find(is_vain)
    }
}

/// Which part of the limit is sent, so that the strain comes to what is aimed at.
fn leaning(strain: f64) -> f64 {
    (1.0 + GAIN * (TARGET - strain)).clamp(DRAIN, 1.0 + GAIN * TARGET)
}
