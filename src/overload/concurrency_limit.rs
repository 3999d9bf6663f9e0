//! How many requests may be in flight to one cluster.
//!
//! The limit keeps the mean latency at [`Parameters::latency_target`] times the baseline, the latency without a queue in
//! the upstream. An overloaded upstream and one that is slow at any load look alike, so a cut has to prove that it helps:
//! where latency does not fall with the limit, the cut is reverted and the baseline is what was measured.
//!
//! Only responses are samples, and only those that arrive one latency after the last change of the limit: so long it takes
//! until a change shows. Means are compared with their standard errors: few samples decide nothing, and are added up
//! until they do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Parameters;
use super::window::Observations;
use crate::time::StoreTime;

/// Longer than any latency, in seconds.
const ENDLESS_S: f64 = 1e9;

/// What the limit does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
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
    /// The latency before it.
    before: Estimate,
    /// The limit before it.
    from: f64,
    /// The limit before the first of several steps.
    origin: f64,
}

/// A mean of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    mean_s: f64,
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
    state: State,
    limit: f64,
    ramp: Ramp,
    baseline: Option<Estimate>,
    /// Begins anew with each change of the limit.
    epoch: u32,
    epoch_since: StoreTime,
    samples_since: StoreTime,
    totals: Observations,
    /// What nine in ten responses usually do not exceed, and when it was last adjusted.
    usual_s: Option<f64>,
    usual_at: StoreTime,
    responded_at: StoreTime,
    verified_at: Option<StoreTime>,
}

impl ConcurrencyLimit {
    /// The limit before anything is known.
    pub fn new(parameters: &Parameters, now: StoreTime) -> Self {
        Self {
            state: State::Open,
            limit: parameters.initial_limit,
            ramp: Ramp::default(),
            baseline: None,
            epoch: 0,
            epoch_since: now,
            samples_since: now,
            totals: Observations::default(),
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
            State::Cutting(Step { origin, .. }) | State::Verifying(Step { origin, .. }) => {
                self.limit.max(origin)
            }
            State::Silent { origin } => self.limit.max(origin),
            State::Open if self.baseline.is_none() => f64::INFINITY,
            State::Open | State::Limiting => self.limit,
        }
    }

    #[cfg(test)]
    pub fn state(&self) -> State {
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

    /// Which responses are samples: the number of the epoch, and the moment from which on they count.
    pub fn epoch(&self) -> (u32, StoreTime) {
        (self.epoch, self.samples_since)
    }

    /// Follows what is usual: the share of responses that exceed it says how far off it is.
    pub fn learn_usual(&mut self, observed: &Observations, parameters: &Parameters, now: StoreTime) {
        if let Some(usual_s) = &mut self.usual_s {
            let off = observed.over_usual / observed.responses.max(1.0) - parameters.share;
            let elapsed_s = seconds(self.usual_at, now).min(parameters.max_wait.as_secs_f64());
            if observed.responses > 0.0 {
                *usual_s *= (off * elapsed_s / parameters.verify_interval.as_secs_f64()).exp();
            }
        } else {
            self.usual_s = self.baseline.map(|baseline| baseline.mean_s * parameters.latency_target);
        }
        self.usual_at = now;
    }

    /// Takes in what one worker observed, and decides if there is enough to decide by.
    pub fn update(
        &mut self,
        observed: &Observations,
        in_flight: f64,
        parameters: &Parameters,
        now: StoreTime,
    ) {
        self.totals.merge(observed);
        if observed.responses > 0.0 {
            self.responded_at = now;
        }
        let seen = Estimate::of(&self.totals, parameters);
        let is_enough = seen.samples >= parameters.min_samples;
        // Of the responses that come first, most are short. Once twice as many have come as are in flight, all kinds have.
        let is_steady = is_enough && seen.samples >= 2.0 * self.limit.min(in_flight);
        let Some(baseline) = self.baseline else {
            let is_late = self.age_s(now) > parameters.max_wait.as_secs_f64();
            if seen.samples >= 2.0 * parameters.initial_limit {
                self.baseline = Some(seen);
                self.follow(seen, seen, parameters, now);
            } else if self.waits(parameters) && observed.samples > 0.0 {
                self.limit += observed.samples;
            } else if self.waits(parameters) && !is_enough && is_late {
                // Without a response there is nothing to go by, and what waits would be shed.
                // It doubles six times at most, in case there never is one.
                self.limit = (2.0 * self.limit).min(64.0 * parameters.initial_limit);
                self.transition(State::Open, now);
            }
            return;
        };
        let goal_s = baseline.mean_s * parameters.latency_target;
        let is_slow = seen.low(parameters) > goal_s;
        let silence_s = parameters.max_wait.as_secs_f64().max(parameters.headroom * baseline.mean_s);
        if self.waits(parameters) && seconds(self.responded_at, now) > silence_s {
            let origin = self.queue_limit();
            self.limit = (self.limit / 2.0).max(parameters.min_samples.min(self.limit));
            (self.ramp, self.responded_at) = (Ramp::default(), now);
            return self.transition(State::Silent { origin }, now);
        }
        if !is_enough {
            return;
        }
        match self.state {
            State::Open | State::Limiting if is_slow && self.waits(parameters) => {
                let from = self.limit.min(in_flight.max(1.0));
                let fitting = self.totals.ended / self.age_s(now) * goal_s;
                let to = fitting.clamp(from / 4.0, from * (1.0 - parameters.share));
                // A latency that is not steady is too low to prove anything by: the first cut then only opens the case.
                let before = if is_steady { seen } else { Estimate { mean_s: ENDLESS_S, ..seen } };
                self.fall(to, from, State::Cutting(Step { before, from, origin: from }), parameters, now);
            }
            _ if !is_steady => {}
            State::Open | State::Limiting => self.follow(baseline, seen, parameters, now),
            State::Cutting(_) if !is_slow => self.transition(State::Limiting, now),
            State::Cutting(step) if step.helped(seen, self.limit) && self.limit > 1.0 => {
                let (from, to) = (self.limit, (self.limit * goal_s / seen.mean_s).max(self.limit / 2.0));
                let step = Step { before: seen, from, origin: step.origin };
                self.fall(to, from, State::Cutting(step), parameters, now);
            }
            State::Verifying(step)
                if seen.high(parameters) < baseline.mean_s
                    && step.helped(seen, self.limit)
                    && self.limit > 1.0 =>
            {
                if seen.error < 2.0 * parameters.share {
                    self.baseline = Some(seen);
                    let from = self.limit;
                    let step = Step { before: seen, from, origin: step.origin };
                    self.fall(from / 2.0, from, State::Verifying(step), parameters, now);
                }
            }
            State::Cutting(step) | State::Verifying(step) => {
                self.baseline = Some(baseline.measure(seen, parameters));
                // A verification that needed several steps has measured, and proved nothing about the limit.
                let is_cut = matches!(self.state, State::Cutting(_));
                self.limit = if is_cut { step.from } else { step.origin };
                self.verified_at = Some(now);
                self.transition(State::Limiting, now);
            }
            State::Silent { origin } => {
                if !is_slow {
                    self.limit = origin.min(parameters.initial_limit).max(self.limit);
                }
                self.transition(State::Limiting, now);
            }
        }
    }

    /// Follows latency and demand where nothing is tried.
    fn follow(&mut self, baseline: Estimate, seen: Estimate, parameters: &Parameters, now: StoreTime) {
        let goal_s = baseline.mean_s * parameters.latency_target;
        let is_old = seen.samples >= parameters.baseline_samples;
        let is_slow = seen.low(parameters) > goal_s;
        let due_s =
            parameters.verify_interval.as_secs_f64().max(parameters.baseline_samples * baseline.mean_s);
        let is_due = self.verified_at.is_some_and(|at| seconds(at, now) > due_s);
        let high_s = seen.high(parameters);
        if !self.waits(parameters) {
            // Slower than usual: a queue that builds up, which the limit will stop, or an upstream that is slower now.
            let (sent, ended) = (self.totals.sent, self.totals.ended);
            if is_slow && (seen.samples < 50.0 || sent - ended > (sent + ended).sqrt()) {
                return;
            }
            self.baseline = Some(baseline.learn(seen, parameters));
            self.verified_at = Some(now);
            let busy = parameters.headroom * baseline.mean_s * self.totals.ended / self.age_s(now);
            let wanted = parameters.initial_limit.max(busy + parameters.sigmas * busy.sqrt());
            if wanted < self.limit {
                self.limit += parameters.share * (wanted - self.limit);
            } else if !is_slow {
                self.limit = wanted.min(2.0 * self.limit);
            }
            self.transition(State::Open, now);
        } else if is_due || self.verified_at.is_none() && high_s >= goal_s {
            let from = self.limit;
            let step = Step { before: seen, from, origin: from };
            self.fall(from / 2.0, from, State::Verifying(step), parameters, now);
        } else if high_s < goal_s {
            // It doubles where there is no queue.
            let growth = (goal_s - high_s) / (goal_s - baseline.mean_s).max(f64::EPSILON);
            self.limit *= 1.0 + growth.clamp(0.0, 1.0);
            self.transition(State::Limiting, now);
        } else if is_old {
            self.transition(State::Limiting, now);
        }
    }

    fn fall(&mut self, to: f64, from: f64, state: State, parameters: &Parameters, now: StoreTime) {
        let per_second = parameters.drain * self.totals.ended.max(1.0) / self.age_s(now);
        self.limit = to.max(1.0);
        self.ramp = Ramp { from, per_second, since: now };
        self.transition(state, now);
        let ramp_s = ((from - self.limit) / per_second).clamp(0.0, 4.0);
        self.samples_since = self.samples_since.after(Duration::from_secs_f64(ramp_s));
    }

    /// Whether requests wait because of the limit.
    fn waits(&self, parameters: &Parameters) -> bool {
        self.totals.waited > parameters.share * self.totals.arrivals
    }

    fn age_s(&self, now: StoreTime) -> f64 {
        seconds(self.epoch_since, now).max(1e-3)
    }

    fn transition(&mut self, state: State, now: StoreTime) {
        self.state = state;
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch_since = now;
        self.samples_since = now.after(self.baseline().unwrap_or_default());
        self.totals = Observations::default();
    }
}

impl Step {
    /// Whether latency has fallen with the limit: by more than half of what a queue in the upstream makes it fall.
    fn helped(&self, seen: Estimate, limit: f64) -> bool {
        (self.before.mean_s / seen.mean_s).ln() > 0.5 * (self.from / limit).ln()
    }
}

impl Estimate {
    /// The mean of samples. Few of them are taken to vary as an exponential distribution does.
    fn of(observed: &Observations, parameters: &Parameters) -> Self {
        let n = observed.samples.max(1.0);
        let mean_s = (observed.latency_s / n).max(1e-6);
        let variance = (observed.latency_s2 / n / mean_s.powi(2) - 1.0).max(0.0);
        let variance = (variance * n + parameters.min_samples) / (n + parameters.min_samples);
        Self { mean_s, error: (variance / n).sqrt(), samples: observed.samples }
    }

    fn low(&self, parameters: &Parameters) -> f64 {
        self.mean_s / (1.0 + parameters.sigmas * self.error)
    }

    fn high(&self, parameters: &Parameters) -> f64 {
        self.mean_s * (1.0 + parameters.sigmas * self.error)
    }

    /// With what was seen while the limit was not reached. A longer latency may be that of a queue, and counts less.
    fn learn(self, seen: Estimate, parameters: &Parameters) -> Self {
        let weight = if seen.mean_s > self.mean_s { 1.0 / parameters.headroom } else { 1.0 };
        self.mix(Estimate { samples: seen.samples * weight, ..seen }, parameters)
    }

    /// With what a lower limit has shown: it replaces a mean from which it differs by more than chance.
    fn measure(self, seen: Estimate, parameters: &Parameters) -> Self {
        let difference = (seen.mean_s / self.mean_s).ln().abs();
        let is_other = difference > 1.5 * parameters.sigmas * seen.error.hypot(self.error);
        if is_other { seen } else { self.mix(seen, parameters) }
    }

    fn mix(self, seen: Estimate, parameters: &Parameters) -> Self {
        let samples = self.samples.min(parameters.baseline_samples);
        let share = seen.samples / (samples + seen.samples).max(1.0);
        let mean_s = self.mean_s + share * (seen.mean_s - self.mean_s);
        let error = (self.error * (1.0 - share)).hypot(seen.error * share);
        Self { mean_s, error, samples: samples + seen.samples }
    }
}

fn seconds(since: StoreTime, now: StoreTime) -> f64 {
    now.since(since).as_secs_f64()
}
