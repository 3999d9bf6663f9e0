//! The shared state of an Envoy's workers: the clocks, shared data, queues, stats, and the log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use crate::world::Setup;

/// A `vm_id` and a name.
type Key = (String, Vec<u8>);

/// The clocks of a machine, which tests control.
#[derive(Debug, Default)]
pub struct Clock {
    /// Nanoseconds since start; never steps back.
    pub monotonic_ns: Cell<u64>,
    /// Unix nanoseconds; may be set to anything.
    pub wall_ns: Cell<u64>,
    /// How much time passes at each read by a guest: zero, unless a test sets it.
    pub ns_per_read: Cell<u64>,
}

impl Clock {
    pub fn advance_us(&self, us: u64) {
        self.monotonic_ns.set(self.monotonic_ns.get() + us * 1_000);
        self.wall_ns.set(self.wall_ns.get().saturating_add(us * 1_000));
    }

    pub(crate) fn is_read(&self) {
        let ns = self.ns_per_read.get();
        self.monotonic_ns.set(self.monotonic_ns.get() + ns);
        self.wall_ns.set(self.wall_ns.get().saturating_add(ns));
    }

    pub fn now_us(&self) -> u64 {
        self.monotonic_ns.get() / 1_000
    }
}

/// The kinds of stats, in the ABI's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatKind {
    /// Only grows.
    Counter,
    /// Is set.
    Gauge,
    /// Records values; the model keeps their number.
    Histogram,
}

/// A queue: its items, and the root context that is called.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) vm: usize,
    pub(crate) context: u32,
    pub(crate) items: VecDeque<Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Process {
    pub clock: Rc<Clock>,
    /// Its log level: 0 is trace, 2 info, 6 off.
    pub log_level: Cell<u32>,
    /// Every line logged: level and text.
    pub log: RefCell<Vec<(u32, String)>>,
    /// Variables that Envoy passes to the VM.
    pub environment: Vec<(String, Vec<u8>)>,
    /// Whether stats are kept: a `stats_matcher` may exclude the filter's.
    pub keeps_stats: Cell<bool>,
    pub clusters: Vec<&'static str>,
    shared_data: RefCell<HashMap<Key, (Vec<u8>, u32)>>,
    last_cas: Cell<u32>,
    pub(crate) queues: RefCell<BTreeMap<u32, Queue>>,
    queue_names: RefCell<HashMap<Key, u32>>,
    stats: RefCell<BTreeMap<(StatKind, String), u64>>,
}

impl Process {
    pub(crate) fn new(clock: Rc<Clock>, setup: &Setup) -> Self {
        Self {
            clock,
            log_level: setup.log_level.into(),
            environment: setup.environment.clone(),
            keeps_stats: true.into(),
            clusters: setup.clusters.clone(),
            ..Self::default()
        }
    }

    /// The size of shared data, including keys.
    pub fn shared_data_bytes(&self) -> usize {
        let data = self.shared_data.borrow();
        data.iter().map(|((_, key), (value, _))| key.len() + value.len()).sum()
    }

    /// Shared data: the value and its version.
    pub fn get_shared(&self, vm_id: &str, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.shared_data.borrow().get(&(vm_id.to_owned(), key.to_vec())).cloned()
    }

    /// Whether it is written. Envoy's rule: version 0 overwrites any value, any version inserts a missing key.
    pub fn set_shared(&self, vm_id: &str, key: &[u8], value: &[u8], cas: u32) -> bool {
        let mut data = self.shared_data.borrow_mut();
        let stored = data.get(&(vm_id.to_owned(), key.to_vec())).map(|(_, version)| *version);
        if stored.is_some_and(|version| cas != 0 && cas != version) {
            return false;
        }
        self.last_cas.set(self.last_cas.get() + 1);
        data.insert((vm_id.to_owned(), key.to_vec()), (value.to_vec(), self.last_cas.get()));
        true
    }

    /// All keys and values, sorted.
    pub fn shared_records(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let data = self.shared_data.borrow();
        let mut records: Vec<_> =
            data.iter().map(|((_, key), (value, _))| (key.clone(), value.clone())).collect();
        records.sort();
        records
    }

    /// The queue of that name, created if it does not exist; from now on it calls this context.
    pub(crate) fn register_queue(&self, vm_id: &str, name: &[u8], vm: usize, context: u32) -> u32 {
        let mut names = self.queue_names.borrow_mut();
        let next = names.len() as u32 + 1;
        let token = *names.entry((vm_id.to_owned(), name.to_vec())).or_insert(next);
        let mut queues = self.queues.borrow_mut();
        let items = queues.remove(&token).map(|queue| queue.items).unwrap_or_default();
        queues.insert(token, Queue { vm, context, items });
        token
    }

    /// The queue of that name.
    pub(crate) fn resolve_queue(&self, vm_id: &str, name: &[u8]) -> Option<u32> {
        self.queue_names.borrow().get(&(vm_id.to_owned(), name.to_vec())).copied()
    }

    /// Defines a stat; an existing one keeps its value.
    pub(crate) fn define_stat(&self, kind: StatKind, name: &str) {
        self.stats.borrow_mut().entry((kind, name.to_owned())).or_insert(0);
    }

    pub(crate) fn change_stat(&self, kind: StatKind, name: &str, change: impl FnOnce(u64) -> u64) {
        if self.keeps_stats.get()
            && let Some(value) = self.stats.borrow_mut().get_mut(&(kind, name.to_owned()))
        {
            *value = change(*value);
        }
    }

    /// The value of a counter or gauge, or the number of values of a histogram; 0 if there is none.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.stats.borrow();
        let mut kinds = [StatKind::Counter, StatKind::Gauge, StatKind::Histogram].into_iter();
        kinds.find_map(|kind| stats.get(&(kind, name.to_owned())).copied()).unwrap_or_default()
    }

    pub fn stat_names(&self) -> Vec<String> {
        self.stats.borrow().keys().map(|(_, name)| name.clone()).collect()
    }

    /// Whether a log line contains this text.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.borrow().iter().any(|(_, line)| line.contains(text))
    }
}
