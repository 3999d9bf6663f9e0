//! The workers of an Envoy that run the filter's overload control, and their shared memory.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use dynamic_rate_limiter::config::HealthThresholds;
use dynamic_rate_limiter::generation::Role;
use dynamic_rate_limiter::overload::{self, ClusterId, Gauge, OverloadControl, RequestOutcome, Shared};
use dynamic_rate_limiter::store::{Conflict, SharedData};
use dynamic_rate_limiter::time::StoreTime;

use crate::protection::{Arrival, End, Output, Protection};

pub struct Workers {
    workers: Vec<OverloadControl>,
    /// The next timeout of each worker.
    timeouts_us: Vec<u64>,
    memory: Memory,
    outputs: VecDeque<Output>,
}

/// The shared data and gauges of an Envoy.
struct Memory {
    now_us: Cell<u64>,
    values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    has_gauges: bool,
    gauges: RefCell<HashMap<(usize, Gauge), u64>>,
    /// The worker that runs, and the cluster behind each worker's number.
    worker: Cell<usize>,
    clusters: RefCell<HashMap<(usize, ClusterId), usize>>,
}

impl Memory {
    fn key(&self, cluster: ClusterId, gauge: Gauge) -> (usize, Gauge) {
        (self.clusters.borrow()[&(self.worker.get(), cluster)], gauge)
    }
}

impl SharedData for Memory {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.values.borrow().get(key).cloned()
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        let mut values = self.values.borrow_mut();
        let found = values.get(key).map(|(_, version)| *version);
        if found != version {
            return Err(Conflict);
        }
        values.insert(key.to_owned(), (value.to_vec(), version.map_or(1, |version| version + 1)));
        Ok(())
    }

    fn changes(&self) -> Option<u64> {
        None
    }

    fn announce_change(&self) {}

    fn now(&self) -> StoreTime {
        StoreTime::from_micros(self.now_us.get())
    }
}

impl Shared for Memory {
    fn add(&self, cluster: ClusterId, gauge: Gauge, difference: i64) {
        let mut gauges = self.gauges.borrow_mut();
        let value = gauges.entry(self.key(cluster, gauge)).or_default();
        *value = value.wrapping_add_signed(difference);
    }

    fn read(&self, cluster: ClusterId, gauge: Gauge) -> Option<u64> {
        let value = self.gauges.borrow().get(&self.key(cluster, gauge)).copied();
        self.has_gauges.then(|| value.unwrap_or_default())
    }
}

impl Workers {
    pub fn new(workers: usize, has_gauges: bool) -> Self {
        let memory = Memory {
            now_us: Cell::new(0),
            values: RefCell::default(),
            has_gauges,
            gauges: RefCell::default(),
            worker: Cell::new(0),
            clusters: RefCell::default(),
        };
        let timeouts_us = vec![0; workers];
        let workers = (0..workers as u64).map(|worker| control(worker, 0)).collect();
        Self { workers, timeouts_us, memory, outputs: VecDeque::new() }
    }

    fn at(&self, worker: usize, now_us: u64) -> StoreTime {
        self.memory.now_us.set(now_us);
        self.memory.worker.set(worker);
        StoreTime::from_micros(now_us)
    }

    fn after_call(&mut self, worker: usize, now: StoreTime) {
        let control = &mut self.workers[worker];
        while let Some(output) = control.poll_output() {
            self.outputs.push_back(match output {
                overload::Output::Send(request) => Output::Send(request.into()),
                overload::Output::Shed(request) => Output::Shed(request.into()),
            });
        }
        let next_us = control.poll_timeout(now).as_micros();
        self.timeouts_us[worker] = self.timeouts_us[worker].min(next_us);
    }
}

/// The defaults, but without the bound of 500 ms, which does not suit a slower upstream.
fn control(random: u64, now_us: u64) -> OverloadControl {
    let now = StoreTime::from_micros(now_us);
    let thresholds = HealthThresholds { latency_ms: None, ..HealthThresholds::default() };
    OverloadControl::new(thresholds, "default", random, now)
}

impl Protection for Workers {
    fn arrive(&mut self, arrival: Arrival, now_us: u64) {
        let Arrival { worker, cluster, request, priority, caller } = arrival;
        let now = self.at(worker, now_us);
        let control = &mut self.workers[worker];
        let id = control.cluster_id(format!("cluster {cluster}").as_bytes());
        self.memory.clusters.borrow_mut().insert((worker, id), cluster);
        let order = overload::rotating_order(&caller, now);
        let place = overload::PlaceRequest {
            id: request as u32,
            cluster: id,
            priority,
            order,
            caller,
            completes_later: false,
        };
        match control.admit(place, now, &self.memory) {
            Some(overload::Output::Send(_)) => self.outputs.push_back(Output::Send(request)),
            Some(overload::Output::Shed(_)) => self.outputs.push_back(Output::Shed(request)),
            None => {}
        }
        self.after_call(worker, now);
    }

    fn end(&mut self, worker: usize, request: u64, end: End, now_us: u64) {
        let now = self.at(worker, now_us);
        let outcome = match end {
            End::Response { is_failed } => RequestOutcome::Response { failed: is_failed },
            End::Timeout => RequestOutcome::NoResponse,
            End::Left => RequestOutcome::ClientLeft,
        };
        self.workers[worker].finish(request as u32, outcome, now, &self.memory);
        self.after_call(worker, now);
    }

    /// The request has ended before: its place must not be given back a second time.
    fn over(&mut self, worker: usize, request: u64, now_us: u64) {
        let now = self.at(worker, now_us);
        self.workers[worker].finish(request as u32, RequestOutcome::ClientLeft, now, &self.memory);
        self.after_call(worker, now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn next_us(&self, worker: usize) -> Option<u64> {
        Some(self.timeouts_us[worker])
    }

    fn handle_timeout(&mut self, worker: usize, now_us: u64) {
        let now = self.at(worker, now_us);
        self.timeouts_us[worker] = u64::MAX;
        self.workers[worker].handle_timeout(now, Duration::ZERO, Role::Newest, &self.memory);
        self.after_call(worker, now);
    }

    fn trap(&mut self, worker: usize, now_us: u64) {
        self.workers[worker] = control(now_us, now_us);
    }

    fn limit(&self, cluster: usize) -> f64 {
        let name = format!("cluster {cluster}");
        let of = |control: &OverloadControl| {
            control.report().clusters.into_iter().find(|(found, _)| found == name.as_bytes())
        };
        self.workers.iter().find_map(of).map_or(0.0, |(_, record)| record.limit.limit())
    }

    fn is_degraded(&self) -> bool {
        self.workers[0].report().reason.is_some()
    }
}
