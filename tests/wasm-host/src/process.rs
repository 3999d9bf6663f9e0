//! What the workers of one Envoy share: the clocks, shared data, queues, stats, and the log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use crate::failures::status;

/// A `vm_id` and a name in it.
type Key = (String, Vec<u8>);

/// The clocks of a machine, which tests move.
#[derive(Debug)]
pub struct Clock {
    /// Nanoseconds since start; never steps back.
    pub monotonic_ns: Cell<u64>,
    /// Unix nanoseconds; may be set to anything.
    pub wall_ns: Cell<u64>,
    /// How much passes each time a guest looks: nothing, unless a test wants time to pass within a callback.
    pub ns_per_look: Cell<u64>,
}

impl Clock {
    pub fn advance_us(&self, us: u64) {
        self.monotonic_ns.set(self.monotonic_ns.get() + us * 1_000);
        self.wall_ns.set(self.wall_ns.get().saturating_add(us * 1_000));
    }

    pub(crate) fn is_read(&self) {
        let ns = self.ns_per_look.get();
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
    /// Gathers values; the model keeps how many.
    Histogram,
}

/// A queue: whose root context is called, and what is in it.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) vm: usize,
    pub(crate) context: u32,
    pub(crate) items: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
pub struct Process {
    pub clock: Rc<Clock>,
    /// Its log level: 0 is trace, 2 info, 6 off.
    pub log_level: Cell<u32>,
    /// Every line logged: level and text.
    pub log: RefCell<Vec<(u32, String)>>,
    /// Variables that Envoy hands to the VM.
    pub environment: RefCell<Vec<(String, Vec<u8>)>>,
    /// Whether stats are kept: a `stats_matcher` may leave the filter's out.
    pub keeps_stats: Cell<bool>,
    pub clusters: RefCell<Vec<String>>,
    shared_data: RefCell<HashMap<Key, (Vec<u8>, u32)>>,
    last_cas: Cell<u32>,
    pub(crate) queues: RefCell<BTreeMap<u32, Queue>>,
    queue_names: RefCell<HashMap<Key, u32>>,
    stats: RefCell<BTreeMap<(StatKind, String), u64>>,
}

impl Process {
    /// An Envoy that knows these clusters.
    pub(crate) fn new(clock: Rc<Clock>, clusters: &[&str], environment: &[(String, Vec<u8>)]) -> Self {
        Self {
            clock,
            log_level: Cell::new(0),
            log: RefCell::default(),
            environment: RefCell::new(environment.to_vec()),
            keeps_stats: Cell::new(true),
            clusters: RefCell::new(clusters.iter().map(|name| (*name).to_owned()).collect()),
            shared_data: RefCell::default(),
            last_cas: Cell::new(0),
            queues: RefCell::default(),
            queue_names: RefCell::default(),
            stats: RefCell::default(),
        }
    }

    /// How many bytes shared data holds, names included.
    pub fn shared_data_bytes(&self) -> usize {
        let data = self.shared_data.borrow();
        data.iter().map(|((_, key), (value, _))| key.len() + value.len()).sum()
    }

    /// Shared data: the value and its version.
    pub fn get_shared(&self, vm_id: &str, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.shared_data.borrow().get(&(vm_id.to_owned(), key.to_vec())).cloned()
    }

    /// Envoy's rule: version 0 writes over anything, any version inserts where there is nothing.
    pub fn set_shared(&self, vm_id: &str, key: &[u8], value: &[u8], cas: u32) -> u32 {
        let mut data = self.shared_data.borrow_mut();
        let stored = data.get(&(vm_id.to_owned(), key.to_vec())).map(|(_, version)| *version);
        if stored.is_some_and(|version| cas != 0 && cas != version) {
            return status::CAS_MISMATCH;
        }
        self.last_cas.set(self.last_cas.get() + 1);
        data.insert((vm_id.to_owned(), key.to_vec()), (value.to_vec(), self.last_cas.get()));
        status::OK
    }

    /// All keys and values, for whoever looks for secrets or garbles what is there.
    pub fn shared_records(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let data = self.shared_data.borrow();
        let mut records: Vec<_> =
            data.iter().map(|((_, key), (value, _))| (key.clone(), value.clone())).collect();
        records.sort();
        records
    }

    /// The queue of that name, made if need be; from now on it calls this context.
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

    /// Defines a stat; it keeps its value if it is there already.
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

    /// A counter's or gauge's value, or how many values a histogram has; 0 where there is none.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.stats.borrow();
        let mut kinds = [StatKind::Counter, StatKind::Gauge, StatKind::Histogram].into_iter();
        kinds.find_map(|kind| stats.get(&(kind, name.to_owned())).copied()).unwrap_or_default()
    }

    /// The names of all stats.
    pub fn stat_names(&self) -> Vec<String> {
        self.stats.borrow().keys().map(|(_, name)| name.clone()).collect()
    }

    /// Whether a line at or above a level says that.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.borrow().iter().any(|(_, line)| line.contains(text))
    }
}
