//! An Envoy's namespace, one of its workers, and the worker's stream to Redis.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::health::Health;
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::request::RequestId;
use dynamic_rate_limiter::store::redis::reply_clock::{ReplyClock, TIMER_RESOLUTION};
use dynamic_rate_limiter::time::{StoreTime, whole_micros};
use harness::FakeData;

use crate::oracle::Said;
use crate::shared_data::Host;
use crate::workload::{Caller, Limits, TOKEN};

/// The limiters of one namespace in one Envoy process.
pub struct Envoy {
    /// The shared data of the process; two namespaces may share it.
    pub map: Rc<FakeData>,
    /// Its monotonic clock when the world began.
    pub epoch_us: u64,
    pub namespace: &'static str,
    pub namespace_index: usize,
    pub health: Cell<Health>,
    /// The limits at its next request, if they are the same in all workers.
    pub limits: RefCell<Rc<Limits>>,
    /// The limits of its plugin configuration.
    pub delivered: RefCell<Rc<Limits>>,
}

impl Envoy {
    pub fn clock_us(&self, now_us: u64) -> u64 {
        self.epoch_us + now_us
    }

    pub fn clock(&self, now_us: u64) -> StoreTime {
        StoreTime::from_micros(self.clock_us(now_us))
    }
}

#[derive(Default)]
pub struct Pending {
    pub id: RequestId,
    /// The owner; `None` for a change of health.
    pub payment: Option<(usize, Limit)>,
    /// The limit of the same bucket at the other health.
    pub other_limit: Option<Limit>,
    /// The health that a change sets.
    pub wanted: Option<Health>,
    pub caller: Caller,
    /// The time of its arrival.
    pub at_us: u64,
    pub sent_us: Option<u64>,
    pub timeout_us: u64,
    /// The total delay of its worker at its arrival.
    pub late_us: u64,
    /// The decision of Redis.
    pub outcome: Option<Said>,
}

/// One VM.
pub struct Worker {
    /// Its number in the world.
    pub index: usize,
    pub envoy: usize,
    /// Whether it gets requests: it has not been replaced.
    pub accepts: Cell<bool>,
    pub is_gone: Cell<bool>,
    pub limiter: RefCell<Limiter>,
    pub delivered: Rc<Limits>,
    pub stream: RefCell<Option<Stream>>,
    pub pending: RefCell<BTreeMap<RequestId, Pending>>,
    pub unsent: RefCell<VecDeque<RequestId>>,
    pub last_sent_us: Cell<u64>,
    pub is_awake: Cell<bool>,
    pub tick_us: Cell<u64>,
    pub busy_until_us: Cell<u64>,
    /// Its total delay.
    pub late_us: Cell<u64>,
    /// The interval of its checks for replies.
    pub check_interval_us: u64,
    /// The time since which it has been handling decisions, if it is.
    pub pumps_since_us: Cell<Option<u64>>,
}

impl Worker {
    pub fn new(
        (index, envoy): (usize, usize),
        json: &str,
        delivered: Rc<Limits>,
        host: &Host,
        random: u64,
    ) -> Self {
        let environment = Environment { admin_token: Some(TOKEN.into()), ..Environment::default() };
        let plugin = PluginConfig::parse(json.as_bytes(), &environment).expect("a good configuration");
        let limiter = Limiter::new(plugin, host, (random, 0x5eed)).expect("a limiter");
        let redis = limiter.config().settings.redis.as_ref();
        let timeout = redis.map(|redis| Duration::from_millis(redis.timeout_ms.into()));
        let check_interval = timeout.map_or(Duration::ZERO, |timeout| ReplyClock::new(timeout).interval());
        Self {
            index,
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

    /// Adds a delay. A long delay of a busy worker does not count against Redis.
    pub fn delay(&self, us: u64) {
        let withheld_us = if us > whole_micros(TIMER_RESOLUTION) { self.check_interval_us } else { 0 };
        self.late_us.set(self.late_us.get() + us + withheld_us);
    }

    /// The total delay with an overdue tick and with the decisions before this one.
    pub fn late_us_now(&self, now_us: u64) -> u64 {
        let overdue_us = now_us.saturating_sub(self.tick_us.get());
        self.late_us.get() + overdue_us.max(now_us - self.pumps_since_us.get().unwrap_or(now_us))
    }

    /// Whether the bytes on its stream are lost.
    pub fn has_hole(&self) -> bool {
        self.stream.borrow().as_ref().is_some_and(|stream| stream.is_hole)
    }

    /// Whether the stream of that number is still the one it uses.
    pub fn has_stream(&self, id: u64) -> bool {
        self.stream.borrow().as_ref().is_some_and(|stream| stream.id == id)
    }
}

/// A connection through Envoy to Redis. Bytes stay in order; the delay of each delivery is random.
#[derive(Default)]
pub struct Stream {
    pub id: u64,
    pub is_refused: bool,
    pub is_hole: bool,
    /// Whether it leads to a replica, which carries out nothing.
    pub is_replica: bool,
    /// Whether a reply was lost or doubled.
    pub is_out_of_step: bool,
    pub to_redis: VecDeque<Vec<u8>>,
    pub from_redis: VecDeque<Vec<u8>>,
    /// The arrival of the last bytes in each direction.
    pub last_us: (u64, u64),
    /// The part of a command that has arrived.
    pub input: Vec<u8>,
    /// The request of each sequence number.
    pub request_ids: HashMap<u32, RequestId>,
    /// Requests whose command has to be sent again with the script.
    pub unknown: VecDeque<RequestId>,
}
