//! How many requests may be in flight to one cluster.
//!
//! The limit keeps the mean latency at [`LATENCY_TARGET`] times the baseline, the latency
//! without a queue in the upstream. An overloaded upstream and one that is slow at any load look alike, so a cut has to
//! prove that it helps: where latency does not fall with the limit, the cut is reverted and the baseline is what was measured.
//!
//! Only responses to requests that were sent under the limit as it is are samples. Of those sent, the short ones are
//! answered first: the mean of the responses is too low at first, and with the time that the others have taken already it
//! is too high. The truth lies between, so what has to be sure is held against the worse of the two. Few samples decide
//! nothing, and are added up until they do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::parameters::*;
use super::window::Observations;
use crate::time::StoreTime;

/// What the limit does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum LimitState {
    /// Hardly a request waits for the limit. Latency teaches the baseline.
    Open,
    /// Requests wait. The limit grows while latency is below its goal.
    Limiting,
    /// Latency was above its goal, and the limit was cut.
    Cutting(Step),
    /// A lower limit measures the baseline.
    Verifying(Step),
    /// Requests wait, and no response arrives. The limit falls until one does.
    Silent {
        /// The limit before.
        origin: f64,
    },
}

/// A step to a lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The limit before it, and the latency in seconds; `None` where that was still changing.
    from: f64,
    before_s: Option<f64>,
    /// The limit to go back to: the lowest that has proved itself.
    back: f64,
}

/// A mean of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Estimate {
    mean_s: f64,
    /// The mean of the responses, and that with what requests in flight have taken so far; the lesser first.
    bounds_s: (f64, f64),
    /// The standard error, as a share of the mean.
    error: f64,
    samples: f64,
}

/// A limit that falls slowly enough that the most important requests go on meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Ramp {
    from: f64,
    per_second: f64,
    since: StoreTime,
}

/// The limit of one cluster, as all workers share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConcurrencyLimit {
    state: LimitState,
    limit: f64,
    ramp: Ramp,
    baseline: Option<Estimate>,
    /// Begins anew with each change of the limit that responses to earlier requests say nothing about.
    epoch: u32,
    /// What was observed since this moment, and what requests in flight had taken by then.
    since: StoreTime,
    totals: Observations,
    open_before_s: f64,
    /// What nine in ten responses usually do not exceed, and when it was last adjusted.
    usual_s: Option<f64>,
    usual_at: StoreTime,
    responded_at: StoreTime,
    verified_at: Option<StoreTime>,
}

/// What there is to decide by.
#[derive(Clone, Copy)]
struct View {
    baseline: Estimate,
    goal_s: f64,
    seen: Estimate,
    in_flight: f64,
    open_s: f64,
    now: StoreTime,
}

impl ConcurrencyLimit {
    /// The limit before anything is known.
    pub fn new(now: StoreTime) -> Self {
        Self {
            state: LimitState::Open,
            limit: INITIAL_LIMIT,
            ramp: Ramp::default(),
            baseline: None,
            epoch: 0,
            since: now,
            totals: Observations::default(),
            open_before_s: 0.0,
            usual_s: None,
            usual_at: now,
            responded_at: now,
            verified_at: None,
        }
    }

    /// How many requests may be in flight.
    pub fn limit(&self, now: StoreTime) -> f64 {
        self.limit.max(self.ramp.from - self.ramp.per_second * seconds(self.ramp.since, now))
    }

    /// The limit by which queues are bounded. A cut that has not proved itself is no reason to shed.
    pub fn queue_limit(&self) -> f64 {
        match self.state {
            LimitState::Cutting(Step { back, .. }) | LimitState::Verifying(Step { back, .. }) => {
                self.limit.max(back)
            }
            LimitState::Silent { origin } => self.limit.max(origin),
            LimitState::Open if self.baseline.is_none() => f64::INFINITY,
            LimitState::Open | LimitState::Limiting => self.limit,
        }
    }

    #[cfg(test)]
    pub fn state(&self) -> LimitState {
        self.state
    }

    /// The mean latency without a queue in the upstream.
    pub fn baseline(&self) -> Option<Duration> {
        self.baseline.and_then(|baseline| Duration::try_from_secs_f64(baseline.mean_s).ok())
    }

    /// What nine in ten responses usually do not exceed, in seconds.
    pub fn usual_s(&self) -> Option<f64> {
        self.usual_s
    }

    /// The number of the epoch. A request is a sample of it if no more than so many were in flight when it was sent.
    pub fn epoch(&self) -> (u32, f64) {
        (self.epoch, self.limit)
    }

    /// Follows what is usual: the share of responses that exceed it says how far off it is.
    pub fn learn_usual(&mut self, observed: &Observations, now: StoreTime) {
        if let Some(usual_s) = &mut self.usual_s {
            let off = observed.over_usual / observed.responses.max(1.0) - TOLERANCE;
            let elapsed_s = seconds(self.usual_at, now).min(MAX_WAIT.as_secs_f64());
            if observed.responses > 0.0 {
                *usual_s *= (off * elapsed_s / VERIFY_INTERVAL.as_secs_f64()).exp();
            }
        } else {
            self.usual_s = self.baseline.map(|baseline| baseline.mean_s * LATENCY_TARGET);
        }
        self.usual_at = now;
    }

    /// Takes in what one worker observed, and decides if there is enough to decide by. `open_s`: what samples of this epoch
    /// that are in flight have taken so far, added up.
    pub fn update(&mut self, observed: &Observations, open_s: f64, in_flight: f64, now: StoreTime) {
        self.totals.merge(observed);
        if observed.responses > 0.0 {
            self.responded_at = now;
        }
        let seen = Estimate::of(&self.totals, open_s - self.open_before_s);
        let Some(baseline) = self.baseline else { return self.start(observed, seen, open_s, now) };
        let silence_s = MAX_WAIT.as_secs_f64().max(HEADROOM * baseline.mean_s);
        if self.waits() && seconds(self.responded_at, now) > silence_s {
            let origin = self.queue_limit();
            self.limit = (self.limit / 2.0).max(MIN_SAMPLES.min(self.limit));
            (self.ramp, self.responded_at) = (Ramp::default(), now);
            return self.begin(LimitState::Silent { origin }, now);
        }
        // Each worker has said what it observed.
        let is_whole = self.age_s(now) >= FLUSH_INTERVAL.as_secs_f64();
        if seen.samples < MIN_SAMPLES || !is_whole {
            return;
        }
        let goal_s = baseline.mean_s * LATENCY_TARGET;
        let view = View { baseline, goal_s, seen, in_flight, open_s, now };
        match self.state {
            LimitState::Open | LimitState::Limiting if self.waits() => self.follow(view),
            LimitState::Open | LimitState::Limiting => self.learn(view),
            LimitState::Cutting(Step { back, .. }) | LimitState::Verifying(Step { back, .. })
                if !self.waits() =>
            {
                // Nothing can be proved while less is asked for.
                self.limit = back;
                self.begin(LimitState::Open, now);
            }
            // The first responses are the short ones: with one for each request in flight, all kinds have come.
            LimitState::Cutting(_) | LimitState::Verifying(_) if seen.samples < self.limit => {}
            LimitState::Cutting(step) => self.prove(step, view),
            LimitState::Verifying(step) => self.verify(step, view),
            LimitState::Silent { origin } => {
                if !view.is_slow() {
                    self.limit = origin.min(INITIAL_LIMIT).max(self.limit);
                }
                self.begin(LimitState::Limiting, now);
            }
        }
    }

    /// Nothing is known yet: the limit grows by one for each response, and blindly if there is none.
    fn start(&mut self, observed: &Observations, seen: Estimate, open_s: f64, now: StoreTime) {
        let is_late = self.age_s(now) > MAX_WAIT.as_secs_f64();
        if self.waits() {
            self.limit += observed.samples;
        }
        if seen.samples >= 2.0 * INITIAL_LIMIT {
            // Of these, too, the short ones came first.
            self.baseline = Some(Estimate { mean_s: seen.bounds_s.1, ..seen });
            self.go_on(LimitState::Open, open_s, now);
        } else if self.waits() && seen.samples < MIN_SAMPLES && is_late {
            // What waits would be shed. There is an end to this, in case there never is a response.
            self.limit = (2.0 * self.limit).min(BASELINE_SAMPLES.max(self.limit));
            self.begin(LimitState::Open, now);
        }
    }

    /// There is room for all: latency is the baseline, and demand says how much room it needs.
    fn learn(&mut self, view: View) {
        let View { baseline, seen, open_s, now, .. } = view;
        let is_slow = view.is_slow();
        let Observations { arrivals, sent, ended, .. } = self.totals;
        // Slower than usual: a queue that builds up, which the limit will stop, or an upstream that is slower now.
        if is_slow && (seen.error > TOLERANCE || sent - ended > (sent + ended).sqrt()) {
            return;
        }
        self.baseline = Some(baseline.learn(seen));
        self.verified_at = Some(now);
        let wanted = |requests: f64| {
            let busy = HEADROOM * baseline.mean_s * requests / self.age_s(now);
            INITIAL_LIMIT.max(busy + SIGMAS * busy.sqrt())
        };
        // A rise shows in the arrivals first, and a slow upstream in the responses.
        let wanted = self.limit.clamp(wanted(arrivals.min(ended)), wanted(arrivals.max(ended)));
        if !is_slow {
            self.limit += (self.age_s(now) / MAX_WAIT.as_secs_f64()).min(1.0) * (wanted - self.limit);
        }
        self.go_on(LimitState::Open, open_s, now);
    }

    /// Requests wait: the limit follows latency.
    fn follow(&mut self, view: View) {
        let View { baseline, goal_s, seen, in_flight, open_s, now } = view;
        let due_s = VERIFY_INTERVAL.as_secs_f64().max(BASELINE_SAMPLES * baseline.mean_s);
        let is_due = self.verified_at.is_none_or(|at| seconds(at, now) > due_s);
        if is_due && self.state == LimitState::Limiting {
            let (from, before_s) = (self.limit, Some(seen.mean_s));
            self.fall(from / 2.0, from, LimitState::Verifying(Step { from, before_s, back: from }), now);
        } else if view.is_slow() {
            // Where the limit has just been reached, earlier samples were of fewer in flight.
            let is_limiting = self.state == LimitState::Limiting;
            let is_steady = seen.samples >= if is_limiting { in_flight } else { 2.0 * in_flight };
            if is_steady || !is_limiting {
                let (from, before_s) = (self.limit, is_steady.then_some(seen.mean_s));
                self.cut(Step { from, before_s, back: from }, if is_steady { HEADROOM } else { 2.0 }, view);
            }
        } else if seen.high_s() < goal_s || self.verified_at.is_none() && seen.mean_s < goal_s {
            // Before there ever was room for all, nothing says that there is a queue.
            let growth = (goal_s - seen.mean_s) / (goal_s - baseline.mean_s).max(f64::EPSILON);
            let growth = growth.clamp(0.0, 1.0);
            if self.state == LimitState::Open {
                // There was room for all so far, and there is no queue. By one for each response it grows evenly.
                self.limit += growth * seen.samples.min(self.limit);
                self.go_on(LimitState::Open, open_s, now);
            } else {
                self.limit *= 1.0 + growth;
                self.begin(LimitState::Limiting, now);
            }
        } else if seen.samples >= BASELINE_SAMPLES {
            self.go_on(LimitState::Limiting, open_s, now);
        }
    }

    /// Keeps a cut only where it is sure that latency has fallen with the limit.
    fn prove(&mut self, step: Step, view: View) {
        let (seen, from, before_s) = (view.seen, self.limit, Some(view.seen.mean_s));
        let is_sure = seen.error < TOLERANCE;
        let is_below = |bound_s: f64| seen.high_s() < bound_s || is_sure && seen.mean_s < bound_s;
        match step.helped_s(self.limit) {
            // The next cut proves both.
            None if is_below(view.goal_s) => self.begin(LimitState::Limiting, view.now),
            None if view.is_slow() || is_sure => {
                self.cut(Step { from, before_s, back: step.back }, 2.0, view);
            }
            None => {}
            Some(helped_s) if is_below(helped_s) && !view.is_slow() => {
                self.begin(LimitState::Limiting, view.now)
            }
            Some(helped_s) if is_below(helped_s) && from > 1.0 => {
                self.cut(Step { from, before_s, back: from }, 2.0, view);
            }
            Some(helped_s) if is_sure || seen.low_s() > helped_s => self.measured(step.back, view),
            Some(_) => {}
        }
    }

    /// Measures the baseline, at ever lower limits while latency is lower there.
    fn verify(&mut self, step: Step, view: View) {
        let View { baseline, seen, now, .. } = view;
        // Exact enough to tell the baseline from the goal.
        if SIGMAS * seen.error > LATENCY_TARGET - 1.0 {
            return;
        }
        // After a mistake the baseline says nothing.
        let is_lower = (self.verified_at.is_none() || seen.high_s() < baseline.mean_s)
            && step.helped_s(self.limit).is_some_and(|helped_s| seen.mean_s < helped_s);
        if is_lower && self.limit > 1.0 {
            self.baseline = Some(seen);
            let (from, before_s) = (self.limit, Some(seen.mean_s));
            self.fall(from / 2.0, from, LimitState::Verifying(Step { from, before_s, back: step.back }), now);
        } else {
            self.measured(step.back, view);
        }
    }

    /// A lower limit has shown what latency is without a queue.
    fn measured(&mut self, limit: f64, View { baseline, seen, now, .. }: View) {
        let measured = baseline.measure(seen);
        // What differs much may be a mistake, and is soon verified.
        self.verified_at = (measured != seen).then_some(now);
        self.baseline = Some(measured);
        self.limit = limit;
        self.begin(LimitState::Limiting, now);
    }

    /// To what would bring latency to its goal by Little's law, in a step that is large enough to prove something by.
    fn cut(&mut self, step: Step, most: f64, View { goal_s, seen, now, .. }: View) {
        let to = (step.from * goal_s / seen.mean_s).clamp(step.from / most, step.from / LATENCY_TARGET);
        self.fall(to, step.from, LimitState::Cutting(step), now);
    }

    fn fall(&mut self, to: f64, from: f64, state: LimitState, now: StoreTime) {
        let per_second = DRAIN * self.totals.ended.max(1.0) / self.age_s(now);
        self.limit = to.max(1.0);
        self.ramp = Ramp { from, per_second, since: now };
        self.begin(state, now);
    }

    /// Whether requests wait because of the limit, by more than chance.
    fn waits(&self) -> bool {
        let allowed = TOLERANCE * self.totals.arrivals;
        self.totals.waited > allowed + SIGMAS * allowed.sqrt()
    }

    fn age_s(&self, now: StoreTime) -> f64 {
        seconds(self.since, now).max(1e-3)
    }

    /// Begins an epoch.
    fn begin(&mut self, state: LimitState, now: StoreTime) {
        self.epoch = self.epoch.wrapping_add(1);
        self.go_on(state, 0.0, now);
    }

    /// Begins to observe anew.
    fn go_on(&mut self, state: LimitState, open_s: f64, now: StoreTime) {
        (self.state, self.since, self.open_before_s) = (state, now, open_s);
        self.totals = Observations::default();
    }
}

impl View {
    fn is_slow(&self) -> bool {
        self.seen.low_s() > self.goal_s
    }
}

impl Step {
    /// Below this, latency has fallen with the limit: by half of what it does where there is a queue in the upstream.
    fn helped_s(&self, limit: f64) -> Option<f64> {
        self.before_s.map(|before_s| before_s * (limit / self.from).sqrt())
    }
}

impl Estimate {
    /// The mean of samples. Few of them are taken to vary as an exponential distribution does.
    fn of(observed: &Observations, open_s: f64) -> Self {
        let n = observed.samples.max(1.0);
        let answered_s = (observed.latency_s / n).max(1e-6);
        let whole_s = (answered_s + open_s / n).max(1e-6);
        let variance = (observed.latency_s2 / n / answered_s.powi(2) - 1.0).max(0.0);
        let variance = (variance * n + MIN_SAMPLES) / (n + MIN_SAMPLES);
        Self {
            mean_s: (answered_s * whole_s).sqrt(),
            bounds_s: (answered_s.min(whole_s), answered_s.max(whole_s)),
            error: (variance / n).sqrt(),
            samples: observed.samples,
        }
    }

    fn low_s(&self) -> f64 {
        self.bounds_s.0 / (1.0 + SIGMAS * self.error)
    }

    fn high_s(&self) -> f64 {
        self.bounds_s.1 * (1.0 + SIGMAS * self.error)
    }

    /// With what was seen while there was room for all. What is surely longer may be a queue, and counts less.
    fn learn(self, seen: Self) -> Self {
        let weight = if seen.low_s() > self.mean_s { 1.0 / HEADROOM } else { 1.0 };
        self.mix(Self { samples: seen.samples * weight, ..seen })
    }

    /// With what a lower limit has shown: it replaces a mean from which it differs by more than chance.
    fn measure(self, seen: Self) -> Self {
        let difference = (seen.mean_s / self.mean_s).ln().abs();
        if difference > SIGMAS * seen.error.hypot(self.error) { seen } else { self.mix(seen) }
    }

    fn mix(self, seen: Self) -> Self {
        let samples = self.samples.min(BASELINE_SAMPLES);
        let share = seen.samples / (samples + seen.samples).max(1.0);
        let mean_s = self.mean_s + share * (seen.mean_s - self.mean_s);
        let error = (self.error * (1.0 - share)).hypot(seen.error * share);
        Self { mean_s, bounds_s: (mean_s, mean_s), error, samples: samples + seen.samples }
    }
}

fn seconds(since: StoreTime, now: StoreTime) -> f64 {
    now.since(since).as_secs_f64()
}
