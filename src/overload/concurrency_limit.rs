//! How many requests may be in flight to one cluster.
//!
//! The limit keeps the mean latency at [`LATENCY_TARGET`] times the baseline, the latency without a queue in the
//! upstream. An overloaded upstream and one that is slow at any load look alike, so a cut has to prove that it helps:
//! where latency does not fall with the limit, the cut is reverted and the baseline is what was measured.
//!
//! A sample is a response to a request that was sent under the current limit. Short requests are answered first, so
//! the mean of the samples is too low at first. It is too high if the time that requests in flight have taken so far
//! is added. The true mean lies between the two; a decision that has to be certain uses the less favourable one.
//! Samples are added up until there are enough to decide.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::parameters::*;
use super::window::Observations;
use crate::time::StoreTime;

/// What the limit does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum LimitState {
    /// Nothing is known yet.
    Starting,
    /// Hardly a request waits for the limit. Latency teaches the baseline.
    Open,
    /// Requests wait. The limit grows while latency is below its goal.
    Limiting,
    /// Latency was above its goal, and the limit was cut.
    Cutting(Step),
    /// A lower limit measures the baseline.
    Verifying(Step),
    /// Requests wait, and no response arrives. The limit falls until one does; it was this before.
    Silent(f64),
}

/// A step to a lower limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The limit before it, and the latency in seconds; `None` where that was still changing.
    from: f64,
    before_s: Option<f64>,
    /// The limit to go back to: the lowest that has proved itself.
    back: f64,
    /// The limit falls slowly enough that the most important requests go on meanwhile.
    places_per_s: f64,
}

/// A mean of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mean {
    seconds: f64,
    samples: f64,
}

/// What samples say of the latency now, in seconds: the mean, and what it surely lies between.
#[derive(Clone, Copy)]
struct Seen {
    mean: Mean,
    low_s: f64,
    high_s: f64,
    /// `high_s` without the standard error.
    longest_s: f64,
}

/// The limit of one cluster, as all workers share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConcurrencyLimit {
    pub state: LimitState,
    /// The limit, or what it falls to.
    pub target: f64,
    baseline: Mean,
    /// Counts changes of the limit. A request is a sample of the epoch if no more than `target` were in flight when it
    /// was sent.
    pub epoch: u32,
    /// `totals` were observed from `since` to `updated`. At these two moments, the requests of the epoch in flight
    /// had taken `open_before_s` and `open_s`, added up.
    since: StoreTime,
    updated: StoreTime,
    totals: Observations,
    open_before_s: f64,
    open_s: f64,
    /// What nine in ten responses usually do not exceed.
    pub usual_s: Option<f64>,
    responded_at: StoreTime,
    /// When the baseline was last confirmed; `None` before that, and after it was found wrong.
    verified_at: Option<StoreTime>,
}

impl ConcurrencyLimit {
    /// The limit before anything is known.
    pub fn new(now: StoreTime) -> Self {
        Self {
            state: LimitState::Starting,
            target: INITIAL_LIMIT / 2.0,
            baseline: Mean::default(),
            epoch: 0,
            since: now,
            updated: now,
            totals: Observations::default(),
            open_before_s: 0.0,
            open_s: 0.0,
            usual_s: None,
            responded_at: now,
            verified_at: None,
        }
    }

    /// How many requests may be in flight.
    pub fn limit(&self, now: StoreTime) -> f64 {
        match self.state {
            LimitState::Cutting(step) | LimitState::Verifying(step) => {
                self.target.max(step.from - step.places_per_s * now.since(self.since).as_secs_f64())
            }
            _ => self.target,
        }
    }

    /// The limit by which queues are bounded. A cut that has not proved itself is no reason to shed, nor is a limit
    /// before the baseline is confirmed.
    pub fn queue_limit(&self) -> f64 {
        match self.state {
            LimitState::Starting => f64::INFINITY,
            LimitState::Open if self.verified_at.is_none() => f64::INFINITY,
            LimitState::Cutting(step) | LimitState::Verifying(step) => self.target.max(step.back),
            LimitState::Silent(back) => self.target.max(back),
            LimitState::Open | LimitState::Limiting => self.target,
        }
    }

    /// The mean latency without a queue in the upstream.
    pub fn baseline(&self) -> Option<Duration> {
        let baseline = Duration::try_from_secs_f64(self.baseline.seconds).ok();
        baseline.filter(|_| self.state != LimitState::Starting)
    }

    /// Adjusts `usual_s`: the share of responses that exceed it shows how far off it is.
    pub fn learn_usual(&mut self, observed: &Observations, now: StoreTime) {
        if let Some(usual_s) = self.usual_s.as_mut().filter(|_| observed.responses > 0.0) {
            let off = observed.over_usual / observed.responses - TOLERANCE;
            let elapsed_s = now.since(self.updated).min(MAX_WAIT).as_secs_f64();
            *usual_s *= (off * elapsed_s / VERIFY_INTERVAL.as_secs_f64()).exp();
        }
    }

    /// Takes in what one worker observed, and decides if there is enough to decide by. `open_s`: what samples of this
    /// epoch that are in flight have taken so far, added up.
    pub fn update(&mut self, observed: &Observations, open_s: f64, in_flight: f64, now: StoreTime) {
        (self.updated, self.open_s) = (now, open_s);
        self.totals.merge(observed);
        if observed.responses > 0.0 {
            self.responded_at = now;
        }
        let seen = Seen::of(&self.totals, open_s - self.open_before_s);
        if self.state == LimitState::Starting {
            return self.start(seen);
        }
        let silence_s = MAX_WAIT.as_secs_f64().max(HEADROOM * self.baseline.seconds);
        if self.waits() && self.seconds_since(self.responded_at) > silence_s {
            let back = self.queue_limit();
            self.target = (self.target / 2.0).max(MIN_SAMPLES.min(self.target));
            self.responded_at = now;
            return self.begin(LimitState::Silent(back));
        }
        // Each worker has to have said what it observed.
        if seen.mean.samples < MIN_SAMPLES || self.age_s() < FLUSH_INTERVAL.as_secs_f64() {
            return;
        }
        match self.state {
            LimitState::Cutting(step) | LimitState::Verifying(step) if !self.waits() => {
                // Nothing can be proved while less is asked for.
                self.target = step.back;
                self.begin(LimitState::Open);
            }
            // The first responses are the short ones: with one for each request in flight, all kinds have come.
            LimitState::Cutting(_) | LimitState::Verifying(_) if seen.mean.samples < self.target => {}
            LimitState::Cutting(step) => self.prove(step, seen),
            LimitState::Verifying(step) => self.verify(step, seen),
            LimitState::Silent(back) => {
                if !self.is_slow(seen) {
                    self.target = back.min(INITIAL_LIMIT).max(self.target);
                }
                self.begin(LimitState::Limiting);
            }
            _ if self.waits() => self.follow(seen, in_flight),
            _ => self.learn(seen),
        }
    }

    /// Nothing is known yet. The first responses are the baseline. They were sent while few requests were in flight:
    /// an upstream that is overloaded from the first second has no long queue yet.
    fn start(&mut self, seen: Seen) {
        let waits = self.waits();
        let enough = if waits { MIN_SAMPLES } else { INITIAL_LIMIT };
        if seen.mean.samples >= enough {
            // Of these, too, the short ones came first.
            self.baseline = Mean { seconds: seen.longest_s, ..seen.mean };
            self.usual_s = Some(self.goal_s());
            if waits {
                self.target += seen.mean.samples;
            }
            self.go_on(LimitState::Open);
        } else if waits && self.age_s() > MAX_WAIT.as_secs_f64() / 2.0 {
            // What waits would be shed. There is an end to this, in case there never is a response.
            self.target = (2.0 * self.target).min(BASELINE_SAMPLES.max(self.target));
            self.begin(LimitState::Starting);
        }
    }

    /// There is room for all: latency is the baseline, and demand says how much room it needs.
    ///
    /// Slower than usual is a queue that builds up in the upstream, or an upstream that is slower now. So the baseline
    /// follows slowly, and not while requests wait, and the limit does not grow with it: it would never stop a queue
    /// that builds up slowly. Nor does it grow by a baseline of few samples.
    fn learn(&mut self, seen: Seen) {
        let is_slow = self.is_slow(seen);
        if is_slow && seen.mean.error() > TOLERANCE {
            return;
        }
        let Observations { arrivals, ended, waited, .. } = self.totals;
        if !is_slow && self.verified_at.is_some() {
            let wanted = |requests: f64| {
                let busy = HEADROOM * self.baseline.seconds * requests / self.age_s();
                INITIAL_LIMIT.max(busy + SIGMAS * busy.sqrt())
            };
            // A rise shows in the arrivals first, and a slow upstream in the responses.
            let wanted = self.target.clamp(wanted(arrivals.min(ended)), wanted(arrivals.max(ended)));
            self.target += (self.age_s() / MAX_WAIT.as_secs_f64()).min(1.0) * (wanted - self.target);
        }
        if !is_slow || waited == 0.0 {
            let share = self.age_s() / VERIFY_INTERVAL.as_secs_f64();
            let samples = seen.mean.samples.min(BASELINE_SAMPLES * share);
            self.baseline = self.baseline.with(Mean { samples, ..seen.mean }, share);
            if self.baseline.error() < TOLERANCE {
                self.verified_at = Some(self.updated);
            }
        }
        self.go_on(LimitState::Open);
    }

    /// Requests wait: the limit follows latency.
    fn follow(&mut self, seen: Seen, in_flight: f64) {
        let (goal_s, mean, is_limiting) = (self.goal_s(), seen.mean, self.state == LimitState::Limiting);
        let due_s = VERIFY_INTERVAL.as_secs_f64().max(BASELINE_SAMPLES * self.baseline.seconds);
        let is_due = self.verified_at.is_none_or(|at| self.seconds_since(at) > due_s);
        if is_due && is_limiting {
            self.lower(self.target / 2.0, Some(mean.seconds), self.target, LimitState::Verifying);
        } else if self.is_slow(seen) {
            // Where the limit has just been reached, earlier samples were of fewer in flight.
            let is_steady = mean.samples >= if is_limiting { in_flight } else { 2.0 * in_flight };
            if is_steady {
                self.cut(HEADROOM, Some(mean.seconds), self.target, mean);
            } else if !is_limiting {
                self.cut(2.0, None, self.target, mean);
            }
        } else if seen.high_s < goal_s || self.verified_at.is_none() && mean.seconds < goal_s {
            // Before there ever was room for all, nothing says that there is a queue.
            let growth = (goal_s - mean.seconds) / (goal_s - self.baseline.seconds).max(f64::EPSILON);
            let growth = growth.clamp(0.0, 1.0);
            if is_limiting {
                self.target *= 1.0 + growth;
                self.begin(LimitState::Limiting);
            } else {
                // There was room for all so far, and there is no queue. By one for each response it grows evenly.
                self.target += growth * mean.samples.min(self.target);
                self.go_on(LimitState::Open);
            }
        } else if mean.samples >= BASELINE_SAMPLES {
            self.go_on(LimitState::Limiting);
        }
    }

    /// Keeps a cut only where it is sure that latency has fallen with the limit.
    fn prove(&mut self, step: Step, seen: Seen) {
        let before_s = Some(seen.mean.seconds);
        let is_sure = seen.mean.error() < TOLERANCE;
        let is_slow = self.is_slow(seen);
        let is_below = |bound_s: f64| seen.high_s < bound_s || is_sure && seen.mean.seconds < bound_s;
        match step.helped_s(self.target) {
            // The next cut proves both.
            None if is_below(self.goal_s()) => self.begin(LimitState::Limiting),
            None if is_slow || is_sure => self.cut(2.0, before_s, step.back, seen.mean),
            None => {}
            Some(helped_s) if is_below(helped_s) && !is_slow => self.begin(LimitState::Limiting),
            Some(helped_s) if is_below(helped_s) && self.target > 1.0 => {
                self.cut(2.0, before_s, self.target, seen.mean);
            }
            Some(helped_s) if is_sure || seen.low_s > helped_s => self.measured(step.back, seen.mean),
            Some(_) => {}
        }
    }

    /// Measures the baseline, at ever lower limits while latency is lower there.
    fn verify(&mut self, step: Step, seen: Seen) {
        // Exact enough to tell the baseline from the goal; more exact, where that takes no time.
        let is_early = self.age_s() < MIN_SAMPLES * FLUSH_INTERVAL.as_secs_f64();
        let most = if is_early { TOLERANCE } else { (LATENCY_TARGET - 1.0) / SIGMAS };
        if seen.mean.error() > most {
            return;
        }
        // After a mistake the baseline says nothing.
        let is_lower = (self.verified_at.is_none() || seen.high_s < self.baseline.seconds)
            && step.helped_s(self.target).is_some_and(|helped_s| seen.mean.seconds < helped_s);
        if is_lower && self.target > 1.0 {
            self.baseline = seen.mean;
            self.lower(self.target / 2.0, Some(seen.mean.seconds), step.back, LimitState::Verifying);
        } else {
            self.measured(step.back, seen.mean);
        }
    }

    /// A lower limit has shown what latency is without a queue.
    fn measured(&mut self, limit: f64, seen: Mean) {
        let difference = (seen.seconds / self.baseline.seconds).ln().abs();
        let is_other = difference > SIGMAS * seen.error().hypot(self.baseline.error());
        self.baseline = if is_other { seen } else { self.baseline.with(seen, 1.0) };
        // What differs much may be a mistake, and is soon verified.
        self.verified_at = (!is_other).then_some(self.updated);
        self.target = limit;
        self.begin(LimitState::Limiting);
    }

    /// Cuts the limit to what would bring latency to its goal by Little's law. The step is large enough to show an
    /// effect.
    fn cut(&mut self, most: f64, before_s: Option<f64>, back: f64, seen: Mean) {
        let to = self.target * self.goal_s() / seen.seconds;
        let to = to.clamp(self.target / most, self.target / LATENCY_TARGET);
        self.lower(to, before_s, back, LimitState::Cutting);
    }

    fn lower(&mut self, to: f64, before_s: Option<f64>, back: f64, state: fn(Step) -> LimitState) {
        let places_per_s = DRAIN * self.totals.ended.max(1.0) / self.age_s();
        let step = Step { from: self.target, before_s, back, places_per_s };
        self.target = to.max(1.0);
        self.begin(state(step));
    }

    fn goal_s(&self) -> f64 {
        self.baseline.seconds * LATENCY_TARGET
    }

    fn is_slow(&self, seen: Seen) -> bool {
        seen.low_s > self.goal_s()
    }

    /// Whether requests wait because of the limit, by more than chance.
    fn waits(&self) -> bool {
        let allowed = TOLERANCE * self.totals.arrivals;
        self.totals.waited > allowed + SIGMAS * allowed.sqrt()
    }

    fn age_s(&self) -> f64 {
        self.seconds_since(self.since).max(1e-3)
    }

    fn seconds_since(&self, at: StoreTime) -> f64 {
        self.updated.since(at).as_secs_f64()
    }

    /// Begins an epoch.
    fn begin(&mut self, state: LimitState) {
        self.epoch = self.epoch.wrapping_add(1);
        self.open_s = 0.0;
        self.go_on(state);
    }

    /// Begins to observe anew.
    fn go_on(&mut self, state: LimitState) {
        (self.state, self.since, self.open_before_s) = (state, self.updated, self.open_s);
        self.totals = Observations::default();
    }
}

impl Step {
    /// The latency below which the step has helped. With a queue in the upstream, latency falls in proportion to the
    /// limit; half of that fall, on a logarithmic scale, is enough.
    fn helped_s(&self, limit: f64) -> Option<f64> {
        self.before_s.map(|before_s| before_s * (limit / self.from).sqrt())
    }
}

impl Mean {
    /// The standard error, as a share of the mean: latencies are taken to vary as an exponential distribution does.
    fn error(self) -> f64 {
        self.samples.max(1.0).sqrt().recip()
    }

    /// Takes in more samples; they count for no more than `most` of the mean.
    fn with(self, seen: Self, most: f64) -> Self {
        let samples = self.samples.min(BASELINE_SAMPLES) + seen.samples;
        let share = (seen.samples / samples.max(1.0)).min(most);
        Self { seconds: self.seconds + share * (seen.seconds - self.seconds), samples }
    }
}

impl Seen {
    /// `open_s`: what those in flight have taken so far.
    fn of(observed: &Observations, open_s: f64) -> Self {
        let n = observed.samples.max(1.0);
        let answered_s = (observed.latency_s / n).max(1e-6);
        let whole_s = (answered_s + open_s / n).max(1e-6);
        let mean = Mean { seconds: (answered_s * whole_s).sqrt(), samples: observed.samples };
        let margin = 1.0 + SIGMAS * mean.error();
        let longest_s = answered_s.max(whole_s);
        Self { mean, low_s: answered_s.min(whole_s) / margin, high_s: longest_s * margin, longest_s }
    }
}
