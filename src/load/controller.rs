//! How much of the traffic is too much: a pure function of the window's signals and of its own last state.
//!
//! **What it does.** It holds a limit, in requests a second that the upstream is taken to bear, and aims at sending that.
//! The severity is what is asked for beyond it, so when demand rises tenfold severity follows in the same slot, and when
//! demand falls below the limit nothing is shed ([`crowd`]). What the upstream can do shows in four signs ([`seen`]):
//!
//! - **A queue** stands where even the quickest requests wait. Then what is answered is what can be done, and the limit
//!   falls to it; and less than that is sent until the queue is gone. Requests in flight tell that a queue grows, or is
//!   gone, before the latency of those that have come through it does.
//! - **Nobody gets anything in time**: the queue is so long that the upstream works on what nobody waits for any more.
//!   Nothing is lost by sending next to nothing until that is worked off, and then what it was known to do.
//! - **Refusals**, which are errors that came sooner than work takes, and no queue: it may be asked for too much, or be
//!   ill. Only what it has not borne before can be too much, so no less than that is sent; and if what is worked on falls as
//!   what is sent does, the cut is taken back.
//! - **Neither**: there is room, and the limit grows, faster the longer there is, while what is let through is asked for;
//!   where everything is as quick as usual, within seconds to what was done before when it was. A limit that has turned
//!   nobody away for a while is forgotten.
//!
//! An error that took the time that work takes is work: it says what the upstream can do as a good answer does, and
//! nothing of whether it is asked for too much.
//!
//! **Only what helps.** Shedding mends an upstream that is asked for too much, and no other. One that is slow by itself
//! has requests that are as quick as ever among the slow ones, where service times vary; and where they do not, a cut is a
//! trial: if it leaves latency as it is, that is borne, and only what comes on top counts. As long as no limit is known,
//! what may be chance is not cut for: a queue has to stand for a while first, or to be long. An upstream that is dead or
//! fails whatever the load gets its traffic.
//!
//! **What was looked at, what was taken, and what not.**
//!
//! - *Envoy's admission control* turns away by a formula of the success ratio alone (after Google's client-side
//!   throttling). Taken: the limit after a cut is what succeeded. Not taken: a ratio alone is blind to latency, and
//!   sheds as much of an upstream that fails by itself, where shedding does not help.
//! - *CoDel* takes the least that anybody waited for the length of a queue that stands, and does not mistake a burst or a
//!   slow request for one. Taken, with one in ten in place of the least.
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
mod crowd;
mod seen;

use self::crowd::Crowd;
use self::seen::{IDLE, LOOK, RATES, Seen, best, doable, late, pace, slot_seconds};
use super::shed::Cut;
use super::signals::Window;
use super::switch::Switch;
use crate::config::Measured;
use crate::health::Health;

/// The strain that is aimed at, from 0 as usual to 1 at a bound: the upstream is busy, and well.
const TARGET: f64 = 0.5;

/// How far what is sent departs from the limit, for a strain off by one; how much less it is for each second that a bound
/// is broken; and between which parts of the limit it stays.
const GAIN: f64 = 0.08;
const DEEPER: f64 = 0.03;
const LEAST: f64 = 0.8;
const MOST: f64 = 1.04;

/// Below this strain there is room, and the limit grows by a step each half second. Up to this part of what the upstream
/// has shown, by [`SURE_STEP`], and further up to that, by [`LIKELY_STEP`].
const ROOM: f64 = 0.45;
const SURE: f64 = 0.7;
const SURE_STEP: f64 = 0.4;
const LIKELY: f64 = 0.9;
const LIKELY_STEP: f64 = 0.03;

/// Beyond that by this, and by e times as much every so many half seconds for as long as there is room, up to a step that
/// is larger where nobody waits at all.
const FIRST_STEP: f64 = 0.005;
const MULTIPLYING: f64 = 10.0;
const LARGEST_STEP: f64 = 0.02;
const LARGEST_IDLE_STEP: f64 = 0.15;

/// By this up to what was done before when all was as quick as usual, if it is again; and beyond, where nine in ten are as
/// quick as usual, or nearly so, with enough answers that this is not chance, and hardly any were refused within the window.
const USUAL_STEP: f64 = 0.15;
const AS_USUAL: f64 = 1.1;
const ENOUGH: f64 = 250.0;
const FEW_REFUSED: f64 = 0.01;

/// What was done when all was as quick as usual is believed no longer if a bound is broken within so many seconds of that.
const TRUSTING: f64 = 5.0;

/// Where nobody was turned away for so many half seconds, and no bound was broken, no limit is needed; the second where
/// there was no room for a part of them.
const FREE: f64 = 10.0;
const FREE_BUSY: f64 = 20.0;

/// Between [`ROOM`] and [`TARGET`] by this, for a strain off by one.
const NEAR_STEP: f64 = 0.02;

/// Where less than this of what is aimed at is sent, more of it is not known to be borne; or less than that, where the
/// upstream has shown before that it is.
const USED: f64 = 0.75;
const USED_BEFORE: f64 = 0.5;

/// The limit grows to no more than this, as a multiple of what is sent.
const AHEAD: f64 = 1.15;

/// How long a queue has to stand until what is worked on is known to be what can be done; and over how many seconds that
/// is seen at most.
const LEAST_BUSY: f64 = 1.0;
const MOST_BUSY: f64 = 4.0;

/// A queue that comes by chance is gone sooner than this, in seconds; one over so many bounds is not by chance.
const CHANCE_SECONDS: f64 = 2.0;
const NO_CHANCE: f64 = 2.0;

/// How much of the way to what can be done the limit falls in half a second, and how far from it it stays at most.
const FALL: f64 = 0.1;
const FAR: f64 = 1.3;

/// So much may come too late by chance; where more than that does, nobody is taken to get anything in time.
const SOME_LATE: f64 = 0.1;
const MOST_LATE: f64 = 0.5;

/// What is sent at least, of what the upstream can do, where nobody gets anything in time; for how many seconds it is
/// believed that it still can; and how much less is believed in each half second after that.
const PROBE: f64 = 0.1;
const BELIEVED: f64 = 8.0;
const DOUBT: f64 = 0.08;

/// What of that which is known is sent to an upstream that is back after longer than that.
const COME_BACK: f64 = 0.9;

/// What is known of one that collapses under what it was sent: the best that it did, between these parts of that.
const COLLAPSED: f64 = 0.8;
const COLLAPSED_MOST: f64 = 0.4;

/// For how many seconds after that rates are still of the time before.
const UNSETTLED: f64 = 2.0;

/// How much of the way to a lower floor is gone in a slot, and to a higher one in half a second; a floor over this is only
/// what cutting did not mend, and the bound gives way to so much more.
const FLOOR_FALL: f64 = 0.15;
const FLOOR_RISE: f64 = 0.015;
const HIGH_FLOOR: f64 = 0.8;
const STEP_OVER_FLOOR: f64 = 0.4;

/// A cut is judged after so many seconds, the time that is looked at for it, and the latency, twice; and where what is sent
/// fell at least to this.
const SETTLING: f64 = 1.0;
const REAL_CUT: f64 = 0.9;

/// A strain that falls below this within a trial is mending; and a trial is over when the strain is back below that.
const MENDING: f64 = 0.9;
const MENDED: f64 = 0.8;

/// Where less than this is worked on in time of what is sent, some of it fails.
const SERVED: f64 = 0.95;

/// Where less than this is, there is nothing to be spared; and what counts at most as lost whatever is sent.
const WORTH_SPARING: f64 = 0.01;
const MOST_LOST: f64 = 0.95;

/// What has been borne may vary by so much. An upstream without a queue that does less than that of what it has shown is
/// not asked for too much, but ill.
const AS_EVER: f64 = 1.1;
const ILL: f64 = 0.8;

/// How much of the way to a higher rate is believed to be shown in a slot, and what is still known of it a slot later.
const SHOWING: f64 = 0.3;
const FADING: f64 = 0.999;

/// For how many seconds a cut that did not help is not tried again; twice as many each time.
const FIRST_REST: f64 = 30.0;
const LONGEST_REST: f64 = 600.0;

/// What is being shed, and what led there. All rates are in requests a second, all times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Controller {
    severity: f64,
    cut: Cut,
    /// Who asks.
    crowd: Crowd,
    /// What the upstream is taken to bear; 0 where no limit is known.
    limit: f64,
    /// The most that the upstream has lately done in time; fades.
    shown: f64,
    /// The most that it has lately done while everything was as quick as usual; fades while it is.
    usual_best: f64,
    /// For how long it is still to be seen whether it does that again, after it was let through.
    trusting: f64,
    /// For how many half seconds there has been room.
    roomy: f64,
    /// For how many half seconds the limit has turned nobody away.
    unused: f64,
    /// For how long a queue has stood, and the upstream been busy all the time.
    busy: f64,
    /// For how long nobody has got anything in time.
    silent: f64,
    /// For how long rates are still of the time when nobody did.
    unsettled: f64,
    /// The cut that is on trial.
    trial: Trial,
    /// The strain that is there however little is sent.
    floor: f64,
    /// The share of what is sent that is refused however little that is.
    lost: f64,
    /// Until a cut that did not help is tried again.
    rest: f64,
    /// How often in a row a cut has not helped.
    failures: u32,
}

/// A cut, until it is known whether it helps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Trial {
    /// How long ago it was; 0 where there is none.
    age: f64,
    /// The most that the strain was since, or what it was when that was last seen to lessen.
    strain: f64,
    /// What was sent before it, and worked on in time; and what the limit was.
    sent: f64,
    worked: f64,
    limit: f64,
}

impl Controller {
    /// One slot further. `health` is what holds now, an operator's word included; nothing is shed while it is `NORMAL`.
    pub fn step(self, window: &Window, bounds: &Measured, switch: &Switch, health: Health) -> Self {
        let seen = Seen::over(window, &RATES, bounds, switch, self.limit > 0.0);
        let mut next = self;
        next.shown = show(self.shown, seen.worked);
        if seen.is_usual() {
            next.usual_best = show(self.usual_best, seen.worked);
        }
        next.crowd.see(window, self.severity);
        if health == Health::Normal || !bounds.shed {
            let crowd = Crowd { refused: next.crowd.refused, ..Crowd::default() };
            return Self { crowd, shown: next.shown, usual_best: next.usual_best, ..Self::default() };
        }
        let newest = Seen::over(window, &LOOK, bounds, switch, self.limit > 0.0);
        let aim = next.aim(window, &newest, &seen, bounds.error_ratio);
        // Somebody has to find out whether the upstream is back.
        let least = f64::from(bounds.min_requests) / f64::from(bounds.window_seconds.max(1));
        let aim = if next.limit > 0.0 {
            next.limit = next.limit.max(least);
            aim.max(least)
        } else {
            0.0
        };
        (next.severity, next.cut) = next.crowd.turn_away(window, aim);
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

    /// What to send in the next slot, after the limit has followed what was seen.
    fn aim(&mut self, window: &Window, newest: &Seen, seen: &Seen, error_ratio: f64) -> f64 {
        let queue = newest.queue.unwrap_or_default();
        // A burst of refusals is no overload, and what is over is over.
        let refused = newest.refused.min(seen.refused);
        // Where some are as quick as ever, the others wait for something else than their turn.
        let late = if newest.queue.is_some_and(|queue| queue < 1.0) { 0.0 } else { late(window) };
        self.learn_floor(window, queue, refused);
        self.listen(window, late);
        let queued = self.over_floor(queue);
        let failing = (refused - self.lost).max(0.0) / error_ratio;
        let strain = queued.max(failing.min(1.0));
        self.count(window, queued, strain, late);
        if self.trusting > 0.0 && (strain >= 1.0 || late > SOME_LATE) {
            // It does not bear any more what it bore.
            self.usual_best = self.usual_best.min(seen.worked);
            if late <= SOME_LATE {
                self.limit = self.limit.min(seen.worked);
            }
        }
        let may_be_chance = self.limit <= 0.0 && self.busy < CHANCE_SECONDS && queued <= NO_CHANCE;
        if late > SOME_LATE {
            self.wait(window, newest, late);
        } else if queued > 1.0 && !may_be_chance {
            self.press(window, seen, queue);
        } else if failing > 1.0 && queued <= 1.0 {
            self.try_less(window, seen, refused);
        } else {
            self.ease(window, newest, seen, strain);
        }
        let leaning = 1.0 + GAIN * (TARGET - strain) - DEEPER * self.trial.age;
        let aim = self.limit * leaning.clamp(LEAST, MOST);
        if late <= SOME_LATE {
            return aim;
        }
        aim.min(self.limit * (1.0 - late).max(PROBE)).max(seen.worked * LEAST)
    }

    /// Counts for how long it has been as it is.
    fn count(&mut self, window: &Window, queued: f64, strain: f64, late: f64) {
        let holds = strain < 1.0 && late <= SOME_LATE;
        let is_unused = holds && self.limit > 0.0 && self.severity <= 0.0;
        let further = |time: f64, goes_on, by| if goes_on { time + by } else { 0.0 };
        self.busy = further(self.busy, queued > TARGET, slot_seconds(window));
        self.roomy = further(self.roomy, holds && strain < ROOM, pace(window));
        self.unused = further(self.unused, is_unused, pace(window));
        self.trusting = (self.trusting - slot_seconds(window)).max(0.0);
    }

    /// Where the strain would be, on a scale from its floor (0) to the bound (1), or to somewhat above a floor that is
    /// near the bound or over it.
    fn over_floor(&self, strain: f64) -> f64 {
        let width =
            if self.floor > HIGH_FLOOR { STEP_OVER_FLOOR * (1.0 + self.floor) } else { 1.0 - self.floor };
        ((strain - self.floor) / width).max(0.0)
    }

    /// A strain that is there however little is sent is no reason to send less. A lower one is soon believed and a higher
    /// one slowly.
    fn learn_floor(&mut self, window: &Window, queue: f64, refused: f64) {
        self.rest = (self.rest - slot_seconds(window)).max(0.0);
        if self.rest <= 0.0 {
            self.floor = self.floor.min(HIGH_FLOOR);
            self.lost = 0.0;
        }
        if self.severity > 0.0 {
            self.floor += FLOOR_RISE * pace(window) * (queue.min(HIGH_FLOOR) - self.floor).max(0.0);
        }
        self.floor += FLOOR_FALL * (queue - self.floor).min(0.0);
        self.lost += FLOOR_FALL * (refused - self.lost).min(0.0);
    }

    /// Notes when answers in time end, and when they are back.
    fn listen(&mut self, window: &Window, late: f64) {
        let seconds = slot_seconds(window);
        let was_unsettled = self.unsettled > UNSETTLED / 2.0;
        self.unsettled = (self.unsettled - seconds).max(0.0);
        if late > MOST_LATE {
            // Now, or once it is of what was sent since there were answers again.
            let is_new = self.silent <= 0.0 || was_unsettled;
            if is_new && self.unsettled <= UNSETTLED / 2.0 && self.limit > 0.0 {
                self.limit *= (best(window) / self.limit).clamp(COLLAPSED_MOST, COLLAPSED);
                self.shown *= COLLAPSED;
            }
            self.silent += seconds;
        } else if self.silent > 0.0 {
            if self.silent > BELIEVED {
                self.limit = self.limit.max(self.shown * COME_BACK);
            }
            self.unsettled = UNSETTLED;
            self.silent = 0.0;
        }
    }

    /// Much comes too late to be of use.
    fn wait(&mut self, window: &Window, newest: &Seen, late: f64) {
        self.trial = Trial::default();
        (self.floor, self.rest) = (0.0, 0.0);
        if self.limit <= 0.0 {
            self.shown = self.shown.max(best(window) * LIKELY);
            self.limit = self.shown.max(newest.worked);
        } else if late < MOST_LATE {
            // The rest is worked on in vain.
            self.lower_to(window, doable(window, newest.seconds) / (1.0 - late));
        } else if self.silent > BELIEVED {
            self.limit *= 1.0 - DOUBT * pace(window);
        }
    }

    /// While a queue stands, what is done is what can be done.
    fn lower_to_done(&mut self, window: &Window) {
        if self.busy >= LEAST_BUSY {
            self.lower_to(window, doable(window, self.busy.min(MOST_BUSY)));
        }
    }

    /// This is what the upstream can do. (Inlined, it takes half a KiB of the filter.)
    #[inline(never)]
    fn lower_to(&mut self, window: &Window, doable: f64) {
        if self.unsettled > 0.0 {
            return;
        }
        let doable = doable / (1.0 - self.lost);
        self.limit = fall(window, self.limit, doable).min(doable * FAR);
        self.shown = fall(window, self.shown, doable);
    }

    /// A queue stands that breaks a bound: send what the upstream can do and a little less, and see whether that helps.
    fn press(&mut self, window: &Window, seen: &Seen, queue: f64) {
        if self.trial.age <= 0.0 {
            self.trial = self.trial_of(seen, queue);
            if self.limit <= 0.0 {
                self.limit = seen.worked.max(self.shown.max(best(window)) / 2.0);
            }
        }
        self.trial.age += slot_seconds(window);
        self.lower_to_done(window);
        if self.trial.age < SETTLING + seen.seconds + 2.0 * seen.quickest {
            // What was sent before is still being answered.
            self.trial.strain = self.trial.strain.max(queue);
            return;
        }
        let is_served = seen.worked > seen.sent * (1.0 - self.lost) * SERVED;
        if queue < self.trial.strain * MENDING {
            self.trial.age = slot_seconds(window);
            self.trial.strain = queue;
        } else if is_served && seen.sent < self.trial.worked * REAL_CUT {
            // All that is sent is worked on, and less of it changes nothing: this is how the upstream is.
            self.limit = self.trial.limit;
            self.floor = queue;
            self.bear();
        }
    }

    /// Refusals, and no queue. If that is because it is asked for too much, less of it gives fewer of them.
    fn try_less(&mut self, window: &Window, seen: &Seen, refused: f64) {
        let is_known = seen.sent < self.shown * AS_EVER || seen.worked < self.shown * ILL;
        if seen.worked < seen.sent * WORTH_SPARING || self.limit <= 0.0 && is_known {
            self.limit = 0.0;
            self.lost = refused.min(MOST_LOST);
            return self.bear();
        }
        if self.trial.age <= 0.0 {
            self.trial = self.trial_of(seen, refused);
            let doable = seen.worked.max(self.shown * SURE);
            self.limit = if self.limit > 0.0 { self.limit.min(doable) } else { doable };
        }
        self.trial.age += slot_seconds(window);
        if self.trial.age < SETTLING + seen.seconds {
            return;
        }
        let share = seen.sent / self.trial.sent.max(f64::MIN_POSITIVE);
        if share < REAL_CUT && seen.worked <= self.trial.worked * share.sqrt() {
            // It was not too much that was sent. All is as before the cut.
            self.limit = self.trial.limit;
            self.lost = (1.0 - seen.worked / seen.sent.max(f64::MIN_POSITIVE)).clamp(0.0, MOST_LOST);
            self.bear();
        } else {
            self.limit = fall(window, self.limit, seen.worked / (1.0 - self.lost));
        }
    }

    fn trial_of(&self, seen: &Seen, strain: f64) -> Trial {
        Trial { age: 0.0, strain, sent: seen.sent, worked: seen.worked, limit: self.limit }
    }

    /// Shedding does not mend this; it is tried again later.
    fn bear(&mut self) {
        self.trial = Trial::default();
        self.rest = (FIRST_REST * f64::from(1 << self.failures.min(5))).min(LONGEST_REST);
        self.failures = self.failures.saturating_add(1);
    }

    /// All bounds hold, or are broken by chance: let more through where there is room and where it is asked for.
    fn ease(&mut self, window: &Window, newest: &Seen, seen: &Seen, strain: f64) {
        if strain < MENDED && self.trial.age > 0.0 {
            self.trial = Trial::default();
            self.failures = 0;
        }
        if self.unused.min(self.roomy) > FREE || self.unused > FREE_BUSY {
            self.limit = 0.0;
            self.trial = Trial::default();
            return;
        }
        if strain > TARGET {
            return self.lower_to_done(window);
        }
        let usual_best = if newest.is_usual() { self.usual_best } else { 0.0 };
        let known = usual_best.max(self.shown * SURE);
        let is_known = strain < ROOM && self.limit < known;
        if newest.sent > self.crowd.aim() * if is_known { USED_BEFORE } else { USED } {
            let step = if !is_known {
                self.step_up(window, strain, seen)
            } else if self.limit < self.shown * SURE {
                SURE_STEP
            } else {
                self.trusting = TRUSTING;
                USUAL_STEP
            };
            let most = if is_known { known } else { (newest.sent * AHEAD).max(known).max(self.limit) };
            self.limit = (self.limit * (1.0 + step * pace(window))).min(most);
        }
    }

    /// How much the limit grows by in half a second.
    fn step_up(&self, window: &Window, strain: f64, seen: &Seen) -> f64 {
        if strain >= ROOM {
            return NEAR_STEP * (TARGET - strain);
        }
        if seen.worked * seen.seconds > ENOUGH
            && seen.slowness < AS_USUAL
            && window.total().refused_ratio() < FEW_REFUSED
        {
            return USUAL_STEP;
        }
        if self.limit < self.shown * LIKELY {
            return LIKELY_STEP;
        }
        let largest = if strain < IDLE { LARGEST_IDLE_STEP } else { LARGEST_STEP };
        (FIRST_STEP * (self.roomy / MULTIPLYING).exp()).min(largest)
    }
}

/// The most that was lately done, a slot later in which so much was.
fn show(most: f64, done: f64) -> f64 {
    most * FADING + SHOWING * (done - most).max(0.0)
}

/// A rate one slot later that falls to another, where that is lower.
fn fall(window: &Window, rate: f64, to: f64) -> f64 {
    rate + FALL * pace(window) * (to - rate).min(0.0)
}
