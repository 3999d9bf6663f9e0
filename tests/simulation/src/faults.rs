//! Random faults and actions of operators.

use std::cell::Cell;
use std::rc::Rc;

use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::documents::Fetched;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::time::{UnixTime, WallClock};
use harness::fake_redis::READ_ONLY;

use crate::report::{Happening, What};
use crate::shared_data::Host;
use crate::worker::{Stream, Worker};
use crate::workload::{Limits, Store};
use crate::world::{Event, MAX_DEPTH, World, health_key};

/// The start of every wall clock, in Unix microseconds.
const UNIX_US: u64 = 1_700_000_000_000_000;

const ANYWHERE: [Happening; 6] = [
    Happening::WallClock,
    Happening::Trap,
    Happening::Reload,
    Happening::Documents,
    Happening::BadConfig,
    Happening::HealthPost,
];

const WITH_REDIS: [Happening; 15] = [
    Happening::Frozen,
    Happening::Slow,
    Happening::Down,
    Happening::Error,
    Happening::Garbage,
    Happening::OneOff,
    Happening::Hole,
    Happening::Reset,
    Happening::ScriptFlush,
    Happening::RestartEmpty,
    Happening::RestartKept,
    Happening::Failover,
    Happening::ClockForward,
    Happening::ClockBack,
    Happening::HealthInRedis,
];

/// Error replies of Redis and of Envoy's `redis_proxy`, without the dash.
const ERRORS: [&str; 7] = [
    "LOADING Redis is loading the dataset in memory",
    READ_ONLY,
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOAUTH Authentication required.",
    "MOVED 3999 127.0.0.1:6381",
    "ERR unknown",
    "upstream failure",
];

/// Replies that no command can have.
const JUNK: [&[u8]; 6] =
    [b"+OK\r\n", b":1\r\n", b"*1\r\n$1\r\na\r\n", b"\0\xff", b"HTTP/1.1 400\r\n\r\n", b"$9\r\nsomething\r\n"];

#[derive(Default)]
pub struct Faults {
    lasting: Cell<Option<Happening>>,
    error: Cell<&'static str>,
    last_us: Cell<Option<u64>>,
    /// Whether documents were published, for each Envoy.
    published: Cell<[bool; 4]>,
}

impl Faults {
    pub fn lasts(&self, kind: Happening) -> bool {
        self.lasting.get() == Some(kind)
    }

    pub fn error(&self) -> Option<&'static str> {
        self.lasts(Happening::Error).then(|| self.error.get())
    }

    /// A fault lasted until now.
    pub fn touch(&self, now_us: u64) {
        self.last_us.set(Some(now_us));
    }

    pub fn healthy_for_us(&self, now_us: u64) -> u64 {
        match (self.lasting.get(), self.last_us.get()) {
            (Some(_), _) => 0,
            (None, None) => u64::MAX,
            (None, Some(last_us)) => now_us - last_us,
        }
    }
}

impl World {
    /// Starts one fault, or one action of an operator.
    pub fn fault(&self) {
        self.after(1 + self.below(2 * self.plan.fault_gap_us), Event::Fault);
        let with_redis = self.plan.store != Store::SharedData;
        if with_redis && self.one_in(2) {
            self.redis.borrow_mut().replicate();
            self.oracle.borrow_mut().replicate();
        }
        let kinds = if with_redis { ANYWHERE.len() + WITH_REDIS.len() } else { ANYWHERE.len() };
        let kind = self.below(kinds as u64) as usize;
        let kind = ANYWHERE.into_iter().chain(WITH_REDIS).nth(kind).expect("one of them");
        let is_busy = self.faults.lasting.get().is_some();
        let is_lasting = kind <= Happening::OneOff && kind >= Happening::Frozen;
        if is_lasting && is_busy || kind == Happening::Failover && !self.redis.borrow().has_replica() {
            return;
        }
        self.note(None, What::Happened(kind));
        if is_lasting {
            self.begin(kind);
        } else if !self.act(kind) {
            return;
        }
        self.count(kind);
    }

    fn begin(&self, kind: Happening) {
        self.faults.lasting.set(Some(kind));
        self.faults.error.set(ERRORS[self.below(ERRORS.len() as u64) as usize]);
        if kind == Happening::Down {
            self.reset_all();
        }
        let longest_us = if self.one_in(2) { 100_000 } else { 4_000_000 };
        self.after(1_000 + self.below(longest_us), Event::FaultEnds);
    }

    pub fn end_fault(&self) {
        if let Some(kind) = self.faults.lasting.take() {
            self.faults.touch(self.now_us.get());
            self.note(None, What::Ended(kind));
        }
    }

    /// Runs an immediate action; false if it is not possible.
    fn act(&self, kind: Happening) -> bool {
        let now_us = self.now_us.get();
        let Some(worker) = self.any_worker() else { return false };
        let Worker { index, envoy, .. } = *worker;
        let health = if self.one_in(2) { Health::Degraded } else { Health::Normal };
        // Requests in flight during a change find the most bugs.
        for _ in 0..self.below(6) {
            self.request_of_any_caller(&worker, 0);
        }
        match kind {
            Happening::Hole => {
                let mut stream = worker.stream.borrow_mut();
                let Some(stream) = stream.as_mut() else { return false };
                stream.is_hole = true;
                self.faults.touch(now_us);
            }
            Happening::Reset => {
                let Some(id) = worker.stream.borrow().as_ref().map(|stream| stream.id) else { return false };
                self.after(0, Event::Closed(index, id));
                self.faults.touch(now_us);
            }
            Happening::ScriptFlush => {
                self.redis.borrow_mut().flush_script();
                self.reset(|stream| stream.is_out_of_step, 1);
            }
            Happening::RestartKept => {
                self.redis.borrow_mut().flush_script();
                self.reset_all();
            }
            Happening::RestartEmpty => {
                self.redis.borrow_mut().lose_all();
                self.oracle.borrow_mut().lose_all(now_us);
                self.health_changed_us.set(now_us);
                self.reset_all();
            }
            Happening::Failover => {
                self.redis.borrow_mut().fail_over();
                self.oracle.borrow_mut().fail_over(now_us);
                self.health_changed_us.set(now_us);
                self.reset_all();
            }
            Happening::ClockForward | Happening::ClockBack => {
                let is_forward = kind == Happening::ClockForward;
                let longest_us = if self.one_in(2) { 50_000 } else { 100_000_000 };
                self.redis.borrow_mut().step_clock(is_forward, self.below(longest_us));
                self.oracle.borrow_mut().disturb_all(now_us);
            }
            Happening::WallClock => {
                let unix = UnixTime::from_micros(UNIX_US + self.below(UNIX_US));
                let wall_clock = WallClock::new(unix, self.envoys[envoy].clock(now_us));
                worker.limiter.borrow_mut().set_wall_clock(wall_clock);
            }
            Happening::Trap => {
                self.let_go(&worker);
                self.start_worker(envoy);
            }
            Happening::Reload => self.reload(envoy),
            Happening::Documents if !self.plan.by_documents => return false,
            Happening::Documents => {
                let limits = self.next_limits(envoy);
                self.publish(&worker, limits.document());
                *self.envoys[envoy].limits.borrow_mut() = Rc::new(limits);
                let mut published = self.faults.published.get();
                published[envoy] = true;
                self.faults.published.set(published);
            }
            Happening::BadConfig => {
                let json = r#"{"tiers": {"t0": {"base": {"capacity": -1, "refill_rate": 1}}}}"#;
                if PluginConfig::parse(json.as_bytes(), &Environment::default()).is_ok() {
                    self.fail(None, "a bad configuration is taken");
                }
                if self.plan.by_documents {
                    self.publish(&worker, json.to_owned());
                }
            }
            Happening::HealthPost => self.post_health(&worker, health),
            Happening::HealthInRedis => {
                let key = health_key(self.envoys[envoy].namespace_index);
                self.redis.borrow_mut().set_text(key, health.name());
                self.health_changed_us.set(now_us);
            }
            _ => return false,
        }
        true
    }

    fn next_limits(&self, envoy: usize) -> Limits {
        let previous = self.envoys[envoy].limits.borrow().clone();
        Limits::draw(&mut self.random.borrow_mut(), &self.plan, Some(&previous))
    }

    /// Envoy delivers a new plugin configuration: it makes new limiters, while requests of the old ones still wait.
    fn reload(&self, envoy: usize) {
        let limits = Rc::new(self.next_limits(envoy));
        *self.envoys[envoy].delivered.borrow_mut() = limits.clone();
        if !self.faults.published.get()[envoy] {
            *self.envoys[envoy].limits.borrow_mut() = limits;
        }
        let old: Vec<_> =
            self.workers.borrow().iter().filter(|worker| worker.envoy == envoy).cloned().collect();
        for worker in old.iter().filter(|worker| worker.accepts.replace(false)) {
            if worker.pending.borrow().is_empty() {
                self.let_go(worker);
            }
        }
        (0..self.plan.workers).for_each(|_| self.start_worker(envoy));
    }

    fn publish(&self, worker: &Worker, tiers: String) {
        // No other worker acts meanwhile: the limits are known again when the publication has ended.
        let host = Host::new(self, worker.envoy, MAX_DEPTH);
        let mut limiter = worker.limiter.borrow_mut();
        let fetched = Fetched { tiers: Some(Ok(tiers.into_bytes())), api_keys: None };
        limiter.begin_publication(fetched, &host);
        limiter.publish(&host);
        assert!(!limiter.is_publishing(), "a document of a few tiers is one slice");
    }

    /// Closes all connections, those out of step at once.
    fn reset_all(&self) {
        self.reset(|stream| stream.is_out_of_step, 1);
        self.reset(|stream| !stream.is_out_of_step, 1_000);
    }

    fn reset(&self, which: impl Fn(&Stream) -> bool, within_us: u64) {
        for worker in self.workers.borrow().iter() {
            if let Some(stream) = worker.stream.borrow().as_ref().filter(|stream| which(stream)) {
                self.faults.touch(self.now_us.get());
                self.after(self.below(within_us), Event::Closed(worker.index, stream.id));
            }
        }
    }

    /// The bytes of Redis' replies, with faults.
    pub fn spoil(&self, mut replies: Vec<Vec<u8>>, stream: &mut Stream) -> Vec<u8> {
        let knows_script = self.redis.borrow().knows_script;
        if !replies.is_empty() && self.one_in(4) {
            let index = self.below(replies.len() as u64) as usize;
            match self.faults.lasting.get() {
                Some(Happening::Garbage) => {
                    replies.insert(index, JUNK[self.below(JUNK.len() as u64) as usize].to_vec());
                }
                // Error replies have no sequence number, so the session cannot detect a wrong order.
                Some(Happening::OneOff) if replies[index].starts_with(b"-") || !knows_script => {}
                Some(Happening::OneOff) => {
                    stream.is_out_of_step = true;
                    match self.one_in(2) {
                        true => drop(replies.remove(index)),
                        false => replies.insert(index, replies[index].clone()),
                    }
                }
                _ => {}
            }
        }
        replies.concat()
    }
}
