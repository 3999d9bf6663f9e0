//! How many requests may be in flight to one cluster.
//!
//! The limit keeps the mean latency at [`Parameters::latency_target`] times the baseline, the latency without a queue in
//! the upstream. An overloaded upstream and one that is slow at any load look alike, so a cut has to prove that it helps:
//! where latency does not fall with the limit, the cut is reverted and the baseline is what was measured.
//!
//! Only responses to requests that were sent after the last change of the limit are samples of what it does. Means are
//! compared with their standard errors, so that few samples change nothing, and the same samples are added up until they do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Observations, Parameters};
use crate::time::StoreTime;

/// What the limit does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Hardly a request waits for the limit. Latency teaches the baseline.
    Open,
    /// Requests wait. The limit grows while latency is below its goal.
    Limiting,
    /// Latency was above its goal, and the limit was cut.
    Cutting {
        /// The limit and the latency before this cut. `None`: that latency was not steady, so that it proves nothing.
        before: Option<Estimate>,
        /// The limit before this cut.
        from: f64,
        /// The limit before the first cut.
        origin: f64,
    },
    /// Requests wait, and hardly a response arrives. The limit falls until one does.
    Silent {
        /// The limit before.
        origin: f64,
    },
    /// A lower limit measures the baseline.
    Verifying {
        /// The latency before this step.
        before: Estimate,
        /// The limit before this step.
        from: f64,
        /// The limit before the first step.
        origin: f64,
    },
}

/// A mean of latencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean, in seconds.
    pub mean_s: f64,
    /// Its standard error, as a share of the mean.
    pub error: f64,
    /// How many samples it is the mean of.
    pub samples: f64,
}

/// A limit that falls slowly enough that important requests go on meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Ramp {
    from: f64,
    per_second: f64,
    since_us: u64,
}

/// The limit of one cluster, as all workers share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConcurrencyLimit {
    state: State,
    limit: f64,
    ramp: Ramp,
    baseline: Option<Estimate>,
    /// Samples belong to the epoch in which they were sent; a change of the limit begins a new one.
    epoch: u32,
    epoch_since_us: u64,
    totals: Observations,
    /// In flight when it was last looked at.
    in_flight: f64,
    /// What nine in ten responses usually do not exceed, and when it was last adjusted.
    usual_s: f64,
    usual_us: u64,
    sampled_us: u64,
    /// When the baseline was last known to be right.
    verified_us: Option<u64>,
}

impl ConcurrencyLimit {
    /// The limit before anything is known.
    pub fn new(parameters: &Parameters, now: StoreTime) -> Self {
        let now_us = now.as_micros();
        Self {
            state: State::Open,
            limit: parameters.initial_limit,
            ramp: Ramp::default(),
            baseline: None,
            epoch: 0,
            epoch_since_us: now_us,
            totals: Observations::default(),
            in_flight: 0.0,
            usual_s: f64::MAX,
            usual_us: now_us,
            sampled_us: now_us,
            verified_us: None,
        }
    }

    /// How many requests may be in flight.
    pub fn limit(&self, now: StoreTime) -> f64 {
        self.limit.max(self.ramp.from - self.ramp.per_second * seconds(self.ramp.since_us, now))
    }

    /// The limit by which queues are bounded. A cut that has not proved itself is no reason to shed.
    pub fn queue_limit(&self) -> f64 {
        match self.state {
            State::Cutting { origin, .. } | State::Verifying { origin, .. } | State::Silent { origin } => {
                self.limit.max(origin)
            }
            State::Open | State::Limiting => self.limit,
        }
    }

    /// The mean latency without a queue in the upstream.
    pub fn baseline(&self) -> Option<Duration> {
        self.baseline.and_then(|baseline| Duration::try_from_secs_f64(baseline.mean_s).ok())
    }

    /// What nine in ten responses usually do not exceed, in seconds.
    pub fn usual_s(&self) -> f64 {
        self.usual_s
    }

    /// Follows what is usual: the share of responses that exceed it says how far it is off.
    pub fn learn_usual(&mut self, observations: &Observations, learns: bool, now: StoreTime) {
        let elapsed_s = seconds(self.usual_us, now);
        self.usual_us = now.as_micros();
        if self.usual_s == f64::MAX {
            self.usual_s = self.baseline.map_or(f64::MAX, |baseline| 2.0 * baseline.mean_s);
        } else if learns && observations.responses > 0.0 {
            let off = observations.over_usual / observations.responses - 0.1;
            self.usual_s *= (off * elapsed_s.min(1.0) / 20.0).exp();
        }
    }

    /// What the limit does.
    pub fn state(&self) -> State {
        self.state
    }

    /// Which samples count: the number of the epoch, and since when they must have been sent.
    pub fn epoch(&self) -> (u32, StoreTime) {
        (self.epoch, StoreTime::from_micros(self.epoch_since_us))
    }

    /// Takes in what one worker observed, and decides if there is enough to decide by.
    pub fn update(
        &mut self,
        observations: &Observations,
        in_flight: f64,
        parameters: &Parameters,
        now: StoreTime,
    ) {
        self.totals.merge(observations);
        self.in_flight = in_flight;
        if observations.samples > 0.0 {
            self.sampled_us = now.as_micros();
        }
        let age_s = seconds(self.epoch_since_us, now).max(1e-3);
        let seen = Estimate::of(&self.totals, parameters);
        // The first responses are the short ones: a mean is that of all once so many have come as were in flight, twice.
        // Until then it can only be too low.
        let is_enough = seen.samples >= parameters.min_samples;
        let is_steady = is_enough && seen.samples >= 2.0 * self.limit.min(self.totals.peak);
        let Some(baseline) = self.baseline else {
            if is_steady {
                self.baseline = Some(seen);
                self.grow(seen, Estimate { error: 0.0, ..seen }, parameters, now);
            } else if !is_enough && self.waits() && age_s > parameters.max_wait.as_secs_f64() {
                // Without a response there is nothing to go by, and what waits would be shed.
                self.limit *= 2.0;
                self.begin_epoch(now);
            }
            return;
        };
        let is_slow = seen.low() > baseline.mean_s * parameters.latency_target;
        match self.state {
            _ if self.is_silent(baseline, parameters, now) => self.halve(parameters, now),
            _ if !is_enough => {}
            State::Open | State::Limiting if is_slow && self.waits() => {
                let before = is_steady.then_some(seen);
                let in_flight = self.limit.min(self.in_flight.max(1.0));
                let fitting = self.totals.ended / age_s * baseline.mean_s * parameters.latency_target;
                self.cut(before, in_flight, fitting.clamp(in_flight / 4.0, 0.9 * in_flight), parameters, now);
            }
            State::Silent { origin } if !is_slow => {
                self.limit = origin.min(parameters.initial_limit).max(self.limit);
                self.transition(State::Limiting, now);
            }
            _ if !is_steady => {}
            State::Silent { .. } => self.transition(State::Limiting, now),
            State::Open if !self.waits() => {
                self.learn(baseline, seen, is_slow, parameters, now);
            }
            State::Open | State::Limiting => self.grow(baseline, seen, parameters, now),
            State::Cutting { .. } if !is_slow => self.transition(State::Limiting, now),
            State::Cutting { before, from, origin } => {
                let helped = before
                    .is_none_or(|before| (before.mean_s / seen.mean_s).ln() > 0.5 * (from / self.limit).ln());
                if helped && self.limit > 1.0 {
                    let fitting = self.limit * baseline.mean_s * parameters.latency_target / seen.mean_s;
                    let limit = self.limit;
                    self.cut(Some(seen), limit, fitting.max(limit / 2.0), parameters, now);
                    if let State::Cutting { origin: first, .. } = &mut self.state {
                        *first = origin;
                    }
                } else {
                    self.baseline = Some(baseline.measure(seen));
                    self.limit = from;
                    self.verified_us = Some(now.as_micros());
                    self.transition(State::Limiting, now);
                }
            }
            State::Verifying { before, from, origin } => {
                let helped = (before.mean_s / seen.mean_s).ln() > 0.5 * (from / self.limit).ln();
                if seen.high() < baseline.mean_s && helped && self.limit > 1.0 {
                    self.baseline = Some(seen);
                    let from = self.limit;
                    self.fall(from / 2.0, State::Verifying { before: seen, from, origin }, parameters, now);
                } else {
                    self.baseline = Some(baseline.measure(seen));
                    self.limit = from;
                    self.verified_us = Some(now.as_micros());
                    self.transition(State::Limiting, now);
                }
            }
        }
    }

    fn learn(
        &mut self,
        baseline: Estimate,
        seen: Estimate,
        is_slow: bool,
        parameters: &Parameters,
        now: StoreTime,
    ) {
        if is_slow {
            // An upstream that has become slower, or a queue that builds up: then the number in flight still rises.
            let (sent, ended) = (self.totals.sent, self.totals.ended);
            if seen.samples < 50.0 {
                return;
            }
            if sent - ended > (sent + ended).sqrt() {
                return self.begin_epoch(now);
            }
        }
        self.verified_us = Some(now.as_micros());
        self.baseline = Some(baseline.learn(seen));
        let throughput = self.totals.ended / seconds(self.epoch_since_us, now).max(1e-3);
        let busy = throughput * seen.mean_s * parameters.headroom;
        let wanted = parameters.initial_limit.max(busy + 3.0 * busy.sqrt());
        if wanted < self.limit {
            self.limit = 0.98 * self.limit + 0.02 * wanted;
        } else if !is_slow {
            self.limit = wanted.min(1.25 * self.limit);
        }
        self.transition(State::Open, now);
    }

    fn grow(&mut self, baseline: Estimate, seen: Estimate, parameters: &Parameters, now: StoreTime) {
        let goal_s = baseline.mean_s * parameters.latency_target;
        let interval_s = parameters.verify_interval.as_secs_f64().max(20.0 * baseline.mean_s);
        if !self.waits() {
            self.transition(State::Open, now);
        } else if self.verified_us.is_some_and(|verified_us| seconds(verified_us, now) > interval_s) {
            self.verify(seen, parameters, now);
        } else if seen.high() < goal_s {
            self.limit = (self.limit * (goal_s / seen.high()).powi(2).min(2.0)).max(1.0);
            self.transition(State::Limiting, now);
        } else if self.verified_us.is_none() {
            self.verify(seen, parameters, now);
        } else if seen.samples > 200.0 {
            self.begin_epoch(now);
        }
    }

    fn verify(&mut self, before: Estimate, parameters: &Parameters, now: StoreTime) {
        let from = self.limit;
        self.fall(from / 2.0, State::Verifying { before, from, origin: from }, parameters, now);
    }

    fn halve(&mut self, parameters: &Parameters, now: StoreTime) {
        let origin = self.queue_limit();
        self.limit = (self.limit / 2.0).max(parameters.min_samples.min(self.limit));
        self.sampled_us = now.as_micros();
        self.transition(State::Silent { origin }, now);
    }

    fn cut(&mut self, before: Option<Estimate>, from: f64, to: f64, parameters: &Parameters, now: StoreTime) {
        self.fall(to, State::Cutting { before, from, origin: from }, parameters, now);
    }

    fn fall(&mut self, to: f64, state: State, parameters: &Parameters, now: StoreTime) {
        let throughput = self.totals.ended.max(1.0) / seconds(self.epoch_since_us, now).max(1e-3);
        let from = self.limit(now).min(self.in_flight.max(to));
        self.ramp = Ramp { from, per_second: parameters.drain * throughput, since_us: now.as_micros() };
        self.limit = to.max(1.0);
        let ramp_s = ((from - self.limit) / self.ramp.per_second.max(1e-3)).clamp(0.0, 10.0);
        self.transition(state, now.after(Duration::from_secs_f64(ramp_s)));
    }

    /// Whether requests wait because of the limit.
    fn waits(&self) -> bool {
        self.totals.waited > 0.1 * self.totals.arrivals
    }

    fn is_silent(&self, baseline: Estimate, parameters: &Parameters, now: StoreTime) -> bool {
        let long_s = (4.0 * baseline.mean_s).max(1.0);
        let is_few =
            self.totals.samples < parameters.min_samples && seconds(self.epoch_since_us, now) > 4.0 * long_s;
        let silence_s = seconds(self.sampled_us.max(self.epoch_since_us), now);
        self.waits() && (silence_s > long_s || is_few)
    }

    fn transition(&mut self, state: State, now: StoreTime) {
        self.state = state;
        self.begin_epoch(now);
    }

    fn begin_epoch(&mut self, now: StoreTime) {
        self.epoch = self.epoch.wrapping_add(1);
        self.epoch_since_us = now.as_micros();
        self.totals = Observations { peak: self.in_flight, ..Observations::default() };
    }
}

impl Estimate {
    /// The mean of samples. Few of them are taken to vary as an exponential distribution does.
    pub fn of(observed: &Observations, parameters: &Parameters) -> Self {
        let n = observed.samples.max(1.0);
        let mean_s = (observed.latency_s / n).max(1e-6);
        let variance = (observed.latency_s2 / n / mean_s.powi(2) - 1.0).max(0.0);
        let variance = (variance * n + parameters.min_samples) / (n + parameters.min_samples);
        Self { mean_s, error: (variance / n).sqrt(), samples: observed.samples }
    }

    /// What the mean is at least, but for one time in forty.
    pub fn low(&self) -> f64 {
        self.mean_s / (1.0 + 2.0 * self.error)
    }

    /// What the mean is at most, but for one time in forty.
    pub fn high(&self) -> f64 {
        self.mean_s * (1.0 + 2.0 * self.error)
    }

    /// With what was seen while the limit was not reached: a shorter mean counts more.
    fn learn(self, seen: Estimate) -> Self {
        let cap = if seen.mean_s < self.mean_s { 200.0 } else { 800.0 };
        self.mix(seen, cap)
    }

    /// With what a probe has measured: it replaces a mean that differs by more than chance.
    fn measure(self, seen: Estimate) -> Self {
        let is_other = (seen.mean_s / self.mean_s).ln().abs() > 3.0 * seen.error.hypot(self.error);
        if is_other { seen } else { self.mix(seen, 200.0) }
    }

    fn mix(self, seen: Estimate, cap: f64) -> Self {
        let samples = self.samples.min(cap);
        let share = seen.samples / (samples + seen.samples).max(1.0);
        let mean_s = self.mean_s + share * (seen.mean_s - self.mean_s);
        let error = (self.error * (1.0 - share)).hypot(seen.error * share);
        Self { mean_s, error, samples: samples + seen.samples }
    }
}

fn seconds(since_us: u64, now: StoreTime) -> f64 {
    now.since(StoreTime::from_micros(since_us)).as_secs_f64()
}
