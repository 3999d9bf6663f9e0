//! One world: a virtual clock, a queue of what happens next, and what is held against the oracle.
//!
//! Everything is reached through `&World`, because in the middle of one worker's operation others act.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;

use dynamic_rate_limiter::bucket::{Outcome, Verdict};
use dynamic_rate_limiter::fleet::POLL_US;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limiter::Decision;
use dynamic_rate_limiter::metrics::{BUCKET_EVICTIONS, Sample};
use dynamic_rate_limiter::reply::Answer;
use dynamic_rate_limiter::request::{Arrival, Ticket};
use dynamic_rate_limiter::store::AddressTable;
use dynamic_rate_limiter::tier::Limit;

use crate::faults::Faults;
use crate::oracle::{Oracle, Said};
use crate::random::Random;
use crate::redis::{Done, Server, Took, parse_command};
use crate::report::{Happening, History, Tally, What};
use crate::shared_data::{Host, SharedMap};
use crate::worker::{Envoy, Pending, Stream, Worker};
use crate::workload::{Asked, Caller, KEYS, Limits, Plan, Store, bucket_name};

/// How long a change of health may take, in microseconds.
const POST_TIMEOUT_US: u64 = 1_000_000;

/// What others do in the middle of an operation takes time, and so delays ticks: at most so much, in microseconds.
pub const SLACK_US: u64 = 10_000;

/// Redis has to be asked again so soon after it is well, in microseconds.
const RECOVERY_US: u64 = 5_000_000;

/// A change of health in Redis has to be known everywhere so soon, in microseconds.
const HEALTH_US: u64 = 1_000_000;

/// Operations inside of operations, at most.
pub const MAX_DEPTH: u32 = 2;

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Requests come in.
    Arrivals,
    /// A refused caller comes back.
    Return(usize, Caller),
    /// A worker's shared queue calls it.
    Turn(usize),
    /// A worker's timer.
    Tick(usize),
    /// Bytes arrive at Redis.
    ToRedis(usize, u64),
    /// Bytes arrive at a worker.
    FromRedis(usize, u64),
    /// A worker hears that its stream is closed.
    Closed(usize, u64),
    /// A fault begins.
    Fault,
    /// It ends.
    FaultEnds,
}

/// A world.
pub struct World {
    /// What it is made of.
    pub plan: Plan,
    /// Microseconds since it began.
    pub now_us: Cell<u64>,
    /// All that is drawn.
    pub random: RefCell<Random>,
    /// Its Envoys.
    pub envoys: Vec<Envoy>,
    /// All VMs that ever were.
    pub workers: RefCell<Vec<Rc<Worker>>>,
    /// Its Redis.
    pub redis: RefCell<Server>,
    /// What is wrong with Redis.
    pub faults: Faults,
    /// Its judge.
    pub oracle: RefCell<Oracle>,
    tally: RefCell<Tally>,
    history: RefCell<History>,
    wrong: RefCell<Option<String>>,
    queue: RefCell<BinaryHeap<Reverse<(u64, u64, Event)>>>,
    /// Numbers events, streams and tickets.
    last_number: Cell<u64>,
    /// Which bucket a key in Redis is.
    redis_buckets: HashMap<Vec<u8>, usize>,
    /// When the health of anybody last changed.
    pub health_changed_us: Cell<u64>,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, redis: Server) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let limits = Rc::new(Limits::draw(&mut random, &plan, None));
        let maps: [Rc<SharedMap>; 2] = Default::default();
        let envoy = |(process, namespace): &(usize, &'static str)| Envoy {
            map: maps[*process].clone(),
            epoch_us: 1_000_000 * (1 + 1_000 * *process as u64),
            namespace,
            namespace_index: usize::from(*namespace != "default"),
            health: Cell::default(),
            limits: RefCell::new(limits.clone()),
            delivered: RefCell::new(limits.clone()),
        };
        let payers = plan.payers();
        let envoys: Vec<Envoy> = plan.envoys.iter().map(envoy).collect();
        let prefixes = ["rate_limit:", "rate_limit:other/"].into_iter().enumerate();
        let key = |(index, prefix): (usize, &str), payer: usize| {
            (format!("{prefix}{}", bucket_name(payer)).into_bytes(), index * payers + payer)
        };
        let redis_buckets =
            prefixes.flat_map(|prefix| (0..payers).map(move |payer| key(prefix, payer))).collect();
        let oracle = RefCell::new(Oracle::new(envoys.len() * payers, 2 * payers));
        let world = Self {
            plan,
            now_us: Cell::new(0),
            random: RefCell::new(random),
            envoys,
            workers: RefCell::default(),
            redis: RefCell::new(redis),
            faults: Faults::default(),
            oracle,
            tally: RefCell::default(),
            history: RefCell::default(),
            wrong: RefCell::default(),
            queue: RefCell::default(),
            last_number: Cell::new(0),
            redis_buckets,
            health_changed_us: Cell::new(0),
        };
        for envoy in 0..world.envoys.len() {
            (0..world.plan.workers).for_each(|_| world.start_worker(envoy));
            world.find_crowds(envoy);
        }
        world
    }

    /// Runs until all requests are decided, or something is wrong.
    pub fn run(&self) -> Result<(), String> {
        self.after(0, Event::Arrivals);
        self.after(self.below(2 * self.plan.fault_gap_us), Event::Fault);
        let give_up_us = POST_TIMEOUT_US + self.plan.timeout_us + SLACK_US;
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
        match self
            .workers
            .borrow()
            .iter()
            .filter(|worker| !worker.is_gone.get())
            .any(|worker| !worker.pending.borrow().is_empty())
        {
            false => Ok(()),
            true => Err(format!("a request was never decided\n{}", self.history(None))),
        }
    }

    /// What was counted.
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally.borrow().clone();
        tally.forgiven = self.oracle.borrow().forgiven;
        tally
    }

    /// The last lines about a payer, or about all.
    pub fn history(&self, payer: Option<usize>) -> String {
        self.history.borrow().shown(payer)
    }

    /// The server, for the next world.
    pub fn into_server(self) -> Server {
        self.redis.into_inner()
    }

    /// Whether all requests have come in.
    pub fn is_over(&self) -> bool {
        self.tally.borrow().operations >= self.plan.operations
    }

    /// A number from 0 to `bound - 1`.
    pub fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound.max(1))
    }

    /// Whether something of that likelihood happens.
    pub fn one_in(&self, chances: u64) -> bool {
        self.random.borrow_mut().one_in(chances)
    }

    /// Counts something.
    pub fn count(&self, happening: Happening) {
        self.tally.borrow_mut().add(happening, 1);
    }

    /// Adds a line to the history.
    pub fn note(&self, payer: Option<usize>, what: What) {
        self.history.borrow_mut().note(self.now_us.get(), payer, what);
    }

    /// Lets an event happen so much later.
    pub fn after(&self, us: u64, event: Event) {
        self.at(self.now_us.get() + us, event);
    }

    fn at(&self, at_us: u64, event: Event) {
        self.queue.borrow_mut().push(Reverse((at_us, self.number(), event)));
    }

    fn number(&self) -> u64 {
        self.last_number.set(self.last_number.get() + 1);
        self.last_number.get()
    }

    /// Says what is wrong; the first time counts.
    pub fn fail(&self, payer: Option<usize>, what: impl AsRef<str>) {
        let mut wrong = self.wrong.borrow_mut();
        if wrong.is_none() {
            let name = payer.map_or(String::new(), |payer| format!("bucket {}: ", bucket_name(payer)));
            let (plan, history) = (&self.plan, self.history(payer));
            *wrong = Some(format!("{name}{}\nin {plan:?}\n{history}", what.as_ref()));
        }
    }

    fn hold(&self, payer: usize, judged: Result<(), String>) {
        if let Err(what) = judged {
            self.fail(Some(payer), what);
        }
    }

    /// An Envoy's health has changed.
    pub fn note_health(&self, envoy: usize, health: Health) {
        if self.envoys[envoy].health.replace(health) != health {
            self.health_changed_us.set(self.now_us.get());
        }
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Arrivals => self.arrivals(),
            Event::Return(..) | Event::Fault if self.is_over() => {}
            Event::Return(envoy, caller) => {
                self.count(Happening::AtTheInstant);
                if let Some(worker) = self.some_worker(envoy) {
                    self.request(worker, caller, 0);
                }
            }
            Event::Turn(index) => {
                let worker = self.worker(index);
                worker.is_awake.set(false);
                self.pump(index, &worker);
            }
            Event::Tick(index) => self.tick(index),
            Event::ToRedis(index, stream) => self.to_redis(index, stream),
            Event::FromRedis(index, stream) => self.from_redis(index, stream),
            Event::Closed(index, stream) => self.closed(index, stream),
            Event::Fault => self.fault(),
            Event::FaultEnds => self.end_fault(),
        }
    }

    fn arrivals(&self) {
        for _ in 0..1 + self.below(8) {
            let envoy = self.below(self.envoys.len() as u64) as usize;
            if let Some(worker) = self.some_worker(envoy) {
                let caller = Caller::draw(&mut self.random.borrow_mut(), &self.plan);
                self.request(worker, caller, 0);
            }
        }
        if !self.is_over() {
            self.after(self.below(2 * self.plan.gap_us), Event::Arrivals);
        }
    }

    /// A worker of that VM number.
    pub fn worker(&self, index: usize) -> Rc<Worker> {
        self.workers.borrow()[index].clone()
    }

    /// A worker of an Envoy that takes requests and is not in the middle of something.
    pub fn some_worker(&self, envoy: usize) -> Option<usize> {
        let workers = self.workers.borrow();
        let is_free = |index: &usize| {
            let worker = &workers[*index];
            worker.envoy == envoy && worker.accepts.get() && worker.limiter.try_borrow_mut().is_ok()
        };
        let all = workers.len();
        let start = self.below(all as u64) as usize;
        (start..all).chain(0..start).find(is_free)
    }

    /// A VM for what the Envoy's configuration says now.
    pub fn start_worker(&self, envoy: usize) {
        let Envoy { delivered, namespace, .. } = &self.envoys[envoy];
        let delivered = delivered.borrow().clone();
        let random = self.random.borrow_mut().next();
        let json = self.plan.configuration(&delivered, namespace);
        let worker = Worker::new(envoy, &json, delivered, &Host::new(self, envoy, MAX_DEPTH), random);
        let index = self.workers.borrow().len();
        self.workers.borrow_mut().push(Rc::new(worker));
        if self.plan.store != Store::SharedData {
            self.tick_after(index, self.below(POLL_US));
        }
    }

    /// Tells the oracle which addresses share a full record of the table.
    fn find_crowds(&self, envoy: usize) {
        let host = Host::new(self, envoy, MAX_DEPTH);
        let namespace = self.envoys[envoy].namespace;
        let table = AddressTable::open(&host, namespace, self.plan.max_buckets, (0, 0)).expect("it is there");
        let ways = self.plan.max_buckets.min(8);
        let records = u64::from((self.plan.max_buckets / ways).max(1));
        let mut members: HashMap<u64, Vec<usize>> = HashMap::new();
        for payer in KEYS..self.plan.payers() {
            let ip = bucket_name(payer).parse().expect("an address");
            let record = table.hash(dynamic_rate_limiter::identity::Network::Ip(ip, 32)) % records;
            members.entry(record).or_default().push(envoy * self.plan.payers() + payer);
        }
        for members in members.values().filter(|members| members.len() > ways as usize) {
            self.oracle.borrow_mut().crowd(members, ways);
        }
    }

    /// In the middle of an operation, others act and time goes by.
    pub fn interleave(&self, envoy: usize, depth: u32) {
        if depth >= MAX_DEPTH || self.is_over() || !self.one_in(self.plan.race_one_in) {
            return;
        }
        self.now_us.set(self.now_us.get() + self.below(100));
        if let Some(worker) = self.some_worker(envoy) {
            self.count(Happening::Interleaved);
            let caller = Caller::draw(&mut self.random.borrow_mut(), &self.plan);
            self.request(worker, caller, depth + 1);
        }
    }

    /// What limits a worker's next request has.
    fn limits(&self, worker: &Worker) -> Rc<Limits> {
        match self.plan.by_documents {
            true => self.envoys[worker.envoy].limits.borrow().clone(),
            false => worker.delivered.clone(),
        }
    }

    fn request(&self, index: usize, caller: Caller, depth: u32) {
        let worker = self.worker(index);
        let envoy = &self.envoys[worker.envoy];
        let ticket = self.number() as Ticket;
        let host = Host::new(self, worker.envoy, depth);
        let at_us = self.now_us.get();
        let arrival = Arrival { ticket, at_us: envoy.clock_us(at_us) };
        let (limits, health) = (self.limits(&worker), envoy.health.get());
        let payer = limits.payer(caller);
        let limit = limits.limit(payer, health);
        let request = Asked { caller, is_post: false };
        let decision = worker.limiter.borrow_mut().decide(&request, &host, arrival);
        self.check_health(worker.envoy);
        let timeout_us = self.plan.timeout_us;
        let pending =
            Pending { payment: Some((payer, limit)), wanted: None, caller, at_us, timeout_us, outcome: None };
        match decision {
            Decision::AwaitsRedis => {
                self.note(Some(payer), What::Asked { envoy: worker.envoy, worker: index, ticket });
                worker.pending.borrow_mut().insert(ticket, pending);
                worker.unsent.borrow_mut().push_back(ticket);
            }
            decision => self.decided(index, &worker, ticket, pending, decision, &host, false),
        }
        self.wake(index, &worker);
    }

    /// Sends a change of health; its body is there at once.
    pub fn post_health(&self, index: usize, wanted: Health) {
        let worker = self.worker(index);
        let envoy = &self.envoys[worker.envoy];
        let ticket = self.number() as Ticket;
        let host = Host::new(self, worker.envoy, 0);
        let at_us = self.now_us.get();
        let arrival = Arrival { ticket, at_us: envoy.clock_us(at_us) };
        let caller = Caller { key: None, address: 0 };
        let request = Asked { caller, is_post: true };
        let decision = worker.limiter.borrow_mut().decide(&request, &host, arrival);
        let Decision::AwaitsBody(change) = decision else {
            return self.fail(None, format!("a change of health with the right token: {decision:?}"));
        };
        let body = format!(r#"{{"status": "{wanted}"}}"#);
        let decision = worker.limiter.borrow_mut().change_health(&change, body.as_bytes(), &host, arrival);
        let pending = Pending {
            payment: None,
            wanted: Some(wanted),
            caller,
            at_us,
            timeout_us: POST_TIMEOUT_US,
            outcome: None,
        };
        match decision {
            Decision::AwaitsRedis => drop(worker.pending.borrow_mut().insert(ticket, pending)),
            decision => self.decided(index, &worker, ticket, pending, decision, &host, false),
        }
        self.wake(index, &worker);
    }

    /// What Envoy does for a worker with something to send or to answer, or whose requests wait.
    pub fn wake(&self, index: usize, worker: &Worker) {
        let mut limiter = worker.limiter.borrow_mut();
        let Some(fleet) = limiter.fleet() else { return };
        if fleet.has_work() && !worker.is_awake.replace(true) {
            self.after(self.below(50), Event::Turn(index));
        }
        let soon_us = self.now_us.get() + self.quick_tick_us();
        if fleet.is_waiting() && worker.tick_us.get() > soon_us {
            self.tick_after(index, self.quick_tick_us());
        }
    }

    fn quick_tick_us(&self) -> u64 {
        (self.plan.timeout_us / 4).clamp(1_000, 10_000)
    }

    fn tick_after(&self, index: usize, us: u64) {
        self.worker(index).tick_us.set(self.now_us.get() + us);
        self.after(us, Event::Tick(index));
    }

    fn tick(&self, index: usize) {
        let worker = self.worker(index);
        if worker.is_gone.get() || self.now_us.get() < worker.tick_us.get() {
            return;
        }
        worker.tick_us.set(u64::MAX);
        let host = Host::new(self, worker.envoy, 0);
        let clock_us = host.clock_us.get();
        let is_waiting = {
            let mut limiter = worker.limiter.borrow_mut();
            limiter.refresh(&host);
            self.count_evictions(limiter.metrics.drain());
            let Some(fleet) = limiter.fleet() else { return };
            fleet.tick(clock_us, &host);
            fleet.is_waiting()
        };
        self.tick_after(index, if is_waiting { self.quick_tick_us() } else { POLL_US });
        self.pump(index, &worker);
        if !worker.accepts.get() && worker.pending.borrow().is_empty() {
            self.let_go(&worker);
        }
    }

    fn count_evictions(&self, samples: Vec<Sample>) {
        for sample in samples {
            match sample {
                Sample::Count(name, count) if name == BUCKET_EVICTIONS => {
                    self.tally.borrow_mut().add(Happening::Eviction, count);
                }
                _ => {}
            }
        }
    }

    /// A VM is gone, with its stream and those who wait.
    pub fn let_go(&self, worker: &Worker) {
        worker.accepts.set(false);
        worker.is_gone.set(true);
        worker.pending.borrow_mut().clear();
        *worker.stream.borrow_mut() = None;
        if let Ok(mut limiter) = worker.limiter.try_borrow_mut() {
            self.count_evictions(limiter.metrics.drain());
        }
    }

    /// Decisions go out, and what there is to send is sent.
    fn pump(&self, index: usize, worker: &Worker) {
        loop {
            let host = Host::new(self, worker.envoy, 0);
            let clock_us = host.clock_us.get();
            let next = worker.limiter.borrow_mut().next_decision(clock_us, &host);
            if let Some((ticket, decision)) = next {
                worker.unsent.borrow_mut().retain(|unsent| *unsent != ticket);
                match { worker.pending.borrow_mut().remove(&ticket) } {
                    Some(pending) => self.decided(index, worker, ticket, pending, decision, &host, true),
                    None => self
                        .fail(None, format!("request {ticket}, decided twice or not waiting: {decision:?}")),
                }
                continue;
            }
            let effects = {
                let mut limiter = worker.limiter.borrow_mut();
                let Some(fleet) = limiter.fleet() else { return };
                if !fleet.has_work() {
                    break;
                }
                fleet.take_effects()
            };
            if effects.close || effects.open {
                self.drop_stream(worker);
            }
            if effects.open {
                self.open_stream(index, worker);
            }
            if !effects.send.is_empty() {
                self.send(index, worker, effects.send);
            }
        }
        self.wake(index, worker);
    }

    fn drop_stream(&self, worker: &Worker) {
        if worker.stream.borrow_mut().take().is_some_and(|stream| stream.is_hole) {
            self.faults.touch(self.now_us.get());
        }
    }

    fn open_stream(&self, index: usize, worker: &Worker) {
        let stream = Stream { id: self.number(), is_refused: self.faults.is_down(), ..Stream::default() };
        if stream.is_refused {
            self.after(1 + self.below(2_000), Event::Closed(index, stream.id));
        }
        *worker.stream.borrow_mut() = Some(stream);
    }

    fn send(&self, index: usize, worker: &Worker, bytes: Vec<u8>) {
        self.note_askers(worker, &bytes);
        let mut stream = worker.stream.borrow_mut();
        let Some(stream) = stream.as_mut().filter(|stream| !stream.is_refused && !stream.is_hole) else {
            return;
        };
        let cut = if self.one_in(8) { 1 + self.below(bytes.len() as u64) as usize } else { bytes.len() };
        for part in [&bytes[..cut], &bytes[cut..]].into_iter().filter(|part| !part.is_empty()) {
            stream.last_us.0 = stream.last_us.0.max(self.now_us.get() + self.delay_us());
            stream.to_redis.push_back(part.to_vec());
            self.at(stream.last_us.0, Event::ToRedis(index, stream.id));
        }
    }

    /// Notes whose questions these are: they go out in the order in which they were asked, and are asked again in the
    /// order in which Redis said that it does not know the script.
    fn note_askers(&self, worker: &Worker, mut bytes: &[u8]) {
        let mut stream = worker.stream.borrow_mut();
        let Some(stream) = stream.as_mut() else { return self.fail(None, "bytes are sent on no stream") };
        let mut words = Vec::new();
        while let Some(length) = parse_command(bytes, &mut words) {
            bytes = &bytes[length..];
            let (b"EVALSHA" | b"EVAL") = words[0] else { continue };
            let Some(bucket) = self.redis_buckets.get(words[3]).copied() else { continue };
            let payer = bucket % self.plan.payers();
            let pending = worker.pending.borrow();
            let is_asker = |ticket: &Ticket| {
                pending
                    .get(ticket)
                    .and_then(|pending| pending.payment)
                    .is_some_and(|(other, _)| other == payer)
            };
            let ticket = match words[0] {
                b"EVALSHA" => worker.unsent.borrow_mut().pop_front().filter(is_asker),
                _ => stream.unknown.iter().position(is_asker).and_then(|place| stream.unknown.remove(place)),
            };
            let sequence = std::str::from_utf8(words[8]).ok().and_then(|text| text.parse().ok());
            match ticket.zip(sequence) {
                Some((ticket, sequence)) => drop(stream.tickets.insert(sequence, ticket)),
                None => self.fail(Some(payer), "Redis is asked for nobody who waits"),
            }
        }
    }

    /// How long bytes travel one way.
    fn delay_us(&self) -> u64 {
        let usual = 20 + self.below(self.plan.timeout_us / 8);
        usual + if self.faults.is_slow() { self.below(2 * self.plan.timeout_us) } else { 0 }
    }

    fn to_redis(&self, index: usize, id: u64) {
        let worker = self.worker(index);
        if !worker.has_stream(id) {
            return;
        }
        if self.faults.is_frozen() {
            return self.after(1_000, Event::ToRedis(index, id));
        }
        let mut input = {
            let mut stream = worker.stream.borrow_mut();
            let Some(stream) = stream.as_mut().filter(|stream| !stream.is_hole) else { return };
            let Some(bytes) = stream.to_redis.pop_front() else { return };
            stream.input.extend_from_slice(&bytes);
            std::mem::take(&mut stream.input)
        };
        let (mut replies, mut read, mut words) = (Vec::new(), 0, Vec::new());
        while let Some(length) = input.get(read..).and_then(|rest| parse_command(rest, &mut words)) {
            replies.push(self.execute(&worker, &words));
            words = Vec::new();
            read += length;
        }
        drop(words);
        input.drain(..read);
        let mut stream = worker.stream.borrow_mut();
        let Some(stream) = stream.as_mut() else { return };
        let mut out = self.spoil(replies, stream);
        stream.input = input;
        while !out.is_empty() {
            let length = if self.one_in(8) { 1 + self.below(out.len() as u64) as usize } else { out.len() };
            if length < out.len() {
                self.count(Happening::Fragmented);
            }
            let rest = out.split_off(length);
            stream.last_us.1 = stream.last_us.1.max(self.now_us.get() + self.delay_us());
            stream.from_redis.push_back(std::mem::replace(&mut out, rest));
            self.at(stream.last_us.1, Event::FromRedis(index, id));
        }
    }

    fn execute(&self, worker: &Worker, words: &[&[u8]]) -> Vec<u8> {
        if let Some(error) = self.faults.error() {
            return format!("-{error}\r\n").into_bytes();
        }
        let now_us = self.now_us.get();
        let (reply, done) = self.redis.borrow_mut().execute(words, now_us);
        match done {
            Done::Other => {
                if words[0] == b"SET" {
                    self.health_changed_us.set(now_us);
                }
            }
            Done::NoScript(sequence) => {
                self.count(Happening::NoScript);
                let ticket = self.asker(worker, sequence);
                if let (Some(ticket), Some(stream)) = (ticket, worker.stream.borrow_mut().as_mut()) {
                    stream.unknown.push_back(ticket);
                }
            }
            Done::Took(took) => self.took(worker, &took),
        }
        reply
    }

    /// Redis has decided: is that right, and for whom was it?
    fn took(&self, worker: &Worker, took: &Took) {
        let Some(bucket) = self.redis_buckets.get(&took.key).copied() else {
            if !took.key.ends_with(b"#probe") {
                self.fail(None, format!("nobody's bucket: {}", String::from_utf8_lossy(&took.key)));
            }
            return;
        };
        if took.has_expired {
            self.count(Happening::Expired);
        }
        let payer = bucket % self.plan.payers();
        let Some(ticket) = self.asker(worker, took.sequence) else {
            return self.fail(Some(payer), "Redis is asked for nobody");
        };
        let now_us = self.now_us.get();
        let redis_us = self.redis.borrow().clock_us(now_us);
        let (capacity, rate) = (took.limit.capacity(), took.limit.refill_micro_per_sec());
        let said = took.said;
        let left_pico = said.left_pico.unwrap_or_default();
        self.note(Some(payer), What::Took { admitted: said.admitted, left_pico, redis_us, capacity, rate });
        let fill = (took.was_absent, self.limits(worker).fill_us(payer));
        let judged = self.oracle.borrow_mut().redis(bucket, took.limit, (redis_us, now_us), fill, said);
        self.hold(payer, judged);
        if let Some(pending) = worker.pending.borrow_mut().get_mut(&ticket) {
            if pending.payment != Some((payer, took.limit)) {
                self.fail(Some(payer), format!("request {ticket} asks for {:?}", pending.payment));
            }
            pending.outcome = Some(said);
        }
    }

    /// Who asked a question; nobody where it is a probe's.
    fn asker(&self, worker: &Worker, sequence: u32) -> Option<Ticket> {
        worker.stream.borrow().as_ref().and_then(|stream| stream.tickets.get(&sequence).copied())
    }

    fn from_redis(&self, index: usize, id: u64) {
        let worker = self.worker(index);
        if !worker.has_stream(id) {
            return;
        }
        let bytes = worker.stream.borrow_mut().as_mut().and_then(|stream| stream.from_redis.pop_front());
        let Some(bytes) = bytes else { return };
        let clock_us = self.envoys[worker.envoy].clock_us(self.now_us.get());
        if let Some(fleet) = worker.limiter.borrow_mut().fleet() {
            fleet.received(&bytes, clock_us);
        }
        self.pump(index, &worker);
    }

    fn closed(&self, index: usize, id: u64) {
        let worker = self.worker(index);
        if !worker.has_stream(id) {
            return;
        }
        self.drop_stream(&worker);
        let clock_us = self.envoys[worker.envoy].clock_us(self.now_us.get());
        if let Some(fleet) = worker.limiter.borrow_mut().fleet() {
            fleet.closed("reset", clock_us);
        }
        self.pump(index, &worker);
    }

    /// A request is decided: in time, once, by whom it should be, and as the oracle says.
    #[allow(clippy::too_many_arguments, reason = "all of it is one decision")]
    fn decided(
        &self,
        index: usize,
        worker: &Worker,
        ticket: Ticket,
        pending: Pending,
        decision: Decision,
        host: &Host,
        has_waited: bool,
    ) {
        let waited_us = self.now_us.get() - pending.at_us;
        if waited_us > pending.timeout_us + self.quick_tick_us() + SLACK_US {
            self.fail(
                pending.payment.map(|(payer, _)| payer),
                format!("request {ticket} waited for {waited_us} µs"),
            );
        }
        self.tally.borrow_mut().operations += 1;
        let Some((payer, limit)) = pending.payment else {
            return self.posted(worker, &pending, &decision);
        };
        let health = self.envoys[worker.envoy].health.get();
        let (admitted, answer) = match decision {
            Decision::Admitted(answer) => (true, answer),
            Decision::Refused(answer) => (false, answer),
            Decision::Unavailable(answer) => {
                return self.fell_back(index, worker, payer, ticket, "deny", answer.verdict.is_some());
            }
            other => return self.fail(Some(payer), format!("request {ticket}: {other:?}")),
        };
        if !has_waited && answer.health != health {
            self.fail(Some(payer), format!("limited as {} while {health} holds in its Envoy", answer.health));
        }
        let Some(verdict) = answer.verdict else {
            return self.fell_back(index, worker, payer, ticket, "allow", !admitted);
        };
        if verdict.capacity != limit.capacity() {
            let (told, holds) = (verdict.capacity, limit.capacity());
            self.fail(Some(payer), format!("limited to {told}, where {holds} holds"));
        }
        let how = match (host.read_bucket.get(), has_waited) {
            (true, _) => {
                self.decided_locally(index, worker, ticket, (payer, limit), (admitted, &verdict), host)
            }
            (false, true) => self.decided_by_redis(&pending, (payer, limit), (admitted, &verdict), &answer),
            (false, false) => self.decided_unasked(worker, (payer, limit), admitted),
        };
        let envoy = worker.envoy;
        let left = verdict.remaining;
        self.note(Some(payer), What::Decided { envoy, worker: index, ticket, how, admitted, left });
        if admitted {
            self.count(Happening::Admitted);
        } else if verdict.wait_us < 20_000_000 && self.one_in(4) && !self.is_over() {
            self.after(
                (verdict.wait_us + self.below(3)).saturating_sub(1),
                Event::Return(envoy, pending.caller),
            );
        }
    }

    fn decided_locally(
        &self,
        index: usize,
        worker: &Worker,
        ticket: Ticket,
        (payer, limit): (usize, Limit),
        (admitted, verdict): (bool, &Verdict),
        host: &Host,
    ) -> &'static str {
        let left_pico = host.written_pico.get().filter(|_| admitted && payer < KEYS);
        let wait_us = Some(verdict.wait_us);
        let said = Said { admitted, left_pico, left: verdict.remaining, wait_us };
        let bucket = worker.envoy * self.plan.payers() + payer;
        let judged = self.oracle.borrow_mut().local(bucket, limit, host.clock_us.get(), said);
        self.hold(payer, judged);
        match self.plan.store {
            Store::SharedData => {
                if !admitted {
                    self.count(Happening::RefusedHere);
                }
                "shared data"
            }
            Store::Redis(_) => {
                self.fell_back(index, worker, payer, ticket, "local", false);
                "its Envoy, for want of Redis"
            }
        }
    }

    fn decided_by_redis(
        &self,
        pending: &Pending,
        (payer, limit): (usize, Limit),
        (admitted, verdict): (bool, &Verdict),
        answer: &Answer,
    ) -> &'static str {
        let Some(said) = pending.outcome else {
            self.fail(Some(payer), format!("answered without a store: {answer:?}"));
            return "nobody";
        };
        let pico = said.left_pico.unwrap_or_default();
        let target =
            if said.admitted { u64::from(limit.capacity()) * 1_000_000_000_000 } else { 1_000_000_000_000 };
        let wait_us = target.saturating_sub(pico).div_ceil(limit.refill_micro_per_sec());
        if (admitted, verdict.remaining, verdict.wait_us) != (said.admitted, said.left, wait_us) {
            self.fail(Some(payer), format!("Redis said {said:?}, and the caller was told {verdict:?}"));
        }
        if (verdict.outcome == Outcome::Admitted) != admitted {
            self.fail(Some(payer), "the verdict and the decision differ");
        }
        if !admitted {
            self.count(Happening::RefusedThere);
        }
        "Redis"
    }

    fn decided_unasked(
        &self,
        worker: &Worker,
        (payer, limit): (usize, Limit),
        admitted: bool,
    ) -> &'static str {
        if admitted {
            self.fail(Some(payer), "admitted without a store");
        }
        self.count(Happening::RefusedUnasked);
        let pays = |pending: &Pending| pending.payment.is_some_and(|(other, _)| other == payer);
        let is_asking = worker.pending.borrow().values().any(pays);
        let bucket = self.envoys[worker.envoy].namespace_index * self.plan.payers() + payer;
        let now_us = self.now_us.get();
        let times = (self.redis.borrow().clock_us(now_us), now_us);
        let patience_us = self.plan.timeout_us + self.quick_tick_us() + SLACK_US;
        let judged = self.oracle.borrow().denied(bucket, limit, times, is_asking, patience_us);
        self.hold(payer, judged);
        "what Redis said before"
    }

    /// `on_failure` has decided: only as configured, and only while Redis is not well.
    fn fell_back(
        &self,
        index: usize,
        worker: &Worker,
        payer: usize,
        ticket: Ticket,
        policy: &'static str,
        is_odd: bool,
    ) {
        if self.plan.store != Store::Redis(policy) || is_odd {
            self.fail(Some(payer), format!("request {ticket} at worker {index} was decided by {policy}"));
        }
        self.count(match policy {
            "local" => Happening::FallbackLocal,
            "allow" => Happening::FallbackAllow,
            _ => Happening::FallbackDeny,
        });
        let has_hole = worker.stream.borrow().as_ref().is_some_and(|stream| stream.is_hole);
        let well_us = self.faults.well_for_us(self.now_us.get());
        if !has_hole && well_us > RECOVERY_US + self.plan.timeout_us + SLACK_US {
            let well_s = well_us as f64 / 1e6;
            self.fail(
                Some(payer),
                format!("Redis was not asked, or not believed, although it is well for {well_s} s"),
            );
        }
    }

    fn posted(&self, worker: &Worker, pending: &Pending, decision: &Decision) {
        let Decision::Replied(reply) = decision else {
            return self.fail(None, format!("a change of health: {decision:?}"));
        };
        let health = self.envoys[worker.envoy].health.get();
        match reply.status {
            200 if pending.wanted == Some(health) => {}
            500 if self.plan.store != Store::SharedData => {}
            _ => self.fail(
                None,
                format!("{:?} was posted, {health} holds, and the reply is {reply:?}", pending.wanted),
            ),
        }
    }

    /// What Redis has said for a second, every Envoy knows, if Redis is well and nobody's breaker is open any more.
    fn check_health(&self, envoy: usize) {
        let quiet_us = HEALTH_US + self.plan.timeout_us + SLACK_US;
        let now_us = self.now_us.get();
        if self.plan.store == Store::SharedData
            || now_us < self.health_changed_us.get() + quiet_us
            || self.faults.well_for_us(now_us) < RECOVERY_US + quiet_us
            || self
                .workers
                .borrow()
                .iter()
                .any(|worker| worker.stream.borrow().as_ref().is_some_and(|stream| stream.is_hole))
        {
            return;
        }
        let Envoy { health, namespace_index, .. } = &self.envoys[envoy];
        if let Some(told) = self.redis.borrow_mut().text(health_key(*namespace_index))
            && told != health.get().name().as_bytes()
        {
            let told = String::from_utf8_lossy(&told);
            self.fail(
                None,
                format!("Redis says {told} for more than a second, and envoy {envoy} {}", health.get()),
            );
        }
    }
}

/// The key of a namespace's health in Redis.
pub fn health_key(namespace_index: usize) -> &'static [u8] {
    match namespace_index {
        0 => b"system:health:status",
        _ => b"system:health:other:status",
    }
}
