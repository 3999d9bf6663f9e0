//! Shared data with the host's semantics and a virtual clock, a limiter on it, and requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use dynamic_rate_limiter::admission::{Decider, Decision, Screening};
use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::headers::{HeaderValues, write_headers};
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::request::{DecisionStart, Request};
use dynamic_rate_limiter::store::{Conflict, SharedData};
use dynamic_rate_limiter::time::StoreTime;

pub const SECOND: u64 = 1_000_000;

/// The start of a decision at time 0, for tests in which its time does not matter.
pub const START: DecisionStart = DecisionStart { id: 1, at: StoreTime::from_micros(0) };

type Act = Box<dyn FnOnce(&FakeData)>;

/// Shared data as Envoy keeps it, with a virtual clock.
#[derive(Default)]
pub struct FakeData {
    records: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    last_version: Cell<u32>,
    now_us: Cell<u64>,
    before_next_write: RefCell<Option<Act>>,
    refuse_writes: Cell<bool>,
    refused_key: RefCell<Option<String>>,
    changes: Cell<u64>,
    cannot_count_changes: Cell<bool>,
    reads: Cell<u32>,
    writes: Cell<u32>,
}

impl FakeData {
    pub fn at(now_us: u64) -> Self {
        let data = Self::default();
        data.now_us.set(now_us);
        data
    }

    pub fn set_time(&self, now_us: u64) {
        self.now_us.set(now_us);
    }

    pub fn advance(&self, us: u64) {
        self.now_us.set(self.now_us.get() + us);
    }

    /// Lets another worker act between the next read and its write.
    pub fn before_next_write(&self, act: impl FnOnce(&FakeData) + 'static) {
        *self.before_next_write.borrow_mut() = Some(Box::new(act));
    }

    /// Every later write loses its race.
    pub fn refuse_writes(&self) {
        self.refuse_writes.set(true);
    }

    /// Later writes to this key lose their race, if there is one.
    pub fn refuse_writes_to(&self, key: Option<&str>) {
        *self.refused_key.borrow_mut() = key.map(str::to_owned);
    }

    /// The count of announced changes is no longer available.
    pub fn lose_announcements(&self) {
        self.cannot_count_changes.set(true);
    }

    pub fn put(&self, key: &str, value: &[u8]) {
        self.records.borrow_mut().insert(key.to_owned(), (value.to_vec(), self.next_version()));
    }

    pub fn keys(&self) -> Vec<String> {
        self.records.borrow().keys().cloned().collect()
    }

    pub fn size(&self) -> usize {
        self.records.borrow().values().map(|(value, _)| value.len()).sum()
    }

    /// Reads and writes since the last call.
    pub fn take_calls(&self) -> (u32, u32) {
        (self.reads.take(), self.writes.take())
    }

    fn next_version(&self) -> u32 {
        self.last_version.set(self.last_version.get() + 1);
        self.last_version.get()
    }
}

impl SharedData for FakeData {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.reads.set(self.reads.get() + 1);
        self.records.borrow().get(key).cloned()
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        self.writes.set(self.writes.get() + 1);
        let act = self.before_next_write.borrow_mut().take();
        if let Some(act) = act {
            act(self);
        }
        let stored = self.records.borrow().get(key).map(|(_, version)| *version);
        let is_refused = self.refuse_writes.get() || self.refused_key.borrow().as_deref() == Some(key);
        if stored != version || is_refused {
            return Err(Conflict);
        }
        self.put(key, value);
        Ok(())
    }

    fn changes(&self) -> Option<u64> {
        (!self.cannot_count_changes.get()).then(|| self.changes.get())
    }

    fn announce_change(&self) {
        self.changes.set(self.changes.get() + 1);
    }

    fn now(&self) -> StoreTime {
        StoreTime::from_micros(self.now_us.get())
    }
}

/// A request in a test.
#[derive(Clone, Debug, Default)]
pub struct FakeRequest {
    pub path: Vec<u8>,
    pub method: Vec<u8>,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    pub source: Vec<u8>,
}

impl FakeRequest {
    pub fn get(path: &str) -> Self {
        Self {
            path: path.into(),
            method: "GET".into(),
            headers: Vec::new(),
            source: "192.0.2.1:40000".into(),
        }
    }

    pub fn post(path: &str) -> Self {
        Self { method: "POST".into(), ..Self::get(path) }
    }

    pub fn with(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name, value.as_ref().to_vec()));
        self
    }

    pub fn from(mut self, source: &str) -> Self {
        self.source = source.into();
        self
    }
}

/// A request with this API key.
pub fn keyed(key: impl AsRef<[u8]>) -> FakeRequest {
    FakeRequest::get("/").with("x-api-key", key)
}

impl Request for FakeRequest {
    fn header(&self, name: &str) -> Option<Vec<u8>> {
        match name {
            ":path" => Some(self.path.clone()),
            ":method" => Some(self.method.clone()),
            _ => self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()),
        }
    }

    fn source_address(&self) -> Option<Vec<u8>> {
        Some(self.source.clone())
    }
}

/// A limit in tokens and millionths of a token per second.
pub fn limit(capacity: u32, refill_micro_per_sec: u64) -> Limit {
    Limit::new(capacity, refill_micro_per_sec).expect("a limit in range")
}

/// The definition of a token bucket in the specification: a request may be admitted if, over every interval that ends
/// with it, admitted ≤ capacity + rate × elapsed. Elapsed time is the gain of the clock; a step back counts as nothing.
pub struct IntervalOracle {
    limit: Limit,
    clock_us: Option<u64>,
    elapsed_us: u128,
    admitted_at_us: Vec<u128>,
}

impl IntervalOracle {
    pub fn new(limit: Limit) -> Self {
        Self { limit, clock_us: None, elapsed_us: 0, admitted_at_us: Vec::new() }
    }

    /// Whether one more request at `now_us` keeps every interval within its bound.
    pub fn may_admit(&mut self, now_us: u64) -> bool {
        let gained_us = self.clock_us.map_or(0, |clock_us| now_us.saturating_sub(clock_us));
        self.clock_us = Some(now_us);
        self.elapsed_us += u128::from(gained_us);
        let (capacity, rate) =
            (u128::from(self.limit.capacity()), u128::from(self.limit.refill_micro_per_sec()));
        let pico_per_token = 1_000_000_000_000_u128;
        // The interval that starts with the n-th last admission holds n of them and this one.
        let is_within = |(earlier, start_us): (usize, &u128)| {
            let bound = capacity * pico_per_token + (self.elapsed_us - start_us) * rate;
            (earlier as u128 + 2) * pico_per_token <= bound
        };
        capacity > 0 && self.admitted_at_us.iter().rev().enumerate().all(is_within)
    }

    pub fn admit(&mut self) {
        self.admitted_at_us.push(self.elapsed_us);
    }
}

/// The token that [`limiter`] knows.
pub const TOKEN: &str = "the admin token";

pub fn limiter(data: &FakeData, json: &str) -> Limiter {
    let environment = Environment { admin_token: Some(TOKEN.into()), ..Environment::default() };
    let plugin = PluginConfig::parse(json.as_bytes(), &environment).expect("a good configuration");
    Limiter::new(plugin, data, (1, 2)).expect("a limiter")
}

/// Decides about a request as a worker without overload control does; the request may wait for documents.
pub fn decide(
    limiter: &mut Limiter,
    data: &impl SharedData,
    request: &impl Request,
    start: DecisionStart,
) -> Decision {
    decide_with(limiter.decider(data), request, start, true)
}

/// The same for a request that does not wait for documents.
pub fn decide_at_once(
    limiter: &mut Limiter,
    data: &impl SharedData,
    request: &impl Request,
    start: DecisionStart,
) -> Decision {
    decide_with(limiter.decider(data), request, start, false)
}

fn decide_with<D: SharedData>(
    mut decider: Decider<'_, D>,
    request: &impl Request,
    start: DecisionStart,
    may_wait: bool,
) -> Decision {
    match decider.screen(request, start.at, may_wait) {
        Screening::Decided(decision) => decision,
        Screening::Undecided(limited) => decider.charge(&limited, start),
    }
}

pub fn answer(limiter: &mut Limiter, data: &FakeData, request: &FakeRequest) -> HeaderValues {
    match decide(limiter, data, request, START) {
        Decision::Admitted(answer) | Decision::Rejected(answer) => answer,
        other => panic!("not limited: {other:?}"),
    }
}

/// Status and body of a reply by the limiter itself.
#[track_caller]
pub fn replied(decision: Decision) -> (u32, String) {
    match decision {
        Decision::Replied(reply) => (reply.status, reply.body),
        other => panic!("not replied: {other:?}"),
    }
}

/// Tier, and whole tokens left.
pub fn counted(limiter: &mut Limiter, data: &FakeData, request: &FakeRequest) -> (String, Option<u32>) {
    let answer = answer(limiter, data, request);
    (answer.tier.name.clone(), answer.verdict.map(|verdict| verdict.remaining))
}

/// The response headers as `name: value`, for a request that took this long.
pub fn headers(limiter: &Limiter, answer: &HeaderValues, processing: Duration) -> Vec<String> {
    let mut lines = Vec::new();
    let groups = limiter.config().settings.headers;
    write_headers(answer, groups, limiter.wall_clock(), processing, |name, value| {
        lines.push(format!("{name}: {}", String::from_utf8_lossy(value)));
    });
    lines
}
