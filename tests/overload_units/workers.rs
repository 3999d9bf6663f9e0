//! Workers that share memory.

use super::*;

#[derive(Default)]
struct Memory {
    now: Cell<u64>,
    values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    gauges: RefCell<HashMap<(ClusterId, Gauge), u64>>,
    calls: Cell<u32>,
}

impl SharedData for Memory {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.values.borrow().get(key).cloned()
    }

    fn compare_and_set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Conflict> {
        let mut values = self.values.borrow_mut();
        if values.get(key).map(|(_, version)| *version) != version {
            return Err(Conflict);
        }
        values.insert(key.to_owned(), (value.to_vec(), version.unwrap_or_default() + 1));
        Ok(())
    }

    fn changes(&self) -> Option<u64> {
        None
    }

    fn announce_change(&self) {}

    fn now(&self) -> StoreTime {
        StoreTime::from_micros(self.now.get())
    }
}

impl Shared for Memory {
    fn add(&self, cluster: ClusterId, gauge: Gauge, difference: i64) {
        self.calls.set(self.calls.get() + 1);
        let mut gauges = self.gauges.borrow_mut();
        let value = gauges.entry((cluster, gauge)).or_default();
        *value = value.wrapping_add_signed(difference);
    }

    fn read(&self, cluster: ClusterId, gauge: Gauge) -> Option<u64> {
        self.calls.set(self.calls.get() + 1);
        Some(self.gauges.borrow().get(&(cluster, gauge)).copied().unwrap_or_default())
    }
}

struct Worker {
    control: OverloadControl,
    cluster: ClusterId,
    next: u32,
}

impl Worker {
    fn new(worker: u64) -> Self {
        let bounds = HealthThresholds::default();
        let mut control = OverloadControl::new(bounds, "test", worker, at(0));
        let cluster = control.cluster_id(b"upstream", at(0));
        Self { control, cluster, next: 0 }
    }

    fn admit(
        &mut self,
        priority: u8,
        completes_later: bool,
        ms: u64,
        memory: &Memory,
    ) -> (RequestId, Admission) {
        self.next += 1;
        let request = PlaceRequest { cluster: self.cluster, priority, order: 0, caller: 1, completes_later };
        (self.next, self.control.admit(self.next, request, at(ms), memory))
    }

    /// Takes all free places.
    fn fill(&mut self, ms: u64, memory: &Memory) -> Vec<RequestId> {
        let taken = (0..100).map(|_| self.admit(2, false, ms, memory));
        taken.filter(|(_, admission)| *admission == Admission::Send).map(|(id, _)| id).collect()
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.control.poll_output()).collect()
    }
}

fn in_flight(memory: &Memory) -> i32 {
    Gauges::new(memory.read(ClusterId(0), Gauge::InFlight).unwrap(), 0).in_flight
}

const GOOD: RequestOutcome = RequestOutcome::Response { failed: false };

#[test]
fn a_request_costs_three_gauge_calls_while_no_queue_is_in_use() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    let (id, admission) = worker.admit(2, false, 0, &memory);
    worker.control.finish(id, GOOD, at(100), &memory);
    assert_eq!((admission, memory.calls.get()), (Admission::Send, 3));
}

#[test]
fn a_worker_that_measured_earlier_does_not_undo_a_change_of_health() {
    let (memory, mut metrics) = (Memory::default(), Metrics::default());
    let (mut worker, earlier) = (Worker::new(1), Worker::new(2).control.report());
    let control = || Control::read(&memory, &Control::key("test"));
    for ms in (0..10_000).step_by(10) {
        let (id, _) = worker.admit(2, false, ms, &memory);
        worker.control.finish(id, RequestOutcome::Response { failed: true }, at(ms), &memory);
        worker.control.handle_timeout(at(ms), Role::Newest, &memory);
        for report in [&worker.control.report(), &earlier] {
            put_into_force(report, control(), "test", &memory, &mut metrics);
        }
    }
    assert_eq!((earlier.health(), control().measured), (Health::Normal, Health::Degraded));
}

#[test]
fn the_limit_holds_for_all_workers_together() {
    let memory = Memory::default();
    let mut workers: Vec<_> = (0..8).map(Worker::new).collect();
    let sent: usize = workers.iter_mut().map(|worker| worker.fill(0, &memory).len()).sum();
    assert_eq!(sent, INITIAL_LIMIT as usize / 2);
}

#[test]
fn every_end_of_a_request_releases_its_place_once() {
    let memory = Memory::default();
    for outcome in
        [GOOD, RequestOutcome::Response { failed: true }, RequestOutcome::ClientLeft, RequestOutcome::NotSent]
    {
        let mut worker = Worker::new(1);
        let (id, _) = worker.admit(2, false, 0, &memory);
        worker.control.finish(id, outcome, at(10), &memory);
        worker.control.finish(id, GOOD, at(20), &memory);
        assert_eq!(in_flight(&memory), 0, "{outcome:?}");
    }
}

#[test]
fn an_idle_worker_releases_the_places_of_a_dead_one_within_two_seconds() {
    let memory = Memory::default();
    let (mut dead, mut idle) = (Worker::new(1), Worker::new(2));
    let held = dead.fill(0, &memory).len() as i32;
    let released_ms = (50..10_000).step_by(50).find(|ms| {
        if *ms < 1_000 {
            dead.control.handle_timeout(at(*ms), Role::Newest, &memory);
        }
        idle.control.handle_timeout(at(*ms), Role::Newest, &memory);
        in_flight(&memory) < held
    });
    assert!(released_ms.is_some_and(|ms| (1_400..=2_950).contains(&ms)), "{released_ms:?}");
    assert_eq!(in_flight(&memory), 0);
}

#[test]
fn a_more_important_request_of_another_worker_goes_first() {
    let memory = Memory::default();
    let (mut one, mut other) = (Worker::new(1), Worker::new(2));
    let held = one.fill(0, &memory);
    let (important, admission) = other.admit(8, false, 1, &memory);
    assert_eq!(admission, Admission::Wait);
    one.outputs();
    one.control.finish(held[0], GOOD, at(2), &memory);
    assert_eq!(one.outputs(), [], "it leaves the place to the other worker");
    other.control.handle_timeout(at(5), Role::Newest, &memory);
    assert_eq!(other.outputs(), [Output::Send(important)]);
}

#[test]
fn a_full_queue_to_one_cluster_costs_no_request_to_another() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    let to_the_first = worker.fill(0, &memory).len() + 1_100;
    (0..1_000).for_each(|_| _ = worker.admit(2, false, 1, &memory));
    worker.outputs();
    worker.cluster = worker.control.cluster_id(b"another", at(2));
    worker.fill(2, &memory);
    let shed = worker.outputs();
    assert!(!shed.is_empty());
    for output in shed {
        assert!(matches!(output, Output::Shed(id) if id as usize <= to_the_first), "{output:?}");
    }
}

#[test]
fn a_worker_whose_requests_only_wait_is_not_taken_for_dead() {
    let memory = Memory::default();
    let (mut one, mut other) = (Worker::new(1), Worker::new(2));
    let waiting = 100 - one.fill(0, &memory).len() as u64;
    let (_, admission) = other.admit(8, false, 1, &memory);
    assert_eq!(admission, Admission::Wait);
    for ms in (50..500).step_by(50) {
        one.control.handle_timeout(at(ms), Role::Newest, &memory);
        other.control.handle_timeout(at(ms), Role::Newest, &memory);
    }
    assert_eq!(one.control.report().clusters[0].waiting, waiting + 1);
}

#[test]
fn a_worker_with_one_request_does_not_starve_beside_one_with_many() {
    let memory = Memory::default();
    let (mut many, mut one) = (Worker::new(1), Worker::new(2));
    let mut held = many.fill(0, &memory);
    let (lonely, _) = one.admit(2, false, 0, &memory);
    let sent_ms = (1..1_000).find(|ms| {
        many.control.finish(held.remove(0), GOOD, at(*ms), &memory);
        many.admit(2, false, *ms, &memory);
        held.extend(many.outputs().into_iter().filter_map(|output| match output {
            Output::Send(id) => Some(id),
            Output::Shed(_) => None,
        }));
        if ms % 5 == 0 {
            many.control.handle_timeout(at(*ms), Role::Newest, &memory);
            one.control.handle_timeout(at(*ms), Role::Newest, &memory);
        }
        one.outputs().contains(&Output::Send(lonely))
    });
    assert!(sent_ms.is_some_and(|ms| ms < 50), "{sent_ms:?}");
}

#[test]
fn a_request_is_shed_when_it_has_waited_for_a_second_and_not_before() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    worker.fill(0, &memory);
    worker.outputs();
    let (id, _) = worker.admit(8, false, 0, &memory);
    worker.outputs();
    worker.control.handle_timeout(at(999), Role::Newest, &memory);
    assert!(!worker.outputs().contains(&Output::Shed(id)));
    worker.control.handle_timeout(at(1_000), Role::Newest, &memory);
    assert!(worker.outputs().contains(&Output::Shed(id)));
}

#[test]
fn at_most_1024_requests_wait_in_a_worker() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    let mut shed = 0;
    for name in 0..40_u8 {
        worker.cluster = worker.control.cluster_id(&[name], at(0));
        assert!(worker.cluster <= ClusterId::REST);
        for _ in 0..200 {
            let _ = worker.admit(2, false, 0, &memory);
        }
        shed += worker.outputs().iter().filter(|output| matches!(output, Output::Shed(_))).count();
    }
    let in_flight: i32 = memory.gauges.borrow().iter().fold(0, |sum, ((_, gauge), value)| {
        sum + if *gauge == Gauge::InFlight { Gauges::new(*value, 0).in_flight } else { 0 }
    });
    assert!(40 * 200 - shed - in_flight as usize <= 1_024, "{shed} shed, {in_flight} in flight");
}

#[test]
fn a_slow_upload_holds_no_place_and_does_not_count_as_latency() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    let (id, _) = worker.admit(2, true, 0, &memory);
    assert_eq!(in_flight(&memory), 1);
    worker.control.handle_timeout(at(60), Role::Newest, &memory);
    assert_eq!(in_flight(&memory), 0);
    worker.control.request_complete(id, at(5_000), &memory);
    assert_eq!(in_flight(&memory), 1);
    worker.control.finish(id, GOOD, at(5_010), &memory);
    worker.control.handle_timeout(at(5_020), Role::Newest, &memory);
    assert_eq!((in_flight(&memory), worker.control.report().signals.slow_ratio), (0, 0.0));
}

#[test]
fn a_hang_is_slow_before_it_ends() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    worker.admit(2, false, 0, &memory);
    worker.control.handle_timeout(at(500), Role::Newest, &memory);
    assert_eq!(worker.control.report().signals.slow_ratio, 0.0);
    worker.control.handle_timeout(at(551), Role::Newest, &memory);
    assert_eq!(worker.control.report().signals.slow_ratio, 1.0);
}

#[test]
fn with_shed_off_no_request_waits() {
    let memory = Memory::default();
    let bounds = HealthThresholds { shed: false, ..HealthThresholds::default() };
    let mut worker = Worker::new(1);
    worker.control = OverloadControl::new(bounds, "test", 1, at(0));
    worker.cluster = worker.control.cluster_id(b"upstream", at(0));
    assert_eq!(worker.fill(0, &memory).len(), 100);
}

#[test]
fn a_superseded_generation_publishes_the_places_that_it_holds_and_nothing_else() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    let (held, _) = worker.admit(2, false, 0, &memory);
    let writes = || memory.values.borrow().values().map(|(_, version)| *version).sum::<u32>();
    let flush = |worker: &mut Worker, ms| {
        let before = writes();
        worker.control.handle_timeout(at(ms), Role::Superseded, &memory);
        writes() - before
    };
    assert_eq!(flush(&mut worker, 60), 1, "it holds a place");
    worker.control.finish(held, GOOD, at(70), &memory);
    assert_eq!(flush(&mut worker, 120), 1, "it has given the place back");
    assert_eq!([flush(&mut worker, 180), flush(&mut worker, 5_000)], [0, 0]);
}
