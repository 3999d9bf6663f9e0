//! One world: a virtual clock, a queue of events, and the oracle.
//!
//! All functions take `&World`, because other workers act during the operation of one.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;

use dynamic_rate_limiter::generation::Role;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::health_sync::POLL_INTERVAL;
use dynamic_rate_limiter::limiter::LimiterOutput;
use dynamic_rate_limiter::metrics::{BUCKET_EVICTIONS, StatUpdate};
use dynamic_rate_limiter::redis_limiter::RedisLimiter;
use dynamic_rate_limiter::store::AddressTable;
use dynamic_rate_limiter::time::{StoreTime, whole_micros};
use harness::FakeData;

use crate::faults::Faults;
use crate::oracle::Oracle;
use crate::random::Random;
use crate::redis::Server;
use crate::report::{Happening, History, Totals, What};
use crate::shared_data::Host;
use crate::worker::{Envoy, Worker};
use crate::workload::{Caller, KEYS, Limits, Plan, Store, bucket_name};

/// The timeout of a change of health, in microseconds.
pub const POST_TIMEOUT_US: u64 = 1_000_000;

/// The longest delay of a poll by other workers that act during an operation, in microseconds. The timeouts of requests
/// are checked with their actual delays.
pub const SLACK_US: u64 = 10_000;

/// The time until a message on a worker's shared queue calls it, in microseconds.
pub const TURN_US: u64 = 50;

/// Longest turn of a busy worker's event loop, in microseconds.
const LONGEST_TURN_US: u64 = 100_000;

/// The most nested operations.
pub const MAX_DEPTH: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Arrivals,
    /// A rejected caller retries.
    Return(usize, Caller),
    /// A worker's shared queue calls it.
    Turn(usize),
    Tick(usize),
    ToRedis(usize, u64),
    FromRedis(usize, u64),
    /// A worker learns that its stream is closed.
    Closed(usize, u64),
    SomeBusy,
    /// A worker is busy for a while, and again this number of times.
    Busy(usize, u32),
    Fault,
    FaultEnds,
}

pub struct World {
    pub plan: Plan,
    /// Microseconds since it began.
    pub now_us: Cell<u64>,
    pub random: RefCell<Random>,
    pub envoys: Vec<Envoy>,
    /// All VMs, also those that have ended.
    pub workers: RefCell<Vec<Rc<Worker>>>,
    pub redis: RefCell<Server>,
    pub faults: Faults,
    pub oracle: RefCell<Oracle>,
    pub(crate) totals: RefCell<Totals>,
    history: RefCell<History>,
    wrong: RefCell<Option<String>>,
    queue: RefCell<BinaryHeap<Reverse<(u64, u64, Event)>>>,
    /// Numbers events, streams and request_ids.
    last_number: Cell<u64>,
    /// Which bucket a key in Redis is.
    pub(crate) redis_buckets: HashMap<Vec<u8>, usize>,
    pub health_changed_us: Cell<u64>,
}

impl World {
    pub fn new(seed: u64, redis: Server) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let limits = Rc::new(Limits::draw(&mut random, &plan, None));
        let maps: [Rc<FakeData>; 2] = Default::default();
        let envoy = |(process, namespace): &(usize, &'static str)| Envoy {
            map: maps[*process].clone(),
            epoch_us: 1_000_000 * (1 + 1_000 * *process as u64),
            namespace,
            namespace_index: usize::from(*namespace != "default"),
            health: Cell::default(),
            limits: RefCell::new(limits.clone()),
            delivered: RefCell::new(limits.clone()),
        };
        let owners = plan.owners();
        let envoys: Vec<Envoy> = plan.envoys.iter().map(envoy).collect();
        let prefixes = ["rate_limit:", "rate_limit:other/"].into_iter().enumerate();
        let key = |(index, prefix): (usize, &str), owner: usize| {
            (format!("{prefix}{}", bucket_name(owner)).into_bytes(), index * owners + owner)
        };
        let redis_buckets =
            prefixes.flat_map(|prefix| (0..owners).map(move |owner| key(prefix, owner))).collect();
        let oracle = RefCell::new(Oracle::new(envoys.len() * owners, 2 * owners));
        let world = Self {
            plan,
            now_us: Cell::new(0),
            random: RefCell::new(random),
            envoys,
            workers: RefCell::default(),
            redis: RefCell::new(redis),
            faults: Faults::default(),
            oracle,
            totals: RefCell::default(),
            history: RefCell::default(),
            wrong: RefCell::default(),
            queue: RefCell::default(),
            last_number: Cell::new(0),
            redis_buckets,
            health_changed_us: Cell::new(0),
        };
        for envoy in 0..world.envoys.len() {
            (0..world.plan.workers).for_each(|_| world.start_worker(envoy));
            world.find_shared_records(envoy);
        }
        world
    }

    /// Runs until all requests are decided, or a check fails.
    pub fn run(&self) -> Result<(), String> {
        self.after(0, Event::Arrivals);
        self.after(self.below(2 * self.plan.fault_gap_us), Event::Fault);
        self.schedule_busy();
        let give_up_us = POST_TIMEOUT_US + self.plan.timeout_us + LONGEST_TURN_US + SLACK_US;
        let mut ended_us = None;
        while let Some(Reverse((at_us, _, event))) = { self.queue.borrow_mut().pop() } {
            self.now_us.set(self.now_us.get().max(at_us));
            self.happen(event);
            if let Some(wrong) = self.wrong.borrow_mut().take() {
                return Err(wrong);
            }
            if self.is_over() && ended_us.is_none() {
                ended_us = Some(self.now_us.get());
            }
            if ended_us.is_some_and(|ended_us| self.now_us.get() > ended_us + give_up_us) {
                break;
            }
        }
        let has_waiting = |worker: &Rc<Worker>| !worker.is_gone.get() && !worker.pending.borrow().is_empty();
        match self.workers.borrow().iter().any(has_waiting) {
            false => Ok(()),
            true => Err(format!("a request was never decided\n{}", self.history(None))),
        }
    }

    pub fn totals(&self) -> Totals {
        let mut totals = self.totals.borrow().clone();
        totals.forgiven = self.oracle.borrow().forgiven;
        totals
    }

    /// The last lines about an owner, or about all.
    pub fn history(&self, owner: Option<usize>) -> String {
        self.history.borrow().shown(owner)
    }

    pub fn into_server(self) -> Server {
        self.redis.into_inner()
    }

    /// Whether all requests have come in.
    pub fn is_over(&self) -> bool {
        self.totals.borrow().operations >= self.plan.operations
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound.max(1))
    }

    pub fn one_in(&self, chances: u64) -> bool {
        self.random.borrow_mut().one_in(chances)
    }

    pub fn count(&self, happening: Happening) {
        self.totals.borrow_mut().add(happening, 1);
    }

    pub fn note(&self, owner: Option<usize>, what: What) {
        self.history.borrow_mut().note(self.now_us.get(), owner, what);
    }

    /// Schedules an event after this time.
    pub fn after(&self, us: u64, event: Event) {
        self.at(self.now_us.get() + us, event);
    }

    pub(crate) fn at(&self, at_us: u64, event: Event) {
        self.queue.borrow_mut().push(Reverse((at_us, self.number(), event)));
    }

    pub(crate) fn number(&self) -> u64 {
        self.last_number.set(self.last_number.get() + 1);
        self.last_number.get()
    }

    /// Records a failure; the first one counts.
    pub fn fail(&self, owner: Option<usize>, what: impl AsRef<str>) {
        let mut wrong = self.wrong.borrow_mut();
        if wrong.is_none() {
            let name = owner.map_or(String::new(), |owner| format!("bucket {}: ", bucket_name(owner)));
            let (plan, history) = (&self.plan, self.history(owner));
            *wrong = Some(format!("{name}{}\nin {plan:?}\n{history}", what.as_ref()));
        }
    }

    pub(crate) fn hold(&self, owner: usize, judged: Result<(), String>) {
        if let Err(what) = judged {
            self.fail(Some(owner), what);
        }
    }

    /// An Envoy's health has changed.
    pub fn note_health(&self, envoy: usize, health: Health) {
        if self.envoys[envoy].health.replace(health) != health {
            self.health_changed_us.set(self.now_us.get());
        }
    }

    fn happen(&self, event: Event) {
        if let Some(free_us) = self.waits_for_worker(event) {
            return self.at(free_us, event);
        }
        match event {
            Event::Arrivals => self.arrivals(),
            Event::Return(..) | Event::Fault | Event::Busy(..) | Event::SomeBusy if self.is_over() => {}
            Event::Return(envoy, caller) => {
                self.count(Happening::AtTheInstant);
                if let Some(worker) = self.some_worker(envoy) {
                    self.request(&worker, caller, 0);
                }
            }
            Event::Turn(index) => {
                let worker = self.worker(index);
                worker.is_awake.set(false);
                self.pump(&worker);
            }
            Event::Tick(index) => self.tick(index),
            Event::SomeBusy => {
                if let Some(worker) = self.any_worker() {
                    self.keep_busy(&worker, self.below(30) as u32);
                }
                self.schedule_busy();
            }
            Event::Busy(index, more) => self.keep_busy(&self.worker(index), more),
            Event::ToRedis(index, stream) => self.arrive_at_redis(index, stream),
            Event::FromRedis(index, stream) => self.arrive_at_worker(index, stream),
            Event::Closed(index, stream) => self.closed(index, stream),
            Event::Fault => self.fault(),
            Event::FaultEnds => self.end_fault(),
        }
    }

    fn schedule_busy(&self) {
        if let Some(gap_us) = self.plan.busy_gap_us {
            self.after(self.below(2 * gap_us), Event::SomeBusy);
        }
    }

    /// The time at which a busy worker handles an event: replies first, then ticks.
    fn waits_for_worker(&self, event: Event) -> Option<u64> {
        let (index, last_us) = match event {
            Event::FromRedis(index, _) | Event::Closed(index, _) | Event::Turn(index) => (index, 0),
            Event::Tick(index) => (index, 1),
            _ => return None,
        };
        let free_us = self.worker(index).busy_until_us.get();
        (free_us > self.now_us.get()).then_some(free_us + last_us)
    }

    /// A turn of a worker's event loop takes long, and so do some turns after it.
    fn keep_busy(&self, worker: &Worker, more: u32) {
        if worker.is_gone.get() || worker.limiter.try_borrow_mut().is_err() {
            return;
        }
        self.count(Happening::Busy);
        let longest_us = if self.one_in(2) { 8_000 } else { LONGEST_TURN_US };
        let turn_us = 1 + self.below(longest_us);
        worker.busy_until_us.set(self.now_us.get() + turn_us);
        if let Some(more) = more.checked_sub(1) {
            self.after(turn_us + 2, Event::Busy(worker.index, more));
        }
    }

    pub fn worker(&self, index: usize) -> Rc<Worker> {
        self.workers.borrow()[index].clone()
    }

    /// A worker of an Envoy that takes requests and is not inside an operation.
    pub fn some_worker(&self, envoy: usize) -> Option<Rc<Worker>> {
        let workers = self.workers.borrow();
        let start = self.below(workers.len() as u64) as usize;
        let is_free = |worker: &&Rc<Worker>| {
            let is_idle = worker.busy_until_us.get() <= self.now_us.get();
            worker.envoy == envoy
                && worker.accepts.get()
                && is_idle
                && worker.limiter.try_borrow_mut().is_ok()
        };
        workers[start..].iter().chain(&workers[..start]).find(is_free).cloned()
    }

    /// The same, of a random Envoy.
    pub fn any_worker(&self) -> Option<Rc<Worker>> {
        let envoy = self.below(self.envoys.len() as u64) as usize;
        self.some_worker(envoy)
    }

    /// Starts a VM with the present configuration of the Envoy.
    pub fn start_worker(&self, envoy: usize) {
        let Envoy { delivered, namespace, .. } = &self.envoys[envoy];
        let delivered = delivered.borrow().clone();
        let random = self.random.borrow_mut().next();
        let json = self.plan.configuration(&delivered, namespace);
        let host = Host::new(self, envoy, MAX_DEPTH);
        let index = self.workers.borrow().len();
        let worker = Rc::new(Worker::new((index, envoy), &json, delivered, &host, random));
        self.workers.borrow_mut().push(Rc::clone(&worker));
        if self.plan.store != Store::SharedData {
            self.tick_after(&worker, self.below(POLL_INTERVAL.as_micros() as u64));
        }
    }

    /// Reports to the oracle the addresses that share a full record of the table.
    fn find_shared_records(&self, envoy: usize) {
        let host = Host::new(self, envoy, MAX_DEPTH);
        let namespace = self.envoys[envoy].namespace;
        let table = AddressTable::open(&host, namespace, self.plan.max_buckets, (0, 0)).expect("it is there");
        let ways = self.plan.max_buckets.min(8);
        let records = u64::from((self.plan.max_buckets / ways).max(1));
        let mut members: HashMap<u64, Vec<usize>> = HashMap::new();
        for owner in KEYS..self.plan.owners() {
            let ip = bucket_name(owner).parse().expect("an address");
            let record = table.hash(dynamic_rate_limiter::identity::Network::Ip(ip, 32)) % records;
            members.entry(record).or_default().push(envoy * self.plan.owners() + owner);
        }
        for members in members.values().filter(|members| members.len() > ways as usize) {
            self.oracle.borrow_mut().shared_record(members, ways);
        }
    }

    /// What Envoy does for a worker with something to send or to answer, or whose requests wait.
    pub fn wake(&self, worker: &Worker) {
        let limiter = worker.limiter.borrow();
        let Some(redis) = limiter.redis() else { return };
        if redis.has_output() && !worker.is_awake.replace(true) {
            self.after(self.below(TURN_US), Event::Turn(worker.index));
        }
        drop(limiter);
        self.await_timeout(worker);
    }

    fn await_timeout(&self, worker: &Worker) {
        let envoy = &self.envoys[worker.envoy];
        let limiter = worker.limiter.borrow();
        let Some(redis) = limiter.redis() else { return };
        let wait_us = redis.poll_timeout().map(|timeout| timeout.since(envoy.clock(self.now_us.get())));
        if let Some(wait_us) = wait_us.map(whole_micros)
            && self.now_us.get() + wait_us < worker.tick_us.get()
        {
            self.tick_after(worker, wait_us);
        }
    }

    fn tick_after(&self, worker: &Worker, us: u64) {
        worker.tick_us.set(self.now_us.get() + us);
        self.after(us, Event::Tick(worker.index));
    }

    fn tick(&self, index: usize) {
        let worker = self.worker(index);
        if worker.is_gone.get() || self.now_us.get() < worker.tick_us.get() {
            return;
        }
        let due_us = worker.tick_us.replace(u64::MAX);
        let host = Host::new(self, worker.envoy, 0);
        {
            let mut limiter = worker.limiter.borrow_mut();
            limiter.refresh(&host);
            let clock = self.envoys[worker.envoy].clock(self.now_us.get());
            self.count_evictions(limiter.drain_metrics());
            limiter.handle_timeout(clock, Role::Newest, &host);
        }
        // It may be late, and the other workers delay the next one.
        worker.delay(self.now_us.get() - due_us);
        // The answers, too, delay a check that is due meanwhile.
        self.await_timeout(&worker);
        self.pump(&worker);
        if !worker.accepts.get() && worker.pending.borrow().is_empty() {
            self.let_go(&worker);
        }
    }

    fn count_evictions(&self, updates: Vec<StatUpdate>) {
        for update in updates {
            match update {
                StatUpdate::Count(name, count) if name == BUCKET_EVICTIONS => {
                    self.totals.borrow_mut().add(Happening::Eviction, count);
                }
                _ => {}
            }
        }
    }

    /// Ends a VM, with its stream and its waiting requests.
    pub fn let_go(&self, worker: &Worker) {
        worker.accepts.set(false);
        worker.is_gone.set(true);
        worker.pending.borrow_mut().clear();
        *worker.stream.borrow_mut() = None;
        if let Ok(mut limiter) = worker.limiter.try_borrow_mut() {
            self.count_evictions(limiter.drain_metrics());
        }
    }

    /// Handles all decisions and sends all commands.
    pub(crate) fn pump(&self, worker: &Worker) {
        worker.pumps_since_us.set(Some(self.now_us.get()));
        while !worker.is_gone.get() {
            let host = Host::new(self, worker.envoy, 0);
            let clock = StoreTime::from_micros(host.clock_us.get());
            let output = worker.limiter.borrow_mut().poll_output(clock, &host);
            match output {
                Some(LimiterOutput::Decided(id, decision)) => {
                    worker.unsent.borrow_mut().retain(|unsent| *unsent != id);
                    let pending = worker.pending.borrow_mut().remove(&id);
                    match pending {
                        Some(pending) => self.decided(worker, pending, decision, &host, true),
                        None => self
                            .fail(None, format!("request {id}, decided twice or not waiting: {decision:?}")),
                    }
                }
                Some(LimiterOutput::Stream(action)) => self.carry_out(worker, action),
                None if worker.limiter.borrow().redis().is_some_and(RedisLimiter::has_output) => {
                    worker.limiter.borrow_mut().flush();
                }
                None => break,
            }
        }
        worker.pumps_since_us.set(None);
        self.wake(worker);
    }
}

/// The key of a namespace's health in Redis.
pub fn health_key(namespace_index: usize) -> &'static str {
    match namespace_index {
        0 => "system:health:status",
        _ => "system:health:other:status",
    }
}
