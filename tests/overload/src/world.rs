//! Who calls when, and what comes of it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::load::controller::Controller;
use dynamic_rate_limiter::load::hand_in_us;

use crate::chance::{Random, exponential, uniform};
use crate::envoy::{Caller, Envoy, Verdict};
use crate::scenario::{Phase, Scenario};
use crate::upstream::{Condition, Taken, Work};

/// How often what happened is noted, in microseconds.
pub const BIN_US: u64 = 500_000;

/// A call is tried so many times in all.
pub const ATTEMPTS: u8 = 4;

/// Wait before the second attempt where no Retry-After says otherwise; it doubles, and varies by half.
const BACK_OFF_US: f64 = 100_000.0;

/// Mean calls a second of one caller, by tier: what a tier asks for beyond that, it asks for by more callers.
const CALLS_A_SECOND: [f64; 3] = [0.3, 0.7, 1.5];

/// What happened in half a second. By tier where it is an array.
#[derive(Clone, Debug, Default)]
pub struct Bin {
    /// Calls that began.
    pub calls: [u32; 3],
    /// Of those that began: refused by the caller's own bucket, served in the end, and given up.
    pub refused: [u32; 3],
    /// See `refused`.
    pub served: [u32; 3],
    /// See `refused`.
    pub given_up: [u32; 3],
    /// Calls that were served just then, whenever they began.
    pub good: u32,
    /// Requests that were sent to the upstream.
    pub sent: u32,
    /// Requests that were shed.
    pub shed: [u32; 3],
    /// Requests of calls that began in an earlier phase: what is left of it.
    pub leftover: [u32; 3],
    /// Which phase it was.
    pub phase: usize,
    /// What held at the end.
    pub health: Health,
    /// See `health`.
    pub severity: f64,
    /// See `health`.
    pub controller: Controller,
    /// Requests in the upstream's queue at the end.
    pub waiting: usize,
}

/// What happened, and what is wrong with the order in which tiers were shed.
pub struct Story {
    /// By time.
    pub bins: Vec<Bin>,
    /// When health changed, in seconds.
    pub transitions: Vec<f64>,
    /// Tiers that were shed before less important ones.
    pub disorder: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Phase(usize),
    Call,
    Attempt(usize),
    Done { attempt: u64, life: u32 },
    Impatient(u64),
    HandIn(usize),
    Note,
}

struct Call {
    caller: Caller,
    begun_us: u64,
    bin: usize,
    worker: usize,
    attempt: u8,
    sent_us: u64,
    is_waiting: bool,
}

struct World<'a> {
    scenario: &'a Scenario,
    is_told: bool,
    random: Random,
    now_us: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    calls: Vec<Call>,
    work: Work,
    /// Counts restarts of the upstream: who is done in an earlier life has failed.
    life: u32,
    envoy: Envoy,
    phase: usize,
    phase_since_us: u64,
    story: Story,
}

/// Runs a scenario from its begin to its end.
pub fn run(scenario: &Scenario, seed: u64) -> Story {
    run_with(scenario, seed, false)
}

/// The same with a limiter that is told at each moment what the upstream can do, and has nothing to find out.
pub fn run_told(scenario: &Scenario, seed: u64) -> Story {
    run_with(scenario, seed, true)
}

fn run_with(scenario: &Scenario, seed: u64, is_told: bool) -> Story {
    let mut world = World {
        scenario,
        is_told,
        random: Random::new(seed),
        now_us: 0,
        events: BinaryHeap::new(),
        sequence: 0,
        calls: Vec::new(),
        work: Work::new(scenario.upstream),
        life: 0,
        envoy: Envoy::new(&scenario.tiers, scenario.bounds, scenario.workers + 1),
        phase: 0,
        phase_since_us: 0,
        story: Story { bins: vec![Bin::default()], transitions: Vec::new(), disorder: Vec::new() },
    };
    let mut from_us = 0;
    for (index, phase) in scenario.phases.iter().enumerate() {
        world.at(from_us, Event::Phase(index));
        from_us += (phase.seconds * 1e6) as u64;
    }
    for worker in 0..=scenario.workers {
        world.hand_in_soon(worker);
    }
    world.at(BIN_US, Event::Note);
    world.at(0, Event::Call);
    while let Some(Reverse((at_us, _, event))) = world.events.pop() {
        if at_us >= from_us {
            break;
        }
        world.now_us = at_us;
        world.happen(event);
    }
    world.story.disorder = world.envoy.disorder;
    world.story
}

impl World<'_> {
    fn at(&mut self, us: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((us, self.sequence, event)));
    }

    fn after(&mut self, us: u64, event: Event) {
        self.at(self.now_us + us, event);
    }

    /// Workers begin together, and their clocks are nearly the same.
    fn hand_in_soon(&mut self, worker: usize) {
        let late_us = 1_000 + self.random.below(2_000);
        self.after(hand_in_us(&self.scenario.bounds) + late_us, Event::HandIn(worker));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Phase(index) => self.enter(index),
            Event::Call => self.call(),
            Event::Attempt(call) => self.attempt(call),
            Event::Done { attempt, life } => self.done(attempt, life),
            Event::Impatient(attempt) => self.impatient(attempt),
            Event::HandIn(worker) => {
                let before = self.envoy.health();
                if self.is_told && before == Health::Degraded {
                    self.envoy.tell(self.phase().condition.capacity(&self.scenario.upstream));
                }
                self.envoy.hand_in(worker, self.now_us);
                if self.envoy.health() != before {
                    self.story.transitions.push(self.now_us as f64 / 1e6);
                }
                self.hand_in_soon(worker);
            }
            Event::Note => self.note(),
        }
    }

    fn bin(&mut self) -> &mut Bin {
        self.story.bins.last_mut().expect("one from the begin")
    }

    fn note(&mut self) {
        let (phase, health) = (self.phase, self.envoy.health());
        let (severity, waiting) = (self.envoy.load.controller.severity(), self.work.waiting());
        let controller = self.envoy.load.controller;
        let bin = self.bin();
        (bin.phase, bin.health, bin.severity, bin.waiting) = (phase, health, severity, waiting);
        bin.controller = controller;
        self.story.bins.push(Bin { phase, ..Bin::default() });
        self.after(BIN_US, Event::Note);
    }

    fn enter(&mut self, index: usize) {
        (self.phase, self.phase_since_us) = (index, self.now_us);
        let condition = self.scenario.phases[index].condition;
        let stopped = |condition| matches!(condition, Condition::Dead | Condition::Hanging);
        if self.work.condition != condition && (condition == Condition::Dead || stopped(self.work.condition))
        {
            self.life += 1;
            for attempt in self.work.restart() {
                self.answer(attempt, false);
            }
        }
        self.work.condition = condition;
        self.start_waiting();
    }

    fn phase(&self) -> &Phase {
        &self.scenario.phases[self.phase]
    }

    /// A call begins, and the next one is due.
    fn call(&mut self) {
        let gone = (self.now_us - self.phase_since_us) as f64 / 1e6 / self.phase().seconds;
        let (from, to) = self.phase().load;
        let rate = (from + (to - from) * gone.min(1.0)) * self.scenario.upstream.capacity();
        let wait_us = exponential(&mut self.random, 1e6 / rate) as u64;
        self.after(wait_us, Event::Call);

        let drawn = uniform(&mut self.random);
        let [free, pro, _] = self.scenario.mix;
        let tier = usize::from(drawn > free) + usize::from(drawn > free + pro);
        // As many callers as it takes; some call much more often than others.
        let callers = (rate * self.scenario.mix[tier] / CALLS_A_SECOND[tier]).ceil();
        let number = (callers * uniform(&mut self.random).powi(2)) as u64;
        let bin = self.story.bins.len() - 1;
        self.bin().calls[tier] += 1;
        // Nobody calls at the first one: so it is with the thread of Envoy that serves nobody.
        let worker = 1 + self.random.below(self.scenario.workers as u64) as usize;
        let caller = Caller { tier, number };
        self.calls.push(Call {
            caller,
            begun_us: self.now_us,
            bin,
            worker,
            attempt: 0,
            sent_us: 0,
            is_waiting: false,
        });
        self.attempt(self.calls.len() - 1);
    }

    fn attempt(&mut self, index: usize) {
        let is_leftover = self.story.bins[self.calls[index].bin].phase < self.phase;
        let call = &mut self.calls[index];
        let Caller { tier, number } = call.caller;
        self.story.bins.last_mut().expect("one from the begin").leftover[tier] += u32::from(is_leftover);
        match self.envoy.arrive(call.caller, call.worker, self.now_us) {
            Verdict::Refused => self.story.bins[call.bin].refused[tier] += 1,
            Verdict::Shed(seconds) => {
                self.bin().shed[tier] += 1;
                let jitter_us = self.random.below(1_000_000);
                self.retry(index, Some(seconds * 1_000_000 + jitter_us));
            }
            Verdict::Passed => {
                call.attempt += 1;
                (call.sent_us, call.is_waiting) = (self.now_us, true);
                let attempt = index as u64 * 256 + u64::from(call.attempt);
                self.bin().sent += 1;
                let (least, most) = self.scenario.clients.patience;
                let patience = least + (most - least) * ((number * 7 + tier as u64) % 10) as f64 / 9.0;
                let patience = patience.min(self.scenario.clients.route_timeout);
                self.after((patience * 1e6) as u64, Event::Impatient(attempt));
                match self.work.take(attempt, &mut self.random) {
                    Taken::Started(us) => self.after(us, Event::Done { attempt, life: self.life }),
                    Taken::Queued => {}
                    Taken::Refused => self.answer(attempt, false),
                }
            }
        }
    }

    fn done(&mut self, attempt: u64, life: u32) {
        let is_good = life == self.life && self.work.succeeds(&mut self.random);
        self.answer(attempt, is_good);
        if life == self.life {
            self.work.done();
            self.start_waiting();
        }
    }

    /// Servers that are free take on what waits.
    fn start_waiting(&mut self) {
        while let Some((attempt, us)) =
            self.work.start_next(&mut self.random, |attempt| is_waiting(&self.calls, attempt))
        {
            self.after(us, Event::Done { attempt, life: self.life });
        }
    }

    fn answer(&mut self, attempt: u64, is_good: bool) {
        if !is_waiting(&self.calls, attempt) {
            return;
        }
        let index = (attempt / 256) as usize;
        let call = &mut self.calls[index];
        call.is_waiting = false;
        self.envoy.answered(call.worker, is_good, self.now_us - call.sent_us);
        if is_good {
            self.story.bins[call.bin].served[call.caller.tier] += 1;
            self.bin().good += 1;
        } else {
            self.retry(index, None);
        }
    }

    fn impatient(&mut self, attempt: u64) {
        if is_waiting(&self.calls, attempt) {
            let index = (attempt / 256) as usize;
            let call = &mut self.calls[index];
            call.is_waiting = false;
            let waited_us = self.now_us - call.sent_us;
            if waited_us as f64 >= self.scenario.clients.route_timeout * 1e6 - 1.0 {
                self.envoy.answered(call.worker, false, waited_us);
            } else {
                self.envoy.abandoned(call.worker, waited_us);
            }
            self.retry(index, None);
        }
    }

    fn retry(&mut self, index: usize, told_us: Option<u64>) {
        let call = &mut self.calls[index];
        // Shed attempts count as attempts.
        if told_us.is_some() {
            call.attempt += 1;
        }
        let back_off =
            BACK_OFF_US * f64::from(1u32 << call.attempt) * (0.5 + uniform(&mut self.random)) / 2.0;
        let wait_us = told_us.unwrap_or(back_off as u64);
        let is_too_late =
            (self.now_us + wait_us - call.begun_us) as f64 > self.scenario.clients.deadline * 1e6;
        if call.attempt >= ATTEMPTS || is_too_late {
            self.story.bins[call.bin].given_up[call.caller.tier] += 1;
            return;
        }
        self.after(wait_us, Event::Attempt(index));
    }
}

/// Whether the client of that attempt still waits for it.
fn is_waiting(calls: &[Call], attempt: u64) -> bool {
    let call = &calls[(attempt / 256) as usize];
    call.is_waiting && u64::from(call.attempt) == attempt % 256
}
