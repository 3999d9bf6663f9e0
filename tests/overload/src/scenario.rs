//! What happens in a world: an upstream, callers, and phases of load and of trouble.

use std::fmt;

use dynamic_rate_limiter::config::Measured;

use crate::chance::{Random, Spread, uniform};
use crate::envoy::Tier;
use crate::upstream::{Condition, Upstream};

/// How much is asked for: in multiples of what the upstream can do while it is well.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// How long it takes, in seconds.
    pub seconds: f64,
    /// Load at its begin and at its end.
    pub load: (f64, f64),
    /// What is wrong with the upstream.
    pub condition: Condition,
}

impl Phase {
    /// Whether it is a disturbance, which health may follow.
    pub fn is_disturbed(&self) -> bool {
        self.load.0.max(self.load.1) > 0.9 || self.condition != Condition::Well
    }

    /// Whether load and upstream stay the same in it.
    pub fn is_steady(&self) -> bool {
        self.load.0 == self.load.1
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = self.load;
        write!(formatter, "{} s at a load of {from} to {to}, upstream {:?}", self.seconds, self.condition)
    }
}

/// A world, but for its seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Brings it back, together with the seed.
    pub name: String,
    /// What is asked.
    pub upstream: Upstream,
    /// Three tiers, the least important first.
    pub tiers: [Tier; 3],
    /// Their shares of the calls.
    pub mix: [f64; 3],
    /// One after the other.
    pub phases: Vec<Phase>,
    /// The bounds in the configuration.
    pub bounds: Measured,
    /// Workers of the Envoy.
    pub workers: usize,
    /// How long anybody waits.
    pub clients: Clients,
}

/// How long anybody waits for an answer, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// Clients give a request up after a time between these.
    pub patience: (f64, f64),
    /// Envoy does so after this, and answers 504.
    pub route_timeout: f64,
    /// Nobody tries again later than this.
    pub deadline: f64,
}

const PATIENT: Clients =
    Clients { patience: (1.0, 4.0), route_timeout: f64::INFINITY, deadline: f64::INFINITY };
const HASTY: Clients = Clients { patience: (1.0, 1.0), route_timeout: 0.9, deadline: 3.0 };

const TIERS: [Tier; 3] = [
    Tier { name: "free", priority: 2, min_share: 0.0, normal: (10, 2.0), degraded: (5, 2.0) },
    Tier { name: "pro", priority: 5, min_share: 0.0, normal: (25, 4.0), degraded: (15, 4.0) },
    Tier { name: "enterprise", priority: 8, min_share: 0.0, normal: (50, 10.0), degraded: (30, 10.0) },
];

const MIXES: [(&str, [f64; 3]); 6] = [
    ("free80", [0.8, 0.15, 0.05]),
    ("free90", [0.9, 0.07, 0.03]),
    ("even", [0.34, 0.33, 0.33]),
    ("pro80", [0.1, 0.8, 0.1]),
    ("ent60", [0.25, 0.15, 0.6]),
    ("ent90", [0.05, 0.05, 0.9]),
];

/// A queue of a second: latency climbs past its bound, then requests are refused.
const QUEUE: Upstream = Upstream {
    servers: 16,
    service_us: 50_000.0,
    spread: Spread::Lognormal(0.8),
    queue: 320,
    works_for_nobody: true,
};

/// Almost no queue: it refuses what it cannot do, and is quick all the while.
const REFUSING: Upstream = Upstream {
    servers: 48,
    service_us: 100_000.0,
    spread: Spread::Exponential,
    queue: 96,
    works_for_nobody: true,
};

/// A queue of six seconds, longer than most clients wait: once it is full, all work is for nobody.
const DEEP: Upstream = Upstream { spread: Spread::Exponential, queue: 2_000, ..QUEUE };

/// No end to the queue, but it notices when clients have gone.
const ENDLESS: Upstream = Upstream {
    servers: 32,
    service_us: 100_000.0,
    spread: Spread::Lognormal(0.5),
    queue: 1_000_000,
    works_for_nobody: false,
};

/// What `bench overload` has: few requests a second, and two seconds' worth of queue.
const SMALL: Upstream = Upstream {
    servers: 10,
    service_us: 100_000.0,
    spread: Spread::HalfExponential,
    queue: 200,
    works_for_nobody: true,
};

/// What stands behind an Envoy, before which clients, and seen through a window of how many seconds.
const UPSTREAMS: [(&str, Upstream, Clients, u32); 8] = [
    ("queue", QUEUE, PATIENT, 10),
    ("refusing", REFUSING, PATIENT, 10),
    ("deep", DEEP, PATIENT, 10),
    ("endless", ENDLESS, PATIENT, 10),
    ("small", SMALL, HASTY, 10),
    // Five seconds' worth of queue behind a route timeout of 0.9 s.
    ("backlog", Upstream { queue: 500, ..SMALL }, HASTY, 10),
    ("brisk", QUEUE, PATIENT, 3),
    ("calm", QUEUE, PATIENT, 30),
];

/// A phase of so many seconds is short, whatever the window.
const SHORT: f64 = 6.0;

/// Before and after everything.
const CALM: f64 = 0.5;

/// Every scenario by its name.
pub fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (upstream_name, upstream, clients, window_seconds) in UPSTREAMS {
        for (mix_name, mix) in MIXES {
            for (shape, phases) in shapes() {
                let name = format!("{upstream_name}-{mix_name}-{shape}");
                let mut scenario = scenario(name, upstream, mix, phases);
                scenario.clients = clients;
                scenario.bounds.window_seconds = window_seconds;
                // What is learned and judged takes its time with a long window.
                let longer = f64::from(window_seconds) / f64::from(Measured::default().window_seconds);
                for phase in scenario.phases.iter_mut().filter(|phase| phase.seconds > SHORT) {
                    phase.seconds *= longer.max(1.0);
                }
                if upstream.is_small() {
                    scenario.workers = 1;
                }
                scenarios.push(scenario);
            }
        }
    }
    scenarios
}

/// A few of them, in which everything happens that can.
pub fn quick() -> Vec<Scenario> {
    let mut scenarios = all();
    scenarios.retain(|scenario| QUICK.iter().any(|name| scenario.name == *name));
    scenarios
}

const QUICK: [&str; 25] = [
    "queue-free90-step0.85",
    "queue-even-step1.1",
    "queue-even-step1.6",
    "queue-ent90-step2",
    "queue-free90-step5",
    "queue-even-step10",
    "queue-even-ramp3",
    "queue-pro80-spike20",
    "queue-ent60-climb3",
    "queue-even-slow0.15",
    "queue-even-slow0.5",
    "queue-even-fewer0.85",
    "queue-even-failing0.5",
    "queue-free90-broken0.85",
    "queue-even-dead0.5",
    "queue-even-hanging0.85",
    "refusing-even-step3",
    "refusing-pro80-spike3",
    "deep-free90-step2",
    "deep-even-dead0.85",
    "endless-even-step5",
    "endless-ent60-step2",
    "small-free80-step10",
    "backlog-free80-step5",
    "brisk-even-step3",
];

/// One that nobody has listed.
pub fn drawn(seed: u64) -> Scenario {
    let mut random = Random::new(seed ^ 0x5eed);
    let mut between = |least: f64, most: f64| least + (most - least) * uniform(&mut random);
    let spread = match between(0.0, 3.0) as u32 {
        0 => Spread::Exponential,
        1 => Spread::Constant,
        _ => Spread::Lognormal(between(0.3, 1.0)),
    };
    let servers = between(16.0, 64.0) as u32;
    let service_us = between(20_000.0, 150_000.0);
    let queue_seconds = between(0.3, 6.0);
    let queue = (f64::from(servers) * 1e6 / service_us * queue_seconds) as usize;
    let works_for_nobody = between(0.0, 1.0) < 0.7;
    let upstream = Upstream { servers, service_us, spread, queue, works_for_nobody };
    let parts = [between(0.05, 1.0), between(0.05, 1.0), between(0.05, 1.0)];
    let sum: f64 = parts.iter().sum();
    let shapes = shapes();
    let (shape, phases) = shapes[between(0.0, shapes.len() as f64) as usize].clone();
    let mut drawn = scenario(format!("drawn-{shape}"), upstream, parts.map(|part| part / sum), phases);
    for tier in &mut drawn.tiers[..2] {
        tier.min_share = (between(-0.02, 0.02).max(0.0) * 1_000.0).round() / 1_000.0;
    }
    drawn.workers = between(1.0, 8.99) as usize;
    drawn
}

fn scenario(name: String, upstream: Upstream, mix: [f64; 3], phases: Vec<Phase>) -> Scenario {
    let bounds = Measured::default();
    Scenario { name, upstream, tiers: TIERS, mix, phases, bounds, workers: 4, clients: PATIENT }
}

fn shapes() -> Vec<(String, Vec<Phase>)> {
    let mut shapes = Vec::new();
    for load in [0.5, 0.7, 0.85, 1.1, 1.3, 1.6, 2.0, 3.0, 5.0, 10.0, 20.0] {
        shapes.push((format!("step{load}"), around(vec![well(40.0, load, load)])));
    }
    for load in [1.5, 3.0, 10.0] {
        let phases = vec![well(30.0, CALM, load), well(20.0, load, load), well(30.0, load, CALM)];
        shapes.push((format!("ramp{load}"), around(phases)));
    }
    for load in [3.0, 20.0] {
        shapes.push((format!("spike{load}"), around(vec![well(6.0, load, load)])));
        let climb = vec![well(20.0, 2.0, 2.0), well(6.0, load, load), well(30.0, 2.0, 2.0)];
        shapes.push((format!("climb{load}"), around(climb)));
    }
    let troubles = [
        ("slow", Condition::Slow(5.0)),
        ("slowish", Condition::Slow(2.5)),
        ("fewer", Condition::Fewer(0.4)),
        ("failing", Condition::Failing(0.3)),
        ("broken", Condition::Failing(0.9)),
        ("dead", Condition::Dead),
        ("hanging", Condition::Hanging),
    ];
    for (name, condition) in troubles {
        for load in [0.15, 0.5, 0.85, 3.0] {
            let trouble = Phase { seconds: 60.0, load: (load, load), condition };
            shapes.push((format!("{name}{load}"), around(vec![trouble])));
        }
    }
    shapes
}

fn around(middle: Vec<Phase>) -> Vec<Phase> {
    let mut phases = vec![well(20.0, CALM, CALM)];
    phases.extend(middle);
    phases.push(well(70.0, CALM, CALM));
    phases
}

fn well(seconds: f64, from: f64, to: f64) -> Phase {
    Phase { seconds, load: (from, to), condition: Condition::Well }
}
