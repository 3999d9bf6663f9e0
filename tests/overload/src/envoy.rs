//! One Envoy with its workers: what each counts, the record that they hand it in to, and the limiter's own modules that
//! make something of it. The one place that knows how these are put together.

use std::collections::HashMap;

use dynamic_rate_limiter::bucket::{self, Bucket, Outcome};
use dynamic_rate_limiter::config::Measured;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::health::Told;
use dynamic_rate_limiter::load::controller::Controller;
use dynamic_rate_limiter::load::shed;
use dynamic_rate_limiter::load::{Load, Response, Tally};
use dynamic_rate_limiter::tier::{self, Limit};

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

impl Tier {
    /// As the configuration has it.
    fn configured(&self) -> tier::Tier {
        let limit = |(capacity, rate): (u32, f64)| {
            Limit::new(capacity, (rate * 1e6) as u64).expect("a limit in range")
        };
        tier::Tier {
            name: self.name.to_owned(),
            normal: limit(self.normal),
            degraded: limit(self.degraded),
            ttl_seconds: 60,
            unlimited: false,
            priority: self.priority,
            min_share_milli: (self.min_share * 1_000.0) as u16,
        }
    }
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

/// Which numbers of a controller's state are its limit and what the upstream has shown.
const KNOWN: [usize; 2] = [6, 7];

pub(crate) struct Envoy {
    tiers: Vec<(Tier, tier::Tier)>,
    bounds: Measured,
    workers: Vec<Worker>,
    buckets: HashMap<Caller, Bucket>,
    pub(crate) load: Load,
    /// What was wrong with the order in which tiers were turned away.
    pub(crate) disorder: Vec<String>,
}

struct Worker {
    tally: Tally,
    health: Health,
    /// Since it follows the record as it is: which tiers were shed, and which were served beyond what `min_share` keeps.
    was_shed: Vec<bool>,
    was_served: Vec<bool>,
}

impl Envoy {
    pub(crate) fn new(tiers: &[Tier], bounds: Measured, workers: usize) -> Self {
        let worker = |seed| Worker {
            tally: Tally::new(seed, 0),
            health: Health::Normal,
            was_shed: vec![false; tiers.len()],
            was_served: vec![false; tiers.len()],
        };
        Self {
            tiers: tiers.iter().map(|tier| (*tier, tier.configured())).collect(),
            bounds,
            workers: (0..workers as u64).map(worker).collect(),
            buckets: HashMap::new(),
            load: Load::new(&bounds, 0),
            disorder: Vec::new(),
        }
    }

    /// The limiter is told how many requests a second the upstream can do, in place of what it has found out.
    pub(crate) fn tell(&mut self, capacity: f64) {
        let mut bytes = self.load.controller.encode();
        for field in KNOWN {
            bytes[field * 8..][..8].copy_from_slice(&capacity.to_le_bytes());
        }
        self.load.controller = Controller::decode(&bytes).expect("a state");
    }

    pub(crate) fn health(&self) -> Health {
        self.load.switch.health()
    }

    /// A request comes in at one of the workers.
    pub(crate) fn arrive(&mut self, caller: Caller, worker: usize, now_us: u64) -> Verdict {
        let (tier, configured) = &self.tiers[caller.tier];
        let worker = &mut self.workers[worker];
        if let Some(seconds) = worker.tally.shed(configured, &caller, now_us) {
            worker.was_shed[caller.tier] = true;
            return Verdict::Shed(seconds);
        }
        worker.was_served[caller.tier] |= shed::place(&caller, now_us) < 1.0 - tier.min_share;
        let limit = if worker.health == Health::Normal { configured.normal } else { configured.degraded };
        let (verdict, state) = bucket::take(self.buckets.get(&caller).copied(), limit, now_us);
        if let Some(state) = state {
            self.buckets.insert(caller, state);
        }
        if verdict.outcome == Outcome::Refused {
            worker.tally.refused(configured);
            return Verdict::Refused;
        }
        worker.tally.passed(configured);
        Verdict::Passed
    }

    /// Response headers have come, or an error in their place.
    pub(crate) fn answered(&mut self, worker: usize, is_good: bool, took_us: u64) {
        let response = if is_good { Response::Good(Some(took_us)) } else { Response::Failed(Some(took_us)) };
        self.workers[worker].tally.answered(response);
    }

    /// The client has gone before.
    pub(crate) fn abandoned(&mut self, worker: usize, waited_us: u64) {
        self.workers[worker].tally.abandoned(waited_us);
    }

    /// A worker hands in what it counted and follows what was made of it.
    pub(crate) fn hand_in(&mut self, index: usize, now_us: u64) {
        self.check_order(index);
        let worker = &mut self.workers[index];
        let counts = worker.tally.take(now_us);
        self.load.add(&counts, &self.bounds, Told::Auto, now_us);
        // What is written to shared data reads the same.
        let read = Load::decode(&self.load.encode()).expect("a record");
        assert_eq!(read, self.load);
        worker.tally.follow(&read, &self.bounds);
        worker.health = read.switch.health();
    }

    /// No tier was shed under a cut under which a less important one was served beyond its `min_share`.
    fn check_order(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        for (shed, served) in
            (0..self.tiers.len()).flat_map(|one| (0..self.tiers.len()).map(move |other| (one, other)))
        {
            let (important, lesser) = (self.tiers[shed].0, self.tiers[served].0);
            let is_wrong = worker.was_shed[shed] && worker.was_served[served];
            if is_wrong && important.priority > lesser.priority {
                self.disorder.push(format!("{} was shed while {} was served", important.name, lesser.name));
            }
        }
        worker.was_shed.fill(false);
        worker.was_served.fill(false);
    }
}
