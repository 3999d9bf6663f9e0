//! One Envoy with its workers: what each counts, the record that they hand it in to, and the limiter's own modules that
//! make something of it. The one place that knows how these are put together.

use std::collections::HashMap;

use dynamic_rate_limiter::bucket::{self, Bucket, Outcome};
use dynamic_rate_limiter::config::Measured;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::load::controller::Controller;
use dynamic_rate_limiter::load::shed::{self, Cut};
use dynamic_rate_limiter::load::signals::{Counts, Window};
use dynamic_rate_limiter::load::switch::Switch;
use dynamic_rate_limiter::tier::Limit;

use crate::chance::Random;

/// How often a worker hands in what it counted, in microseconds.
pub(crate) const HAND_IN_US: u64 = 250_000;

/// What a caller that is shed is told to wait: so many seconds, and up to so many more.
const SHED_WAIT_SECONDS: (u64, u64) = (3, 7);

/// A tier, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Tier {
    /// Its name.
    pub name: &'static str,
    /// The least important is turned away first.
    pub priority: u8,
    /// What of it is never shed, 0 to 1.
    pub min_share: f64,
    /// Capacity and refill per second of a caller's bucket while health is `NORMAL`.
    pub normal: (u32, f64),
    /// The same while it is `DEGRADED`.
    pub degraded: (u32, f64),
}

/// Who asks: which of a tier's callers.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) tier: usize,
    pub(crate) number: u64,
}

/// What the limiter says to a request.
pub(crate) enum Verdict {
    Passed,
    /// Its bucket is empty.
    Refused,
    /// It is turned away, and told to wait so many seconds.
    Shed(u64),
}

pub(crate) struct Envoy {
    tiers: Vec<Tier>,
    bounds: Measured,
    workers: Vec<Worker>,
    buckets: HashMap<Caller, Bucket>,
    window: Window,
    open: Counts,
    open_since_us: u64,
    pub(crate) switch: Switch,
    pub(crate) controller: Controller,
    /// What was wrong with the order in which tiers were turned away.
    pub(crate) disorder: Vec<String>,
}

#[derive(Clone, Default)]
struct Worker {
    counts: Counts,
    in_flight: u64,
    since_us: u64,
    cut: Cut,
    health: Health,
    /// Since the cut is known: which tiers were shed, and which were served beyond what `min_share` keeps.
    was_shed: Vec<bool>,
    was_served: Vec<bool>,
}

impl Envoy {
    pub(crate) fn new(tiers: &[Tier], bounds: Measured, workers: usize) -> Self {
        let worker = Worker {
            was_shed: vec![false; tiers.len()],
            was_served: vec![false; tiers.len()],
            ..Worker::default()
        };
        Self {
            tiers: tiers.to_vec(),
            bounds,
            workers: vec![worker; workers],
            buckets: HashMap::new(),
            window: Window::new(bounds.window_seconds),
            open: Counts::default(),
            open_since_us: 0,
            switch: Switch::default(),
            controller: Controller::default(),
            disorder: Vec::new(),
        }
    }

    pub(crate) fn health(&self) -> Health {
        self.switch.health()
    }

    /// A request comes in at one of the workers.
    pub(crate) fn arrive(
        &mut self,
        caller: Caller,
        worker: usize,
        now_us: u64,
        random: &mut Random,
    ) -> Verdict {
        let tier = self.tiers[caller.tier];
        let worker = &mut self.workers[worker];
        let level = &mut worker.counts.levels[usize::from(tier.priority)];
        level.kept_milli += (tier.min_share * 1_000.0) as u64;
        let place = shed::place(&caller, now_us);
        if worker.cut.sheds(tier.priority, tier.min_share, place) {
            level.shed += 1;
            worker.was_shed[caller.tier] = true;
            return Verdict::Shed(SHED_WAIT_SECONDS.0 + random.below(SHED_WAIT_SECONDS.1 + 1));
        }
        worker.was_served[caller.tier] |= place < 1.0 - tier.min_share;
        let (capacity, rate) = if worker.health == Health::Normal { tier.normal } else { tier.degraded };
        let limit = Limit::new(capacity, (rate * 1e6) as u64).expect("a limit in range");
        let (verdict, state) = bucket::take(self.buckets.get(&caller).copied(), limit, now_us);
        if let Some(state) = state {
            self.buckets.insert(caller, state);
        }
        if verdict.outcome == Outcome::Refused {
            level.refused += 1;
            return Verdict::Refused;
        }
        level.passed += 1;
        worker.in_flight += 1;
        Verdict::Passed
    }

    /// Response headers have come, or an error in their place.
    pub(crate) fn answered(&mut self, worker: usize, is_good: bool, took_us: u64) {
        let worker = &mut self.workers[worker];
        worker.in_flight -= 1;
        worker.counts.answered += 1;
        if is_good {
            worker.counts.latency.add(took_us);
        } else {
            worker.counts.errors += 1;
        }
    }

    /// The client has gone before.
    pub(crate) fn abandoned(&mut self, worker: usize, waited_us: u64) {
        let absolute_us = self.bounds.latency_ms.map(|ms| f64::from(ms) * 1e3);
        let relative_us =
            self.switch.baseline_us().zip(self.bounds.latency_ratio).map(|(us, ratio)| us * ratio);
        let bearable_us = absolute_us.into_iter().chain(relative_us).fold(f64::MAX, f64::min);
        let worker = &mut self.workers[worker];
        worker.in_flight -= 1;
        if waited_us as f64 > bearable_us {
            worker.counts.latency.add(waited_us);
        }
    }

    /// A worker hands in what it counted and learns what was made of it. Whether a slot is over.
    pub(crate) fn hand_in(&mut self, index: usize, now_us: u64) -> bool {
        let worker = &mut self.workers[index];
        worker.counts.in_flight_us = worker.in_flight * (now_us - worker.since_us);
        worker.since_us = now_us;
        self.open.merge(&std::mem::take(&mut worker.counts));
        let is_over = now_us - self.open_since_us >= self.window.slot_us();
        if is_over {
            self.open_since_us += self.window.slot_us();
            self.window.push(std::mem::take(&mut self.open));
            self.switch = self.switch.step(&self.window, &self.bounds, self.controller.severity());
            let health = self.health();
            self.controller = self.controller.step(&self.window, &self.bounds, &self.switch, health);
            self.survives_shared_data();
        }
        self.check_order(index);
        let (cut, health) = (self.controller.cut(), self.health());
        let worker = &mut self.workers[index];
        (worker.cut, worker.health) = (cut, health);
        is_over
    }

    /// What is written to shared data reads the same.
    fn survives_shared_data(&self) {
        assert_eq!(Switch::decode(&self.switch.encode()), Some(self.switch));
        assert_eq!(Controller::decode(&self.controller.encode()), Some(self.controller));
    }

    /// No tier was shed under a cut under which a less important one was served beyond its `min_share`.
    fn check_order(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        for (shed, served) in
            (0..self.tiers.len()).flat_map(|one| (0..self.tiers.len()).map(move |other| (one, other)))
        {
            let (important, lesser) = (self.tiers[shed], self.tiers[served]);
            let is_wrong = worker.was_shed[shed] && worker.was_served[served];
            if is_wrong && important.priority > lesser.priority {
                self.disorder.push(format!("{} was shed while {} was served", important.name, lesser.name));
            }
        }
        worker.was_shed.fill(false);
        worker.was_served.fill(false);
    }
}
