//! Scenarios: clusters with their upstreams, callers, and phases of load and faults.

use fastrand::Rng;

use crate::chance::Spread;
use crate::upstream::{Condition, Discipline, Upstream};

pub const TIERS: usize = 3;

/// From this load on, the upstream cannot serve all.
pub const OVERLOAD: f64 = 1.0;

/// Free, pro and enterprise: the default priorities.
pub const PRIORITIES: [u8; TIERS] = [2, 5, 8];

/// A world, except for its seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub clusters: Vec<Cluster>,
    /// `None`: 1 to 16, random.
    pub workers: Option<usize>,
    /// Connections from callers; each belongs to one worker, and some workers have many more than others.
    pub connections: usize,
    /// Other programs take the CPU: each worker pauses for up to 100 ms, this many times a second.
    pub pauses_per_second: f64,
    /// When the VM of the first worker traps, in seconds.
    pub trap_at: Option<f64>,
    /// Whether Envoy keeps the gauges that workers share (`stats_matcher`).
    pub has_gauges: bool,
}

#[derive(Clone, Debug)]
pub struct Cluster {
    pub upstream: Upstream,
    pub clients: Clients,
    /// Share of each tier in the calls.
    pub mix: [f64; TIERS],
    pub phases: Vec<Phase>,
}

#[derive(Clone, Copy, Debug)]
pub struct Phase {
    pub seconds: f64,
    /// Calls a second.
    pub rate: f64,
    pub condition: Condition,
}

/// Times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// The least and the longest timeout of a client.
    pub timeout: (f64, f64),
    /// After this time Envoy responds with 504.
    pub route_timeout: f64,
    /// Attempts for a call, until it is as old as the deadline.
    pub tries: u32,
    pub deadline: f64,
    /// Share of responses that are streams, and their duration.
    pub streams: f64,
    pub stream_seconds: f64,
}

impl Cluster {
    pub fn capacity(&self, phase: usize) -> f64 {
        self.upstream.capacity(self.phases[phase].condition)
    }

    /// The rate of calls in multiples of the capacity.
    pub fn load(&self, phase: usize) -> f64 {
        self.phases[phase].rate / self.capacity(phase)
    }
}

/// Open loop: no client leaves early or retries.
const OPEN_LOOP: Clients = Clients {
    timeout: (30.0, 30.0),
    route_timeout: 2.0,
    tries: 1,
    deadline: 30.0,
    streams: 0.0,
    stream_seconds: 0.0,
};
const RETRYING: Clients =
    Clients { timeout: (1.0, 1.0), route_timeout: 0.9, tries: 3, deadline: 3.0, ..OPEN_LOOP };
const LEAVING: Clients = Clients { timeout: (0.6, 4.0), ..OPEN_LOOP };
const STREAMING: Clients = Clients { streams: 0.3, stream_seconds: 20.0, ..OPEN_LOOP };

const UNBOUNDED: usize = 1 << 40;

/// 50 requests a second.
const SMALL: Upstream = Upstream {
    servers: 5.0,
    service_us: 100_000.0,
    spread: Spread::Lognormal(0.5),
    discipline: Discipline::Queue(UNBOUNDED),
    notices_leaving: false,
};
/// 500 requests a second.
const MEDIUM: Upstream = Upstream { servers: 50.0, ..SMALL };
/// 5,000 requests a second.
const LARGE: Upstream = Upstream { servers: 100.0, service_us: 20_000.0, ..SMALL };

const MIX: [f64; TIERS] = [0.80, 0.15, 0.05];
const MIXES: [(&str, [f64; TIERS]); 4] = [
    ("mostly-free", [0.90, 0.07, 0.03]),
    ("even", [0.34, 0.33, 0.33]),
    ("mostly-pro", [0.1, 0.8, 0.1]),
    ("mostly-enterprise", [0.05, 0.05, 0.9]),
];

/// Scenarios and rows of the table that do not hold yet, with the reason. They are printed, and fail no run.
pub const KNOWN: [(&str, &str, &str); 13] = [
    (
        "delay-leaving",
        "",
        "clients leave before the response of an upstream that is nine times slower at any load",
    ),
    (
        "stuck-0.02",
        "",
        "requests that hang hold places for 15 s, and the others wait until the limit has grown beyond them",
    ),
    (
        "slow-3.4x",
        "",
        "four times slower near capacity: the queue is longer than the route timeout before it shows",
    ),
    (
        "no-gauges",
        "",
        "a worker holds its share of the limit, and cannot give a place to a more important request elsewhere",
    ),
    (
        "slow-0.89",
        "shed",
        "while a cut is on trial less is sent, and near capacity waiting requests are then shed: 0.02",
    ),
    (
        "cold-medium",
        "served, first 5 s",
        "the limit doubles from few requests in flight, which takes half a second: 0.9 of the capacity",
    ),
    ("cold-thrashing", "first 5 s", TOO_HIGH_A_START),
    ("cold-thrashing", "served, after 5 s", TOO_HIGH_A_START),
    ("cold-thrashing", "not served", TOO_HIGH_A_START),
    ("cold-thrashing", "shed", TOO_HIGH_A_START),
    (
        "long-exponential-1.2x",
        "",
        "in one run of nine the baseline rises within three minutes, and the limit with it, up to a collapse",
    ),
    ("long-thrashing", "after the overload", TOO_HIGH_A_BASELINE),
    ("long-thrashing", "shed", TOO_HIGH_A_BASELINE),
];

const TOO_HIGH_A_BASELINE: &str =
    "in one run of thirty the baseline is three times too high after three minutes, and the limit with it";
const TOO_HIGH_A_START: &str =
    "in one start of thirty the first limit is too high, and it takes seconds to find that out";

/// Every named scenario.
pub fn all() -> Vec<Scenario> {
    let step = |times: f64| [(12.0, 25.0), (25.0, 50.0 * times), (15.0, 25.0)];
    let mut all = Vec::new();
    for times in [1.5, 2.0, 3.0, 5.0, 10.0, 20.0] {
        all.push(one(&format!("queue-{times}x"), SMALL, &step(times)));
    }
    for times in [1.05, 1.1, 1.2, 1.4] {
        let phases = [(12.0, 0.5), (40.0, times), (15.0, 0.5)];
        all.push(at_load(&format!("mild-{times}x"), MEDIUM, &phases));
    }
    // The first request arrives when the overload has begun: Envoy was restarted, or the cluster is new.
    let thrashing = Upstream { discipline: Discipline::Thrashing, spread: Spread::Exponential, ..SMALL };
    for (name, upstream) in [("small", SMALL), ("medium", MEDIUM), ("thrashing", thrashing)] {
        for times in [1.2, 3.0, 10.0] {
            all.push(at_load(&format!("cold-{name}-{times}x"), upstream, &[(40.0, times), (15.0, 0.5)]));
        }
    }
    // Minutes of overload: the baseline is measured many times, and must not drift.
    let exponential = |upstream| Upstream { spread: Spread::Exponential, ..upstream };
    let (small, medium) = (exponential(SMALL), exponential(MEDIUM));
    for (name, upstream) in [("exponential", small), ("medium", medium), ("thrashing", thrashing)] {
        for times in [1.2, 3.0] {
            let phases = [(12.0, 0.5), (180.0, times), (15.0, 0.5)];
            all.push(at_load(&format!("long-{name}-{times}x"), upstream, &phases));
        }
    }
    all.push(one("cold-spare-0.85", MEDIUM, &[(30.0, 425.0)]));
    for (name, spread) in [("constant", Spread::Constant), ("exponential", Spread::Exponential)] {
        all.push(one(&format!("{name}-10x"), Upstream { spread, ..SMALL }, &step(10.0)));
    }
    for times in [1.5, 3.0, 10.0] {
        all.push(one(&format!("thrashing-{times}x"), thrashing, &step(times)));
    }
    for (name, mix) in MIXES {
        all.push(one(&format!("{name}-2x"), SMALL, &step(2.0)).with(|cluster| cluster.mix = mix));
    }
    all.push(one("recovery-5x", SMALL, &[(12.0, 25.0), (25.0, 250.0), (40.0, 25.0)]));
    all.push(one("spike-20x", SMALL, &[(20.0, 25.0), (6.0, 1_000.0), (20.0, 25.0)]));
    all.push(one("large-5x", LARGE, &[(8.0, 2_500.0), (12.0, 25_000.0), (6.0, 2_500.0)]));
    let fast = Upstream { service_us: 5_000.0, ..SMALL };
    all.push(one("5ms-10x", fast, &[(12.0, 500.0), (15.0, 10_000.0), (8.0, 500.0)]));
    let slow = Upstream { servers: 100.0, service_us: 2e6, ..SMALL };
    let long_timeout = Clients { route_timeout: 15.0, ..OPEN_LOOP };
    all.push(
        one("2s-10x", slow, &[(30.0, 25.0), (60.0, 500.0), (20.0, 25.0)]).with(|c| c.clients = long_timeout),
    );

    // Upstreams with enough capacity.
    all.push(one("spare-0.7", SMALL, &[(40.0, 35.0)]));
    all.push(one("spare-0.85", SMALL, &[(60.0, 42.5)]));
    all.push(one("rise-tenfold", LARGE, &[(12.0, 200.0), (15.0, 2_000.0), (10.0, 200.0)]));
    let slow = Upstream { service_us: 500_000.0, ..LARGE };
    all.push(one("rise-slow", slow, &[(30.0, 10.0), (15.0, 100.0), (10.0, 10.0)]));
    let slow = Upstream { service_us: 1e6, ..LARGE };
    let rise = one("rise-1s", slow, &[(40.0, 5.0), (20.0, 50.0), (10.0, 5.0)]);
    all.push(rise.with(|c| c.clients = long_timeout));
    all.push(one("rise-hundredfold", LARGE, &[(12.0, 20.0), (15.0, 2_000.0), (10.0, 20.0)]));
    for load in [0.1, 0.5, 0.89] {
        let upstream = Upstream { servers: 20.0, ..SMALL };
        let rate = load * upstream.capacity(Condition::Slow(4.0));
        all.push(fault(&format!("slow-{load}"), upstream, rate, 40.0, Condition::Slow(4.0)));
    }
    for rate in [25.0, 100.0, 400.0] {
        let upstream = Upstream { servers: 100_000.0, ..SMALL };
        all.push(fault(&format!("delay-{rate}"), upstream, rate, 40.0, Condition::Slow(4.0)));
    }
    // More than the limit has room for.
    let fast = Upstream { servers: 100_000.0, service_us: 50_000.0, ..SMALL };
    all.push(fault("delay-5x", fast, 200.0, 120.0, Condition::Slow(5.0)));
    // Half of the clients give up.
    let leaving = fault("delay-leaving", fast, 200.0, 120.0, Condition::Slow(9.0));
    all.push(leaving.with(|c| c.clients = Clients { timeout: (0.4, 0.6), ..OPEN_LOOP }));
    for share in [0.3, 0.9] {
        all.push(fault(&format!("failing-{share}"), SMALL, 25.0, 30.0, Condition::Failing(share)));
    }
    all.push(fault("down", SMALL, 25.0, 20.0, Condition::Down));
    // Requests that hang take up many places until the route timeout, and the others are fast.
    let wide = Upstream { servers: 1_000.0, service_us: 20_000.0, ..SMALL };
    let stuck = fault("stuck-0.02", wide, 200.0, 60.0, Condition::Hanging(0.02));
    all.push(stuck.with(|cluster| cluster.clients = long_timeout));

    // Upstreams whose capacity changes.
    all.push(fault("slow-3.4x", SMALL, 42.5, 30.0, Condition::Slow(4.0)));
    all.push(fault("half-gone", SMALL, 40.0, 20.0, Condition::Servers(0.4)));
    all.push(fault("hang", SMALL, 40.0, 10.0, Condition::Servers(0.0)));
    let mut autoscale = one("autoscale", SMALL, &[(12.0, 25.0), (20.0, 150.0), (30.0, 150.0)]);
    autoscale.clusters[0].phases[2].condition = Condition::Servers(4.0);
    all.push(autoscale);

    // Other queues and clients.
    let busy = Upstream { servers: 10.0, discipline: Discipline::Queue(200), ..SMALL };
    let busy_step = [(12.0, 50.0), (25.0, 1_000.0), (15.0, 50.0)];
    all.push(one("bounded-10x-retries", busy, &busy_step).with(|c| c.clients = RETRYING));
    all.push(one("queue-10x-retries", SMALL, &step(10.0)).with(|c| c.clients = RETRYING));
    all.push(one("queue-3x-leaving", SMALL, &step(3.0)).with(|c| c.clients = LEAVING));
    all.push(one("queue-3x-streams", SMALL, &step(3.0)).with(|c| c.clients = STREAMING));
    let notices = Upstream { servers: 32.0, notices_leaving: true, ..SMALL };
    all.push(one("notices-leaving-3x", notices, &[(12.0, 160.0), (25.0, 960.0), (15.0, 160.0)]));

    // Workers.
    all.push(Scenario {
        workers: Some(16),
        connections: 24,
        ..one("few-connections-10x", SMALL, &step(10.0))
    });
    all.push(Scenario { pauses_per_second: 2.0, ..one("busy-cpu-10x", SMALL, &step(10.0)) });
    all.push(Scenario { workers: Some(4), trap_at: Some(20.0), ..one("trap-5x", SMALL, &step(5.0)) });
    all.push(Scenario { has_gauges: false, ..one("no-gauges-10x", SMALL, &step(10.0)) });
    for (name, other) in [("small", SMALL), ("large", LARGE)] {
        let mut two = one(&format!("beside-{name}"), SMALL, &step(10.0));
        let half = other.capacity(Condition::Healthy) / 2.0;
        two.clusters.extend(one("", other, &[(52.0, half)]).clusters);
        all.push(two);
    }
    all
}

/// The scenarios of every test run: all except the slow ones.
pub fn short() -> Vec<Scenario> {
    const SLOW: [&str; 5] = ["large-5x", "beside-large", "5ms-10x", "long-medium", "long-thrashing"];
    all().into_iter().filter(|scenario| !SLOW.iter().any(|slow| scenario.name.starts_with(slow))).collect()
}

/// A random scenario.
pub fn random(seed: u64) -> Scenario {
    let mut rng = Rng::with_seed(seed);
    let mut log_uniform = |least: f64, most: f64| least * (most / least).powf(rng.f64());
    let service_us = log_uniform(5e3, 5e5);
    let servers = log_uniform(4.0, 64.0).round();
    let times = log_uniform(1.5, 20.0);
    let important = log_uniform(0.01, 0.7 / times.min(10.0));
    let spread = [Spread::Exponential, Spread::Lognormal(0.3), Spread::Lognormal(0.8)][rng.usize(..3)];
    let queue = Upstream { servers, service_us, spread, notices_leaving: rng.bool(), ..SMALL };
    let thrashing = Upstream { discipline: Discipline::Thrashing, ..queue };
    let capacity = queue.capacity(Condition::Healthy);
    let usual = capacity * (0.2 + 0.6 * rng.f64());
    let step = [(12.0, usual), (25.0, times * capacity), (15.0, usual)];
    let mut scenario = match rng.u8(..5) {
        0 => fault("random-slow", queue, usual / 4.0, 30.0, Condition::Slow(4.0)),
        1 => fault("random-half-gone", queue, usual.max(0.75 * capacity), 20.0, Condition::Servers(0.5)),
        2 => one("random-thrashing", thrashing, &step),
        _ => one("random-queue", queue, &step),
    };
    scenario.connections = [10, 100, 1_000][rng.usize(..3)];
    let others = 1.0 - important;
    scenario = scenario.with(|cluster| cluster.mix = [others * 0.8, others * 0.2, important]);
    let clients = Clients { route_timeout: 2f64.max(service_us * 10.0 / 1e6), ..OPEN_LOOP };
    scenario.with(|cluster| cluster.clients = clients)
}

/// One cluster with a healthy upstream; a phase is its seconds and its calls a second.
fn one(name: &str, upstream: Upstream, phases: &[(f64, f64)]) -> Scenario {
    let phase = |&(seconds, rate): &(f64, f64)| Phase { seconds, rate, condition: Condition::Healthy };
    let phases = phases.iter().map(phase).collect();
    Scenario::of(name, Cluster { upstream, clients: OPEN_LOOP, mix: MIX, phases })
}

/// The same with a phase as its seconds and its load: calls in multiples of the capacity.
fn at_load(name: &str, upstream: Upstream, phases: &[(f64, f64)]) -> Scenario {
    let capacity = upstream.capacity(Condition::Healthy);
    let phases: Vec<_> = phases.iter().map(|(seconds, load)| (*seconds, load * capacity)).collect();
    one(name, upstream, &phases)
}

/// A constant load, and in the second phase an upstream in this condition.
fn fault(name: &str, upstream: Upstream, rate: f64, seconds: f64, condition: Condition) -> Scenario {
    let mut scenario = one(name, upstream, &[(20.0, rate), (seconds, rate), (20.0, rate)]);
    scenario.clusters[0].phases[1].condition = condition;
    scenario
}

impl Scenario {
    /// Only this cluster.
    pub fn of(name: &str, cluster: Cluster) -> Self {
        Self {
            name: name.to_owned(),
            clusters: vec![cluster],
            workers: None,
            connections: 200,
            pauses_per_second: 0.0,
            trap_at: None,
            has_gauges: true,
        }
    }

    /// Whether the only cluster is overloaded, and the model of `adaptive_concurrency` covers the scenario.
    pub fn is_compared(&self) -> bool {
        let cluster = &self.clusters[0];
        let is_overloaded = (0..cluster.phases.len()).any(|phase| cluster.load(phase) >= OVERLOAD);
        is_overloaded && self.clusters.len() == 1 && self.trap_at.is_none()
    }

    fn with(mut self, change: impl FnOnce(&mut Cluster)) -> Self {
        change(&mut self.clusters[0]);
        self
    }
}
