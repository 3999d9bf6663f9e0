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
    /// Those of the requests that were shed at once.
    shed: Vec<Output>,
}

impl Worker {
    fn new(worker: u64) -> Self {
        let thresholds = HealthThresholds::default();
        let mut control = OverloadControl::new(thresholds, "test", worker, at(0));
        let cluster = control.cluster_id(b"upstream", at(0));
        Self { control, cluster, next: 0, shed: Vec::new() }
    }

    fn admit(
        &mut self,
        priority: u8,
        completes_later: bool,
        ms: u64,
        memory: &Memory,
    ) -> (RequestId, Option<Output>) {
        self.next += 1;
        let request = PlaceRequest { cluster: self.cluster, priority, order: 0, caller: 1, completes_later };
        let output = self.control.admit(self.next, request, at(ms), memory);
        self.shed.extend(output.filter(|output| matches!(output, Output::Shed(_))));
        (self.next, output)
    }

    /// Takes all free places.
    fn fill(&mut self, ms: u64, memory: &Memory) -> Vec<RequestId> {
        let taken = (0..100).map(|_| self.admit(2, false, ms, memory));
        taken.filter(|(id, output)| *output == Some(Output::Send(*id))).map(|(id, _)| id).collect()
    }

    fn tick(&mut self, ms: u64, memory: &Memory) {
        self.control.handle_timeout(at(ms), Duration::ZERO, Role::Newest, memory);
    }

    fn outputs(&mut self) -> Vec<Output> {
        let polled = std::iter::from_fn(|| self.control.poll_output());
        self.shed.drain(..).chain(polled).collect()
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
    let (id, output) = worker.admit(2, false, 0, &memory);
    worker.control.finish(id, GOOD, at(100), &memory);
    assert_eq!((output, memory.calls.get()), (Some(Output::Send(id)), 3));
}

#[test]
fn a_worker_that_measured_earlier_does_not_undo_a_change_of_health() {
    let (memory, mut metrics) = (Memory::default(), Metrics::default());
    let (mut worker, earlier) = (Worker::new(1), Worker::new(2).control.report());
    let control = || Control::read(&memory, &Control::key("test"));
    for ms in (0..10_000).step_by(10) {
        let (id, _) = worker.admit(2, false, ms, &memory);
        worker.control.finish(id, RequestOutcome::Response { failed: true }, at(ms), &memory);
        worker.tick(ms, &memory);
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
            dead.tick(*ms, &memory);
        }
        idle.tick(*ms, &memory);
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
    let (important, output) = other.admit(8, false, 1, &memory);
    assert_eq!(output, None);
    one.outputs();
    one.control.finish(held[0], GOOD, at(2), &memory);
    assert_eq!(one.outputs(), [], "it leaves the place to the other worker");
    other.tick(5, &memory);
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
    let (_, output) = other.admit(8, false, 1, &memory);
    assert_eq!(output, None);
    for ms in (50..500).step_by(50) {
        one.tick(ms, &memory);
        other.tick(ms, &memory);
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
            many.tick(*ms, &memory);
            one.tick(*ms, &memory);
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
    worker.tick(999, &memory);
    assert!(!worker.outputs().contains(&Output::Shed(id)));
    worker.tick(1_000, &memory);
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
    worker.tick(60, &memory);
    assert_eq!(in_flight(&memory), 0);
    worker.control.request_complete(id, at(5_000), &memory);
    assert_eq!(in_flight(&memory), 1);
    worker.control.finish(id, GOOD, at(5_010), &memory);
    worker.tick(5_020, &memory);
    assert_eq!((in_flight(&memory), worker.control.report().signals.slow_ratio), (0, 0.0));
}

#[test]
fn a_hang_is_slow_before_it_ends() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    worker.admit(2, false, 0, &memory);
    worker.tick(500, &memory);
    assert_eq!(worker.control.report().signals.slow_ratio, 0.0);
    worker.tick(551, &memory);
    assert_eq!(worker.control.report().signals.slow_ratio, 1.0);
}

#[test]
fn with_shed_off_no_request_waits() {
    let memory = Memory::default();
    let thresholds = HealthThresholds { shed: false, ..HealthThresholds::default() };
    let mut worker = Worker::new(1);
    worker.control = OverloadControl::new(thresholds, "test", 1, at(0));
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
        worker.control.handle_timeout(at(ms), Duration::ZERO, Role::Superseded, &memory);
        writes() - before
    };
    assert_eq!(flush(&mut worker, 60), 1, "it holds a place");
    worker.control.finish(held, GOOD, at(70), &memory);
    assert_eq!(flush(&mut worker, 120), 1, "it has given the place back");
    assert_eq!([flush(&mut worker, 180), flush(&mut worker, 5_000)], [0, 0]);
}

/// A request each ten milliseconds until then, with these latencies in turn, and a call each `period_ms`.
fn serve(worker: &mut Worker, until_ms: u64, latencies_ms: &[u64], period_ms: u64, memory: &Memory) {
    let mut ends = BTreeSet::new();
    for ms in 0..until_ms {
        if ms % 10 == 0 {
            let (id, _) = worker.admit(2, false, ms, memory);
            ends.insert((ms + latencies_ms[(ms / 10) as usize % latencies_ms.len()], id));
        }
        while let Some((_, id)) = ends.first().copied().filter(|(end, _)| *end <= ms) {
            ends.pop_first();
            worker.control.finish(id, GOOD, at(ms), memory);
        }
        if ms % period_ms == 0 {
            let period = Duration::from_millis(period_ms);
            worker.control.handle_timeout(at(ms), period, Role::Newest, memory);
        }
    }
}

fn limit(worker: &Worker) -> f64 {
    worker.control.report().clusters[0].limit
}

#[test]
fn requests_that_are_rejected_for_another_reason_do_not_raise_the_limit() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    serve(&mut worker, 20_000, &[100], 50, &memory);
    let before = limit(&worker);
    for ms in 20_000..30_000 {
        for _ in 0..5 {
            let (id, _) = worker.admit(2, false, ms, &memory);
            worker.control.finish(id, RequestOutcome::NotSent, at(ms), &memory);
        }
        if ms % 50 == 0 {
            worker.tick(ms, &memory);
        }
    }
    assert!(limit(&worker) <= before, "{} and {before} before", limit(&worker));
}

#[test]
fn periodic_calls_that_come_when_they_can_are_not_late() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    serve(&mut worker, 10_000, &[5], 20, &memory);
    let baseline = worker.control.report().clusters[0].baseline.unwrap();
    assert!((4_500..=5_500).contains(&baseline.as_micros()), "{baseline:?}");
}

#[test]
fn an_upstream_with_two_kinds_of_requests_is_healthy() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    // One in seven takes a hundred times as long, which is usual here.
    serve(&mut worker, 60_000, &[3, 3, 3, 3, 3, 3, 300], 50, &memory);
    assert_eq!(worker.control.report().reason, None);
}

#[test]
fn an_idle_worker_learns_what_others_did_before_it_sheds() {
    let memory = Memory::default();
    let mut worker = Worker::new(1);
    worker.admit(2, false, 0, &memory);
    worker.tick(50, &memory);
    let key = record_key("test", "overload/clusters/upstream");
    change(
        &memory,
        &key,
        || ClusterRecord::new(at(0)),
        |record: &mut ClusterRecord| record.limit.target = 200.0,
    );
    memory.add(worker.cluster, Gauge::InFlight, 50);
    let sent = worker.fill(400, &memory).len();
    assert_eq!((sent, worker.outputs()), (100, Vec::new()));
}

#[test]
fn a_hundred_workers_with_a_queue_do_not_seem_to_have_one_of_another_priority() {
    let memory = Memory::default();
    let mut workers: Vec<_> = (0..100).map(Worker::new).collect();
    workers[0].fill(0, &memory);
    for worker in &mut workers {
        worker.admit(5, false, 0, &memory);
    }
    let [in_flight, waiting] =
        [Gauge::InFlight, Gauge::Waiting].map(|gauge| memory.read(ClusterId(0), gauge).unwrap());
    assert_eq!(Gauges::new(in_flight, waiting).highest_waiting(), Some(5));
}
