//! One run: all calls and their results, under a virtual clock. It is determined by scenario, protection and seed.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use fastrand::Rng;

use crate::chance::exponential;
use crate::protection::{Arrival, End, Output, Protection};
use crate::scenario::{PRIORITIES, Scenario, TIERS};
use crate::upstream::{Done, Work};

pub const BIN_US: u64 = 500_000;

/// The pause before the second attempt without a Retry-After; it doubles, and varies by half.
const BACK_OFF_SECONDS: f64 = 0.2;

/// A more important request may wait this long in one worker while a less important one is sent by another.
const ORDER_US: u64 = 20_000;

/// A call to a cluster, with all its attempts.
#[derive(Clone, Debug)]
pub struct Call {
    pub cluster: usize,
    pub phase: usize,
    pub tier: usize,
    pub begun_us: u64,
    pub tries: u32,
    /// Attempts that were shed.
    pub shed: u32,
    pub fate: Fate,
    /// From the arrival of the last attempt to its response.
    pub latency_us: u64,
    caller: u64,
    worker: usize,
    arrived_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Waiting,
    Sent,
    /// Before the next attempt.
    Between,
    Served,
    Failed,
}

#[derive(Clone, Debug, Default)]
pub struct Bin {
    /// The upstream's work for served requests, in multiples of a mean request.
    pub useful: f64,
    pub queue: usize,
    pub limit: f64,
}

pub struct Run {
    pub calls: Vec<Call>,
    /// By cluster and half second.
    pub bins: Vec<Vec<Bin>>,
    /// The times of health changes, in seconds.
    pub transitions: Vec<f64>,
    /// Requests that were sent, and those of them that were sent before a more important one.
    pub sent: u32,
    pub out_of_order: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Phase(usize, usize),
    /// The next call to a cluster, if it is still in this phase.
    Call(usize, usize),
    Try(usize),
    Response {
        request: u64,
        is_failed: bool,
    },
    RouteTimeout(u64),
    Leave(u64),
    StreamEnd {
        request: u64,
    },
    Pause(usize),
    Trap,
    Note,
}

struct Client {
    phase: usize,
    rng: Rng,
    work: Work,
}

struct World<'a> {
    scenario: &'a Scenario,
    protection: &'a mut dyn Protection,
    now_us: u64,
    end_us: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pushed: u64,
    clients: Vec<Client>,
    rng: Rng,
    /// The worker of each connection.
    connections: Vec<usize>,
    /// The end of each worker's pause.
    paused_until_us: Vec<u64>,
    /// Cluster, tier, worker, arrival and request of all waiting requests.
    waiting: BTreeSet<(usize, usize, usize, u64, u64)>,
    run: Run,
}

/// The number of workers in the world of this seed.
pub fn workers(scenario: &Scenario, seed: u64) -> usize {
    scenario.workers.unwrap_or_else(|| [1, 2, 4, 8, 16][Rng::with_seed(seed).usize(..5)])
}

pub fn run(scenario: &Scenario, seed: u64, protection: &mut dyn Protection) -> Run {
    let mut rng = Rng::with_seed(seed);
    let workers = workers(scenario, seed);
    // Half as many connections at each worker as at the one before it, down to an eighth.
    let shares: Vec<f64> = (0..workers).map(|worker| 0.5f64.powi(worker.min(3) as i32)).collect();
    let connections = (0..scenario.connections).map(|_| weighted(&mut rng, &shares)).collect();
    let client = |(index, cluster): (usize, &crate::scenario::Cluster)| {
        let seed = seed.wrapping_mul(31).wrapping_add(index as u64);
        Client { phase: 0, rng: Rng::with_seed(seed), work: Work::new(cluster.upstream, !seed) }
    };
    let clients: Vec<Client> = scenario.clusters.iter().enumerate().map(client).collect();
    let mut world = World {
        scenario,
        protection,
        now_us: 0,
        end_us: 0,
        events: BinaryHeap::new(),
        pushed: 0,
        rng,
        connections,
        paused_until_us: vec![0; workers],
        waiting: BTreeSet::new(),
        run: Run {
            calls: Vec::new(),
            bins: vec![vec![Bin::default()]; clients.len()],
            transitions: Vec::new(),
            sent: 0,
            out_of_order: 0,
        },
        clients,
    };
    world.prepare();
    world.play();
    world.run
}

fn weighted(rng: &mut Rng, shares: &[f64]) -> usize {
    let mut drawn = rng.f64() * shares.iter().sum::<f64>();
    let below = |share: &f64| {
        drawn -= share;
        drawn < 0.0
    };
    shares.iter().position(below).unwrap_or(shares.len() - 1)
}

fn us(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

impl World<'_> {
    fn prepare(&mut self) {
        for (cluster, of) in self.scenario.clusters.iter().enumerate() {
            let mut from_us = 0;
            for (phase, of) in of.phases.iter().enumerate() {
                self.at(from_us, Event::Phase(cluster, phase));
                from_us += us(of.seconds);
            }
            self.end_us = self.end_us.max(from_us);
        }
        if self.scenario.pauses_per_second > 0.0 {
            (0..self.paused_until_us.len()).for_each(|worker| self.at(0, Event::Pause(worker)));
        }
        if let Some(seconds) = self.scenario.trap_at {
            self.at(us(seconds), Event::Trap);
        }
        self.at(BIN_US, Event::Note);
    }

    /// Runs the next event, response of an upstream or timeout of a worker, until the end.
    fn play(&mut self) {
        loop {
            let done = (0..self.clients.len())
                .filter_map(|cluster| Some((self.clients[cluster].work.next_us()?, cluster)))
                .min();
            let timeout = (0..self.paused_until_us.len())
                .filter_map(|worker| {
                    let next_us = self.protection.next_us(worker)?;
                    Some((next_us.max(self.paused_until_us[worker]), worker))
                })
                .min();
            let event_us = self.events.peek().map_or(u64::MAX, |Reverse((us, ..))| *us);
            let done_us = done.map_or(u64::MAX, |(us, _)| us);
            let timeout_us = timeout.map_or(u64::MAX, |(us, _)| us);
            self.now_us = event_us.min(done_us).min(timeout_us).max(self.now_us);
            if self.now_us >= self.end_us {
                return;
            }
            match (done, timeout) {
                (Some((us, cluster)), _) if us <= event_us.min(timeout_us) => self.done(cluster),
                (_, Some((us, worker))) if us <= event_us => {
                    self.timeout(worker);
                }
                _ => {
                    if let Some(Reverse((_, _, event))) = self.events.pop() {
                        self.happen(event);
                    }
                }
            }
            self.take_outputs();
        }
    }

    fn timeout(&mut self, worker: usize) {
        self.protection.handle_timeout(worker, self.now_us);
        // All workers soon know of a change, so the first one is enough.
        if worker == 0 && self.protection.is_degraded() == self.run.transitions.len().is_multiple_of(2) {
            self.run.transitions.push(self.now_us as f64 / 1e6);
        }
    }

    fn at(&mut self, us: u64, event: Event) {
        self.pushed += 1;
        self.events.push(Reverse((us, self.pushed, event)));
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.at(self.now_us.saturating_add(us(seconds)), event);
    }

    /// The call of a request, if this is its latest attempt and still open.
    fn open(&mut self, request: u64) -> Option<&mut Call> {
        let call = &mut self.run.calls[(request / 8) as usize];
        let is_open = u64::from(call.tries) == request % 8 && matches!(call.fate, Fate::Waiting | Fate::Sent);
        is_open.then_some(call)
    }

    fn happen(&mut self, event: Event) {
        let worker = match event {
            Event::Try(call) => Some(self.run.calls[call].worker),
            Event::Response { request, .. } | Event::RouteTimeout(request) | Event::Leave(request) => {
                self.open(request).map(|call| call.worker)
            }
            _ => None,
        };
        if let Some(until_us) = worker.map(|worker| self.paused_until_us[worker])
            && until_us > self.now_us
        {
            return self.at(until_us, event);
        }
        match event {
            Event::Phase(cluster, phase) => {
                let client = &mut self.clients[cluster];
                client.phase = phase;
                client.work.set(self.scenario.clusters[cluster].phases[phase].condition, self.now_us);
                self.schedule_call(cluster);
            }
            Event::Call(cluster, phase) if phase == self.clients[cluster].phase => self.call(cluster),
            Event::Call(..) => {}
            Event::Try(call) => self.try_once(call),
            Event::Response { request, is_failed } => self.respond(request, is_failed),
            Event::RouteTimeout(request) => self.give_up(request, End::Timeout),
            Event::Leave(request) => self.give_up(request, End::Left),
            Event::StreamEnd { request } => {
                let call = &self.run.calls[(request / 8) as usize];
                self.protection.over(call.worker, request, self.now_us);
            }
            Event::Pause(worker) => {
                self.paused_until_us[worker] = self.now_us + us(0.1 * self.rng.f64());
                let next = exponential(&mut self.rng, 1.0 / self.scenario.pauses_per_second);
                self.after(0.1 + next, Event::Pause(worker));
            }
            Event::Trap => self.trap(0),
            Event::Note => self.note(),
        }
    }

    fn note(&mut self) {
        for (cluster, bins) in self.run.bins.iter_mut().enumerate() {
            let index = (self.now_us / BIN_US) as usize - 1;
            bins.resize(bins.len().max(index + 2), Bin::default());
            bins[index].queue = self.clients[cluster].work.waiting();
            bins[index].limit = self.protection.limit(cluster);
        }
        self.after(BIN_US as f64 / 1e6, Event::Note);
    }

    /// Schedules the next call, at the rate of the phase.
    fn schedule_call(&mut self, cluster: usize) {
        let client = &mut self.clients[cluster];
        let rate = self.scenario.clusters[cluster].phases[client.phase].rate;
        let (wait, next) = (exponential(&mut client.rng, 1.0 / rate), Event::Call(cluster, client.phase));
        self.after(wait, next);
    }

    /// Starts a call, and schedules the next one.
    fn call(&mut self, cluster: usize) {
        self.schedule_call(cluster);
        let client = &mut self.clients[cluster];
        let tier = weighted(&mut client.rng, &self.scenario.clusters[cluster].mix);
        // Some callers send many more requests than others.
        let callers = [2_000.0, 200.0, 40.0][tier];
        let number = (callers * client.rng.f64().powi(2)) as u64;
        let caller = number * TIERS as u64 + tier as u64;
        let connection = (caller.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % self.connections.len();
        self.run.calls.push(Call {
            cluster,
            phase: client.phase,
            tier,
            begun_us: self.now_us,
            tries: 0,
            shed: 0,
            fate: Fate::Between,
            latency_us: 0,
            caller,
            worker: self.connections[connection],
            arrived_us: 0,
        });
        self.happen(Event::Try(self.run.calls.len() - 1));
    }

    fn try_once(&mut self, index: usize) {
        let call = &mut self.run.calls[index];
        call.tries += 1;
        (call.arrived_us, call.fate) = (self.now_us, Fate::Waiting);
        let request = index as u64 * 8 + u64::from(call.tries);
        let Call { cluster, tier, caller, worker, .. } = *call;
        self.waiting.insert((cluster, tier, worker, self.now_us, request));
        let (least, most) = self.scenario.clusters[cluster].clients.timeout;
        let timeout = least + (most - least) * self.rng.f64();
        self.after(timeout, Event::Leave(request));
        let arrival = Arrival { worker, cluster, request, priority: PRIORITIES[tier], caller };
        self.protection.arrive(arrival, self.now_us);
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.protection.poll_output() {
            match output {
                Output::Send(request) => self.send(request),
                Output::Shed(request) => {
                    self.take_from_queue(request);
                    self.run.calls[(request / 8) as usize].shed += 1;
                    let retry_after = 1.0 + 2.0 * self.rng.f64();
                    self.fail((request / 8) as usize, Some(retry_after));
                }
            }
        }
    }

    fn send(&mut self, request: u64) {
        let now_us = self.now_us;
        let (cluster, tier, worker) = self.take_from_queue(request);
        let call = &mut self.run.calls[(request / 8) as usize];
        call.fate = Fate::Sent;
        let has_waited = |tier, other| {
            let limit_us = if other == worker { 0 } else { ORDER_US };
            let first =
                self.waiting.range((cluster, tier, other, 0, 0)..(cluster, tier, other + 1, 0, 0)).next();
            first.is_some_and(|(_, _, _, arrived_us, _)| arrived_us + limit_us < now_us)
        };
        let workers = self.paused_until_us.len();
        let is_late = (tier + 1..TIERS).any(|tier| (0..workers).any(|other| has_waited(tier, other)));
        self.run.sent += 1;
        self.run.out_of_order += u32::from(is_late);
        self.after(self.scenario.clusters[cluster].clients.route_timeout, Event::RouteTimeout(request));
        if !self.clients[cluster].work.submit(request, now_us) {
            self.at(now_us, Event::Response { request, is_failed: true });
        }
    }

    /// Removes a request from the queue; returns its cluster, tier and worker.
    fn take_from_queue(&mut self, request: u64) -> (usize, usize, usize) {
        let Call { cluster, tier, worker, arrived_us, fate, .. } = *self.open(request).expect("it is open");
        assert_eq!(fate, Fate::Waiting);
        self.waiting.remove(&(cluster, tier, worker, arrived_us, request));
        (cluster, tier, worker)
    }

    /// The upstream has finished a request.
    fn done(&mut self, cluster: usize) {
        let now_us = self.now_us;
        let Some(Done { request, started_us, work, is_failed }) = self.clients[cluster].work.finish(now_us)
        else {
            return;
        };
        if self.open(request).is_none() {
            return;
        }
        if !is_failed {
            let (from, to) = (started_us / BIN_US, now_us / BIN_US);
            let bins = &mut self.run.bins[cluster];
            bins.resize(bins.len().max(to as usize + 1), Bin::default());
            for bin in from..=to {
                let in_bin_us = now_us.min((bin + 1) * BIN_US) - started_us.max(bin * BIN_US);
                bins[bin as usize].useful += work * in_bin_us as f64 / (now_us - started_us).max(1) as f64;
            }
        }
        self.happen(Event::Response { request, is_failed });
    }

    fn respond(&mut self, request: u64, is_failed: bool) {
        let now_us = self.now_us;
        let Some(call) = self.open(request) else { return };
        let (worker, cluster) = (call.worker, call.cluster);
        (call.fate, call.latency_us) = (Fate::Served, now_us - call.arrived_us);
        self.protection.end(worker, request, End::Response { is_failed }, now_us);
        let clients = &self.scenario.clusters[cluster].clients;
        let is_stream = !is_failed && self.rng.f64() < clients.streams;
        self.after(if is_stream { clients.stream_seconds } else { 0.0 }, Event::StreamEnd { request });
        if is_failed {
            self.fail((request / 8) as usize, None);
        }
    }

    /// The client has left, or Envoy's route timeout is over.
    fn give_up(&mut self, request: u64, end: End) {
        let now_us = self.now_us;
        let Some(call) = self.open(request) else { return };
        let (worker, cluster, fate) = (call.worker, call.cluster, call.fate);
        if fate == Fate::Waiting {
            self.take_from_queue(request);
        }
        self.protection.end(worker, request, end, now_us);
        self.clients[cluster].work.leave(request);
        self.fail((request / 8) as usize, None);
    }

    /// An attempt has failed; the client may retry.
    fn fail(&mut self, index: usize, retry_after: Option<f64>) {
        let call = &mut self.run.calls[index];
        let clients = &self.scenario.clusters[call.cluster].clients;
        let back_off = BACK_OFF_SECONDS * f64::from(1u32 << (call.tries - 1)) * (0.5 + self.rng.f64());
        let wait = retry_after.unwrap_or(back_off);
        let age = (self.now_us - call.begun_us) as f64 / 1e6;
        let is_retried = call.tries < clients.tries && age + wait < clients.deadline;
        call.fate = if is_retried { Fate::Between } else { Fate::Failed };
        if is_retried {
            self.after(wait, Event::Try(index));
        }
    }

    /// The VM of a worker traps: its requests fail, and the new VM has no record of them.
    fn trap(&mut self, worker: usize) {
        self.protection.trap(worker, self.now_us);
        let is_lost = |call: &Call| call.worker == worker && matches!(call.fate, Fate::Waiting | Fate::Sent);
        let lost = (0..self.run.calls.len()).filter(|index| is_lost(&self.run.calls[*index]));
        for index in lost.collect::<Vec<_>>() {
            if self.run.calls[index].fate == Fate::Waiting {
                self.take_from_queue(index as u64 * 8 + u64::from(self.run.calls[index].tries));
            }
            self.fail(index, None);
        }
    }
}
