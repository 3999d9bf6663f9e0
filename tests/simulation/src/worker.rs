//! An Envoy's namespace, one of its workers, and the worker's stream to Redis.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::request::RequestId;
use dynamic_rate_limiter::store::redis::reply_clock::{ReplyClock, TIMER_RESOLUTION};
use dynamic_rate_limiter::tier::Limit;
use dynamic_rate_limiter::time::{StoreTime, whole_micros};

use crate::oracle::Said;
use crate::shared_data::{Host, SharedMap};
use crate::workload::{Caller, Limits, TOKEN};

/// The limiters of one namespace in one Envoy process.
pub struct Envoy {
    /// The process' map; two namespaces may share one.
    pub map: Rc<SharedMap>,
    /// Its monotonic clock when the world began.
    pub epoch_us: u64,
    /// What its configuration says.
    pub namespace: &'static str,
    /// The same as a number.
    pub namespace_index: usize,
    /// What holds at its next request.
    pub health: Cell<Health>,
    /// What holds at its next request, where all workers have the same.
    pub limits: RefCell<Rc<Limits>>,
    /// What its plugin configuration says.
    pub delivered: RefCell<Rc<Limits>>,
}

impl Envoy {
    /// Its monotonic clock.
    pub fn clock_us(&self, now_us: u64) -> u64 {
        self.epoch_us + now_us
    }

    /// The same as the limiter takes it.
    pub fn clock(&self, now_us: u64) -> StoreTime {
        StoreTime::from_micros(self.clock_us(now_us))
    }
}

/// A request that waits.
pub struct Pending {
    /// Who pays, or nobody for a change of health.
    pub payment: Option<(usize, Limit)>,
    /// The limit of the same bucket at the other health.
    pub other_limit: Option<Limit>,
    /// The health that a change asks for.
    pub wanted: Option<Health>,
    /// Who asks.
    pub caller: Caller,
    /// When it came in.
    pub at_us: u64,
    /// When its command was sent, if it was.
    pub sent_us: Option<u64>,
    /// How long it may wait.
    pub timeout_us: u64,
    /// How late its worker had been in all when it came in.
    pub late_us: u64,
    /// What Redis did for it.
    pub outcome: Option<Said>,
}

/// One VM.
pub struct Worker {
    /// Its Envoy.
    pub envoy: usize,
    /// Whether it gets requests: not once it was replaced.
    pub accepts: Cell<bool>,
    /// Whether it is gone.
    pub is_gone: Cell<bool>,
    /// The thing itself.
    pub limiter: RefCell<Limiter>,
    /// The limits it was configured with.
    pub delivered: Rc<Limits>,
    /// Its stream.
    pub stream: RefCell<Option<Stream>>,
    /// Who waits.
    pub pending: RefCell<BTreeMap<RequestId, Pending>>,
    /// Who waits and whose question has not gone out.
    pub unsent: RefCell<VecDeque<RequestId>>,
    /// When the last question of a request went out.
    pub last_sent_us: Cell<u64>,
    /// Whether a turn is on its way.
    pub is_awake: Cell<bool>,
    /// When the next tick is due.
    pub tick_us: Cell<u64>,
    /// Until when it does something else.
    pub busy_until_us: Cell<u64>,
    /// How late it has been in all.
    pub late_us: Cell<u64>,
    /// How often it looks whether Redis has replied in time.
    pub check_interval_us: u64,
    /// Since when it has been giving out decisions, if it is.
    pub pumps_since_us: Cell<Option<u64>>,
}

impl Worker {
    /// A VM with a configuration.
    pub fn new(envoy: usize, json: &str, delivered: Rc<Limits>, host: &Host, random: u64) -> Self {
        let environment = Environment { admin_token: Some(TOKEN.into()), ..Environment::default() };
        let plugin = PluginConfig::parse(json.as_bytes(), &environment).expect("a good configuration");
        let limiter = Limiter::new(plugin, host, (random, 0x5eed)).expect("a limiter");
        let redis = limiter.config().settings.redis.as_ref();
        let timeout = redis.map(|redis| Duration::from_millis(redis.timeout_ms.into()));
        let check_interval = timeout.map_or(Duration::ZERO, |timeout| ReplyClock::new(timeout).interval());
        Self {
            envoy,
            accepts: Cell::new(true),
            is_gone: Cell::new(false),
            limiter: RefCell::new(limiter),
            delivered,
            stream: RefCell::default(),
            pending: RefCell::default(),
            unsent: RefCell::default(),
            last_sent_us: Cell::default(),
            is_awake: Cell::new(false),
            tick_us: Cell::new(u64::MAX),
            busy_until_us: Cell::default(),
            late_us: Cell::default(),
            check_interval_us: whole_micros(check_interval),
            pumps_since_us: Cell::default(),
        }
    }

    /// It has been late by so much. A delay that shows that it was busy costs Redis none of its time.
    pub fn delay(&self, us: u64) {
        let withheld_us = if us > whole_micros(TIMER_RESOLUTION) { self.check_interval_us } else { 0 };
        self.late_us.set(self.late_us.get() + us + withheld_us);
    }

    /// The same with a tick that is overdue, and with the decisions that this one has waited for.
    pub fn late_us_now(&self, now_us: u64) -> u64 {
        let overdue_us = now_us.saturating_sub(self.tick_us.get());
        self.late_us.get() + overdue_us.max(now_us - self.pumps_since_us.get().unwrap_or(now_us))
    }

    /// Whether the stream of that number is still the one it uses.
    pub fn has_stream(&self, id: u64) -> bool {
        self.stream.borrow().as_ref().is_some_and(|stream| stream.id == id)
    }
}

/// A connection through Envoy to Redis. Bytes stay in order; how long they take is drawn for each delivery.
#[derive(Default)]
pub struct Stream {
    /// Its number.
    pub id: u64,
    /// Whether nobody listens at its other end.
    pub is_refused: bool,
    /// Whether its bytes are lost.
    pub is_hole: bool,
    /// Whether a reply was lost or doubled.
    pub is_out_of_step: bool,
    /// On their way.
    pub to_redis: VecDeque<Vec<u8>>,
    /// On their way back.
    pub from_redis: VecDeque<Vec<u8>>,
    /// When the last of them arrive.
    pub last_us: (u64, u64),
    /// What of a command has arrived.
    pub input: Vec<u8>,
    /// Whose question each number is.
    pub request_ids: HashMap<u32, RequestId>,
    /// Those who have to ask again with the script's text.
    pub unknown: VecDeque<RequestId>,
}
