//! Envoys and their Redis, and what tests do with them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::generation::Role;
use dynamic_rate_limiter::headers::HeaderValues;
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limiter::{Limiter, LimiterOutput};
use dynamic_rate_limiter::metrics::StatUpdate;
use dynamic_rate_limiter::redis_limiter::RedisLimiter;
use dynamic_rate_limiter::request::{DecisionStart, RequestId};
use dynamic_rate_limiter::store::SharedData;
use dynamic_rate_limiter::store::redis::outbox::StreamAction;
use dynamic_rate_limiter::time::{UnixTime, WallClock};
use harness::fake_redis::ModelRedis;
use harness::fake_stream::FakeStream;
use harness::{FakeData, FakeRequest, SECOND, TOKEN, decide_at_once, limiter_with, replied};

use crate::MS;

/// The Unix time at the start of each test, in microseconds.
pub const UNIX_START: u64 = 1_700_000_000 * SECOND;

/// A worker: the number of its Envoy, and its own.
pub type Name = (usize, usize);

pub type Decisions = Vec<(RequestId, Decision)>;

/// A worker, the shared data of its Envoy, and its stream to Redis.
pub struct Worker {
    pub limiter: Limiter,
    pub data: Rc<FakeData>,
    pub stream: FakeStream,
    pub commands: usize,
}

pub struct World {
    pub redis: ModelRedis,
    pub envoys: Vec<Rc<FakeData>>,
    pub workers: BTreeMap<Name, Worker>,
    last_id: RequestId,
    /// Whether connections are refused.
    pub is_down: bool,
    /// Whether replies are held back.
    pub is_frozen: bool,
}

impl World {
    /// This number of Envoys, with this number of workers each. `json` is the configuration without the store.
    pub fn new(envoys: usize, workers: usize, json: &str) -> Self {
        Self::with_store(envoys, workers, r#""cluster": "redis""#, json)
    }

    /// The same with these fields of the store.
    pub fn with_store(envoys: usize, workers: usize, store: &str, json: &str) -> Self {
        let comma = if json.is_empty() { "" } else { ", " };
        let json = format!(r#"{{"store": {{"kind": "redis", {store}}}{comma}{json}}}"#);
        let at = |envoy| Rc::new(FakeData::at((1 + 1_000 * envoy as u64) * SECOND));
        let envoys: Vec<_> = (0..envoys).map(at).collect();
        let names = (0..envoys.len()).flat_map(|envoy| (0..workers).map(move |worker| (envoy, worker)));
        Self {
            redis: ModelRedis::at(UNIX_START),
            workers: names
                .map(|name| (name, Worker::new(&envoys[name.0], &json, name.1 as u64 + 1)))
                .collect(),
            envoys,
            last_id: 0,
            is_down: false,
            is_frozen: false,
        }
    }

    pub fn worker(&mut self, name: Name) -> &mut Worker {
        self.workers.get_mut(&name).expect("a worker")
    }

    pub fn names(&self) -> Vec<Name> {
        self.workers.keys().copied().collect()
    }

    pub fn advance(&mut self, us: u64) {
        self.redis.now_us += us;
        self.envoys.iter().for_each(|data| data.advance(us));
    }

    /// Advances the time, with a tick of every worker each millisecond, as while a request waits.
    pub fn run(&mut self, us: u64) -> Decisions {
        let mut decisions = Vec::new();
        for _ in 0..us / MS {
            self.advance(MS);
            self.names().into_iter().for_each(|name| decisions.extend(self.tick(name)));
        }
        decisions
    }

    pub fn tick(&mut self, name: Name) -> Decisions {
        let Worker { limiter, data, .. } = self.worker(name);
        limiter.handle_timeout(data.now(), Role::Newest, &**data);
        self.exchange(name)
    }

    /// Exchanges commands and replies until there are no more; returns the decisions.
    pub fn exchange(&mut self, name: Name) -> Decisions {
        let Self { redis, workers, is_down, is_frozen, .. } = self;
        let Worker { limiter, data, stream, commands } = workers.get_mut(&name).expect("a worker");
        let mut decisions = Vec::new();
        loop {
            match limiter.poll_output(data.now(), &**data) {
                Some(LimiterOutput::Decided(id, decision)) => decisions.push((id, decision)),
                Some(LimiterOutput::Stream(StreamAction::Open)) if *is_down => {
                    stream.close();
                    limiter.handle_close("refused", data.now());
                }
                Some(LimiterOutput::Stream(action)) => *commands += stream.carry_out(action, redis),
                None if limiter.redis().is_some_and(RedisLimiter::has_output) => limiter.flush(),
                None if !*is_frozen && !stream.replies.is_empty() => {
                    limiter.handle_input(&stream.take_replies(), data.now());
                }
                None => return decisions,
            }
        }
    }

    /// The immediate decision about a request.
    pub fn decide(&mut self, name: Name, request: &FakeRequest) -> (RequestId, Decision) {
        self.last_id += 1;
        let id = self.last_id;
        let Worker { limiter, data, .. } = self.worker(name);
        // Tests publish documents themselves; no request waits for them.
        (id, decide_at_once(limiter, &**data, request, DecisionStart { id, at: data.now() }))
    }

    /// Starts a request that waits for Redis.
    #[track_caller]
    pub fn start(&mut self, name: Name, request: &FakeRequest) -> RequestId {
        let (id, decision) = self.decide(name, request);
        assert_eq!(kind(&decision), "AwaitsRedis");
        id
    }

    pub fn decided(&mut self, name: Name, request: &FakeRequest) -> String {
        kind(&self.decide(name, request).1)
    }

    /// The final decision about a request.
    pub fn decide_with_redis(&mut self, name: Name, request: &FakeRequest) -> Decision {
        let decided = self.decide(name, request);
        self.finish(name, decided)
    }

    fn finish(&mut self, name: Name, decided: (RequestId, Decision)) -> Decision {
        match decided {
            (id, Decision::AwaitsRedis(_)) => only(self.exchange(name), id),
            (_, decision) => decision,
        }
    }

    /// Starts a change of health.
    pub fn start_post(&mut self, name: Name, body: &str) -> (RequestId, Decision) {
        let request = FakeRequest::post("/system/health").with("x-admin-token", TOKEN);
        let (id, decision) = self.decide(name, &request);
        let Decision::AwaitsBody(pending) = decision else { panic!("the token is good: {decision:?}") };
        let Worker { limiter, data, .. } = self.worker(name);
        let start = DecisionStart { id, at: data.now() };
        (id, limiter.change_health(&pending, body.as_bytes(), &**data, start))
    }

    pub fn post(&mut self, name: Name, health: &str) -> (u32, String) {
        let decided = self.start_post(name, &format!(r#"{{"status": "{health}"}}"#));
        replied(self.finish(name, decided))
    }

    pub fn get(&mut self, name: Name, path: &str) -> String {
        replied(self.decide_with_redis(name, &FakeRequest::get(path))).1
    }

    /// Asserts the health that a worker's next request sees.
    #[track_caller]
    pub fn assert_health(&mut self, name: Name, wanted: Health) {
        let body = self.get(name, "/system/health");
        assert!(body.contains(&format!(r#""health":"{}""#, wanted.name())), "{name:?}: {body}");
    }

    #[track_caller]
    pub fn assert_health_everywhere(&mut self, wanted: Health) {
        self.names().into_iter().for_each(|name| self.assert_health(name, wanted));
    }

    /// Closes the connection of every worker, and refuses new ones.
    pub fn go_down(&mut self) {
        self.is_down = true;
        for worker in self.workers.values_mut().filter(|worker| worker.stream.is_open()) {
            worker.stream.close();
            worker.limiter.handle_close("reset by peer", worker.data.now());
        }
    }

    /// Asserts that this was counted or shown since the last call.
    #[track_caller]
    pub fn assert_update(&mut self, name: Name, wanted: StatUpdate) {
        let updates = self.worker(name).limiter.drain_metrics();
        assert!(updates.contains(&wanted), "{wanted:?}: {updates:?}");
    }

    /// The response headers.
    pub fn headers(&mut self, name: Name, decision: &Decision) -> Vec<String> {
        harness::headers(&self.worker(name).limiter, answer(decision), Duration::ZERO)
    }
}

impl Worker {
    fn new(data: &Rc<FakeData>, json: &str, random: u64) -> Self {
        let mut limiter = limiter_with(data, json, (random << 32, 0x5eed));
        limiter.set_wall_clock(WallClock::new(UnixTime::from_micros(UNIX_START), data.now()));
        Self { limiter, data: Rc::clone(data), stream: FakeStream::default(), commands: 0 }
    }
}

/// The name of a decision, without its details.
pub fn kind(decision: &Decision) -> String {
    let shown = format!("{decision:?}");
    shown.split('(').next().unwrap_or_default().to_owned()
}

/// The decision about this request.
pub fn only(decisions: Decisions, id: RequestId) -> Decision {
    let found = decisions.into_iter().find(|(decided, _)| *decided == id);
    found.expect("a decision about the request").1
}

/// What the response reports of a bucket.
pub fn answer(decision: &Decision) -> &HeaderValues {
    match decision {
        Decision::Admitted(answer) | Decision::Rejected(answer) => answer,
        other => panic!("neither admitted nor rejected: {other:?}"),
    }
}
