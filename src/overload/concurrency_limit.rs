//! How many requests may be in flight to one cluster.
//!
//! The limit keeps the mean latency at [`LATENCY_TARGET`] times the baseline, the latency without a queue in the
//! upstream. An overloaded upstream and one that is slow at any load look alike, so a cut has to prove that it helps:
//! where latency does not fall with the limit, the cut is reverted and the baseline is what was measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::latency::{Estimate, Mean, Measurement};
use super::observations::Observations;
use super::parameters::*;
use crate::time::StoreTime;

/// What the limit does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum LimitState {
    /// Nothing is known yet.
    #[default]
    Starting,
    /// Hardly a request waits for the limit. Latency teaches the baseline.
    Open,
    /// Requests wait. The limit grows while latency is below its goal.
    Limiting,
    /// A lower limit shows what latency is there.
    Trial(Trial),
    /// Requests wait or are given up, and none gets a response. The limit falls to [`MIN_SAMPLES`] until one does, unless
    /// those in flight just hang.
    Silent { queue_limit: f64 },
}

/// A lower limit on trial.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Whether it measures the baseline; else latency is above its goal.
    is_verification: bool,
    /// What the latency at the lower limit is compared with; `None` if latency was still changing.
    before: Option<Measurement>,
    /// The limit to go back to: the lowest that has proved itself.
    back: f64,
}

/// The limit of one cluster, as all workers share it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConcurrencyLimit {
    pub state: LimitState,
    /// The limit, or what it falls to; zero until it is known.
    pub target: f64,
    /// The limit on its way down ([`DRAIN`]); `None` once no more requests are in flight than `target`.
    falling: Option<f64>,
    baseline: Mean,
    /// When the epoch of the limit began: latencies that were observed before do not count.
    pub begun: StoreTime,
    updated: StoreTime,
    /// When a request last arrived or ended.
    active_at: StoreTime,
    totals: Observations,
    /// How long `totals` were observed, and how long the upstream has not responded, both without pauses.
    age: Duration,
    silence: Duration,
    /// See [`ConcurrencyLimit::usual`].
    usual_s: Option<f64>,
    /// When the baseline was last confirmed; `None` before that, and after it was found wrong.
    verified_at: Option<StoreTime>,
    /// Whether it was ever confirmed.
    was_verified: bool,
}

impl ConcurrencyLimit {
    /// How many requests may be in flight.
    pub fn limit(&self) -> f64 {
        let target = if self.target > 0.0 { self.target } else { INITIAL_LIMIT / 2.0 };
        self.falling.unwrap_or(target)
    }

    /// The limit by which queues are bounded. While there is room for all, a burst is no reason to shed. A cut that has
    /// not proved itself is none either.
    pub fn queue_limit(&self) -> f64 {
        match self.state {
            LimitState::Starting | LimitState::Open => f64::INFINITY,
            LimitState::Trial(Trial { back, .. }) => back,
            LimitState::Silent { queue_limit } => self.target.max(queue_limit),
            LimitState::Limiting => self.target,
        }
    }

    /// The mean latency without a queue in the upstream.
    pub fn baseline(&self) -> Option<Duration> {
        let baseline = Duration::try_from_secs_f64(self.baseline.seconds).ok();
        baseline.filter(|_| self.state != LimitState::Starting)
    }

    /// Adjusts what is usual: the share of responses that exceed it shows how far off it is.
    pub fn learn_usual(&mut self, observed: &Observations, now: StoreTime) {
        if let Some(usual_s) = &mut self.usual_s
            && observed.responses > 0.0
        {
            let off = observed.over_usual / observed.responses - TOLERANCE;
            let elapsed_s = now.since(self.updated).min(MAX_WAIT).as_secs_f64();
            let steady = elapsed_s / VERIFY_INTERVAL.as_secs_f64();
            let gain = if self.was_verified { steady } else { (TOLERANCE * observed.responses).min(1.0) };
            *usual_s *= (off * gain).exp();
        }
    }

    pub fn exceeds_usual(&self, latency: Duration) -> bool {
        self.usual_s.is_some_and(|usual_s| latency.as_secs_f64() > usual_s)
    }

    /// What nine in ten responses usually do not exceed, in seconds; `None` before the baseline is confirmed, while it
    /// changes in large steps.
    pub fn usual(&self) -> Option<f64> {
        self.usual_s.filter(|_| self.was_verified)
    }

    /// Takes in what one worker observed, and decides if there is enough to decide by.
    pub fn update(&mut self, observed: &Observations, in_flight: f64, now: StoreTime) {
        if observed.arrivals > 0.0 || observed.ended > 0.0 {
            self.active_at = now;
        }
        // A pause does not count: demand would seem low, and the upstream silent.
        let longest_gap = self.baseline().unwrap_or_default().max(2 * FLUSH_INTERVAL);
        if now.since(self.active_at) <= longest_gap {
            let elapsed = now.since(self.updated).min(longest_gap);
            (self.age, self.silence) = (self.age + elapsed, self.silence + elapsed);
        }
        self.updated = now;
        self.totals += *observed;
        if observed.answered > 0.0 || in_flight <= 0.0 {
            self.silence = Duration::ZERO;
        }
        let estimate = Estimate::of(&self.totals);
        if self.state == LimitState::Starting {
            return self.start(estimate);
        }
        if self.is_silent() {
            return self.end_silence(in_flight);
        }
        if let Some(limit) = self.falling {
            if in_flight <= self.target.ceil() {
                return self.begin(self.target, self.state);
            }
            self.falling = Some(self.target.max(limit - DRAIN * observed.ended));
        }
        // Each worker has to have said what it observed.
        if self.totals.samples < MIN_SAMPLES || self.age < FLUSH_INTERVAL {
            return self.follow_errors(in_flight);
        }
        match self.state {
            // Nothing can be proved with less demand.
            LimitState::Trial(trial) if !self.waits() => self.begin(trial.back, LimitState::Open),
            // With one response for each request in flight, all kinds have come.
            LimitState::Trial(_) if self.falling.is_some() || self.totals.samples < self.target => {}
            LimitState::Trial(trial) if trial.is_verification => self.verify(trial, estimate.little),
            LimitState::Trial(trial) => self.prove(trial, estimate.little),
            LimitState::Silent { .. } => self.begin(self.target, LimitState::Limiting),
            _ if self.waits() => self.follow(estimate, in_flight),
            _ => self.learn(estimate),
        }
    }

    /// Nothing is known yet. The first responses are the baseline. They were sent while few requests were in flight:
    /// an upstream that is overloaded from the first second has no long queue yet.
    fn start(&mut self, estimate: Estimate) {
        let (limit, waits) = (self.limit(), self.waits());
        if self.totals.samples >= if waits { MIN_SAMPLES } else { INITIAL_LIMIT } {
            self.baseline = estimate.high;
            self.usual_s = Some(self.goal_s());
            self.target = limit + if waits { self.totals.samples } else { 0.0 };
            self.go_on(LimitState::Open);
        } else if waits && self.age > MAX_WAIT / 2 {
            // What waits longer is shed. There is an end to this, in case no response ever arrives.
            self.begin((2.0 * limit).min(BASELINE_SAMPLES), LimitState::Starting);
        }
    }

    /// Whether requests wait or were given up, and none has got a response for long.
    fn is_silent(&self) -> bool {
        let longest_s = MAX_WAIT.as_secs_f64().max(HEADROOM * self.baseline.seconds);
        (self.waits() || self.any_given_up()) && self.silence.as_secs_f64() > longest_s
    }

    fn any_given_up(&self) -> bool {
        self.totals.ended > self.totals.answered
    }

    fn end_silence(&mut self, in_flight: f64) {
        // Long queues are for bursts to an upstream that responds.
        let is_open = self.state == LimitState::Open && self.verified_at.is_some();
        let queue_limit = if is_open { self.target } else { self.queue_limit() };
        let silent = LimitState::Silent { queue_limit };
        self.silence = Duration::ZERO;
        match self.state {
            // Some of those in flight hang, and the lower limit cannot be measured.
            LimitState::Trial(Trial { back, .. }) if self.falling.is_some() => {
                self.verified_at = self.verified_at.map(|_| self.updated);
                self.begin(back, LimitState::Limiting);
            }
            _ if self.any_given_up() => {
                self.begin((self.target.min(in_flight) / 2.0).max(MIN_SAMPLES), silent);
            }
            // They may hang while others would get a response.
            _ => self.begin(in_flight + MIN_SAMPLES, silent),
        }
    }

    /// Where hardly anything but errors arrives, there is no latency to follow: a low limit does not help.
    fn follow_errors(&mut self, in_flight: f64) {
        let errors = self.totals.answered - self.totals.responses;
        if errors >= MIN_SAMPLES && self.age > MAX_WAIT && self.waits() {
            let back = if let LimitState::Trial(trial) = self.state { trial.back } else { self.target };
            self.begin(back.max(in_flight) + MIN_SAMPLES, LimitState::Limiting);
        }
    }

    /// There is room for all: latency is the baseline, and demand says how much room it needs.
    ///
    /// Latency above the baseline has two causes: a queue that grows in the upstream, or a slower upstream. So the
    /// baseline follows slowly, and only while no request waits. The limit does not grow with a slow baseline: it would
    /// not stop a queue that grows slowly. Nor does it grow while the baseline has few samples.
    fn learn(&mut self, estimate: Estimate) {
        let is_slow = self.is_slow(estimate.low);
        if is_slow && estimate.mean.error() > TOLERANCE {
            return;
        }
        let age_s = self.age.as_secs_f64();
        if !is_slow && self.verified_at.is_some() {
            let wanted = |requests: f64| {
                let busy = HEADROOM * self.baseline.seconds * requests / age_s;
                INITIAL_LIMIT.max(busy + SIGMAS * busy.sqrt())
            };
            // A rise shows in the arrivals first, and a slow upstream in the responses.
            let (arrivals, ended) = (self.totals.arrivals.max(0.0), self.totals.ended);
            let wanted = self.target.clamp(wanted(arrivals.min(ended)), wanted(arrivals.max(ended)));
            self.target += (age_s / MAX_WAIT.as_secs_f64()).min(1.0) * (wanted - self.target);
        }
        if !is_slow || self.totals.waited == 0.0 {
            let share = age_s / VERIFY_INTERVAL.as_secs_f64();
            let samples = self.totals.samples.min(BASELINE_SAMPLES * share);
            self.baseline = self.baseline.with(Mean { samples, ..estimate.mean }, share);
            if self.baseline.error() < TOLERANCE {
                (self.verified_at, self.was_verified) = (Some(self.updated), true);
            }
        }
        self.go_on(LimitState::Open);
    }

    /// Requests wait: the limit follows latency.
    fn follow(&mut self, estimate: Estimate, in_flight: f64) {
        let (goal_s, is_limiting) = (self.goal_s(), self.state == LimitState::Limiting);
        let is_steady = is_limiting && self.totals.samples >= in_flight;
        let before = Some(Measurement { limit: self.target, latency: estimate.little });
        // While demand rises to an upstream with room, Little's law shows too high a latency.
        let latency = if is_limiting { estimate.high } else { estimate.low };
        // Under load, the baseline is measured from time to time.
        let due_s = VERIFY_INTERVAL.as_secs_f64().max(BASELINE_SAMPLES * self.baseline.seconds);
        let is_due = self.verified_at.is_none_or(|at| self.updated.since(at).as_secs_f64() > due_s);
        if self.is_slow(estimate.low) {
            if is_steady {
                self.cut(before, self.target, estimate.mean);
            } else if !is_limiting {
                // Earlier samples were of fewer in flight: only the next cut can prove that it helps.
                self.lower(self.target / LATENCY_TARGET, false, None, self.target);
            }
        } else if is_limiting && is_due {
            if is_steady {
                self.lower(self.target / 2.0, true, before, self.target);
            }
        } else if latency.most_s() < goal_s || self.verified_at.is_none() && estimate.mean.seconds < goal_s {
            // Before there ever was room for all, nothing says that there is a queue.
            let growth =
                (goal_s - estimate.mean.seconds) / (goal_s - self.baseline.seconds).max(f64::EPSILON);
            // By one for each response it grows evenly.
            let target = self.target + growth.clamp(0.0, 1.0) * self.totals.samples.min(self.target);
            if is_limiting {
                self.begin(target, LimitState::Limiting);
            } else {
                // There was room for all so far, and there is no queue.
                self.target = target;
                self.go_on(LimitState::Open);
            }
        } else if self.totals.samples >= BASELINE_SAMPLES {
            self.go_on(LimitState::Limiting);
        }
    }

    /// Keeps a cut if it is sure that latency has fallen with the limit.
    fn prove(&mut self, trial: Trial, latency: Mean) {
        let is_sure = latency.error() < TOLERANCE;
        let is_slow = self.is_slow(latency);
        let is_below = |bound_s: f64| latency.most_s() < bound_s || is_sure && latency.seconds < bound_s;
        let now = Measurement { limit: self.target, latency };
        let is_last = self.target <= 1.0;
        let has_helped = is_below(trial.before.map_or(self.goal_s(), |before| before.helped_s(self.target)));
        let has_failed = trial.before.is_some_and(|before| before.failed_by(now) > SIGMAS);
        if has_helped && (is_last || !is_slow) {
            self.begin(self.target, LimitState::Limiting);
        } else if has_helped {
            self.cut(Some(now), self.target, latency);
        } else if has_failed || is_sure && is_last {
            self.set_baseline(trial.back, latency);
        } else if is_sure || is_slow && trial.before.is_none() {
            // A lower limit shows more.
            self.cut(trial.before.or(Some(now)), trial.back, latency);
        }
    }

    /// Measures the baseline, at ever lower limits while latency is lower there.
    fn verify(&mut self, trial: Trial, latency: Mean) {
        // Exact enough to tell the baseline from the goal.
        if latency.error() > (LATENCY_TARGET - 1.0) / SIGMAS {
            return;
        }
        // After a mistake the baseline says nothing.
        let is_known = self.verified_at.is_some()
            && (latency.least_s()..latency.most_s()).contains(&self.baseline.seconds);
        let has_fallen = trial.before.is_some_and(|before| latency.seconds < before.helped_s(self.target));
        if has_fallen && !is_known && self.target > 1.0 {
            self.baseline = latency;
            let now = Measurement { limit: self.target, latency };
            self.lower(self.target / 2.0, true, Some(now), trial.back);
        } else {
            self.set_baseline(trial.back, latency);
        }
    }

    /// A lower limit has shown what latency is without a queue.
    fn set_baseline(&mut self, limit: f64, latency: Mean) {
        let difference = (latency.seconds / self.baseline.seconds).ln().abs();
        let is_other = difference > SIGMAS * latency.error().hypot(self.baseline.error());
        self.baseline = if is_other { latency } else { self.baseline.with(latency, 1.0) };
        // What differs much may be a mistake, and is soon verified.
        self.verified_at = (!is_other).then_some(self.updated);
        self.was_verified = true;
        self.begin(limit, LimitState::Limiting);
    }

    /// Cuts the limit to what would bring latency to its goal by Little's law. The step is large enough to show an
    /// effect.
    fn cut(&mut self, before: Option<Measurement>, back: f64, latency: Mean) {
        let to = self.target * self.goal_s() / latency.seconds;
        let to = to.clamp(self.target / HEADROOM, self.target / LATENCY_TARGET);
        self.lower(to, false, before, back);
    }

    fn lower(&mut self, to: f64, is_verification: bool, before: Option<Measurement>, back: f64) {
        let falling = Some(self.target);
        self.begin(to.max(1.0), LimitState::Trial(Trial { is_verification, before, back }));
        self.falling = falling;
    }

    fn goal_s(&self) -> f64 {
        let is_known = self.verified_at.is_some();
        LATENCY_TARGET * self.baseline.seconds * if is_known { 1.0 } else { 1.0 + self.baseline.error() }
    }

    fn is_slow(&self, latency: Mean) -> bool {
        latency.least_s() > self.goal_s()
    }

    /// Whether requests wait because of the limit, by more than chance.
    fn waits(&self) -> bool {
        let allowed = TOLERANCE * self.totals.arrivals.max(0.0);
        self.totals.waited > allowed + SIGMAS * allowed.sqrt()
    }

    /// Begins an epoch.
    fn begin(&mut self, target: f64, state: LimitState) {
        (self.target, self.falling, self.begun) = (target, None, self.updated);
        self.go_on(state);
    }

    /// Begins to observe anew.
    fn go_on(&mut self, state: LimitState) {
        (self.state, self.age, self.totals) = (state, Duration::ZERO, Observations::default());
    }
}
