//! Workers that share memory.

use super::*;

#[derive(Default)]
struct Memory {
    now: Cell<u64>,
    values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    writes: Cell<u32>,
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
        self.writes.set(self.writes.get() + 1);
        values.insert(key.to_owned(), (value.to_vec(), self.writes.get()));
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
    memory: Rc<Memory>,
    cluster: ClusterId,
    next: u32,
    /// Those of the requests that were shed at once.
    shed: Vec<Output>,
}

/// Workers of one Envoy, with numbers from 1 on.
fn workers<const N: usize>() -> [Worker; N] {
    let memory = Rc::new(Memory::default());
    std::array::from_fn(|index| Worker::new(index as u64 + 1, HealthThresholds::default(), &memory))
}

fn worker() -> Worker {
    let [worker] = workers();
    worker
}

impl Worker {
    fn new(worker: u64, thresholds: HealthThresholds, memory: &Rc<Memory>) -> Self {
        let mut control = OverloadControl::new(thresholds, "test", worker, at(0));
        let cluster = control.cluster_id(b"upstream");
        Self { control, memory: Rc::clone(memory), cluster, next: 0, shed: Vec::new() }
    }

    fn admit(&mut self, priority: u8, ms: u64) -> (RequestId, Option<Output>) {
        self.admit_with(priority, false, ms)
    }

    fn admit_with(&mut self, priority: u8, completes_later: bool, ms: u64) -> (RequestId, Option<Output>) {
        self.next += 1;
        let (id, cluster) = (self.next, self.cluster);
        let request = PlaceRequest { id, cluster, priority, order: 0, caller: 1, completes_later };
        let output = self.control.admit(request, at(ms), &*self.memory);
        self.shed.extend(output.filter(|output| matches!(output, Output::Shed(_))));
        (self.next, output)
    }

    /// Takes all free places.
    fn fill(&mut self, ms: u64) -> Vec<RequestId> {
        let taken = (0..100).map(|_| self.admit(2, ms));
        taken.filter(|(id, output)| *output == Some(Output::Send(*id))).map(|(id, _)| id).collect()
    }

    fn finish(&mut self, id: RequestId, outcome: RequestOutcome, ms: u64) {
        self.control.finish(id, outcome, at(ms), &*self.memory);
    }

    fn tick(&mut self, ms: u64) {
        self.tick_as(Role::Newest, Duration::ZERO, ms);
    }

    fn tick_as(&mut self, role: Role, period: Duration, ms: u64) {
        self.control.handle_timeout(at(ms), period, role, &*self.memory);
    }

    fn outputs(&mut self) -> Vec<Output> {
        let polled = std::iter::from_fn(|| self.control.poll_output());
        self.shed.drain(..).chain(polled).collect()
    }

    /// The places that all workers hold.
    fn in_flight(&self) -> i32 {
        Gauges::new(self.memory.read(ClusterId(0), Gauge::InFlight).unwrap(), 0).in_flight
    }
}

const GOOD: RequestOutcome = RequestOutcome::Response { failed: false };

#[test]
fn a_request_costs_three_gauge_calls_while_no_queue_is_in_use() {
    let mut worker = worker();
    let (id, output) = worker.admit(2, 0);
    worker.finish(id, GOOD, 100);
    assert_eq!((output, worker.memory.calls.get()), (Some(Output::Send(id)), 3));
}

#[test]
fn a_worker_that_measured_earlier_does_not_undo_a_change_of_health() {
    let [mut worker, other] = workers();
    let (earlier, memory, mut metrics) = (other.control.report(), other.memory, Metrics::default());
    let control = || Control::read(&*memory, &Control::key("test"));
    for ms in (0..10_000).step_by(10) {
        let (id, _) = worker.admit(2, ms);
        worker.finish(id, RequestOutcome::Response { failed: true }, ms);
        worker.tick(ms);
        for report in [&worker.control.report(), &earlier] {
            put_into_force(report, control(), "test", &*memory, &mut metrics);
        }
    }
    assert_eq!((earlier.reason, control().measured), (None, Health::Degraded));
}

#[test]
fn the_limit_holds_for_all_workers_together() {
    let mut workers = workers::<8>();
    let sent: usize = workers.iter_mut().map(|worker| worker.fill(0).len()).sum();
    assert_eq!(sent, INITIAL_LIMIT as usize / 2);
}

#[test]
fn every_end_of_a_request_releases_its_place_once() {
    for outcome in
        [GOOD, RequestOutcome::Response { failed: true }, RequestOutcome::ClientLeft, RequestOutcome::NotSent]
    {
        // After 600 ms it is slow, or its upload is.
        for (completes_later, ms) in [(false, 10), (false, 600), (true, 10), (true, 600)] {
            let mut worker = worker();
            let (id, _) = worker.admit_with(2, completes_later, 0);
            worker.tick(ms);
            worker.finish(id, outcome, ms);
            worker.finish(id, GOOD, ms + 10);
            assert_eq!(worker.in_flight(), 0, "{outcome:?} after {ms} ms, {completes_later}");
        }
    }
}

#[test]
fn an_idle_worker_releases_the_places_of_a_dead_one_within_two_seconds() {
    let [mut dead, mut idle] = workers();
    let held = dead.fill(0).len() as i32;
    let released_ms = (50..10_000).step_by(50).find(|ms| {
        if *ms < 1_000 {
            dead.tick(*ms);
        }
        idle.tick(*ms);
        idle.in_flight() < held
    });
    assert!(released_ms.is_some_and(|ms| (1_400..=2_950).contains(&ms)), "{released_ms:?}");
    assert_eq!(idle.in_flight(), 0);
}

#[test]
fn a_full_queue_to_one_cluster_costs_no_request_to_another() {
    let mut worker = worker();
    let to_the_first = worker.fill(0).len() + 1_100;
    (0..1_000).for_each(|_| _ = worker.admit(2, 1));
    worker.outputs();
    worker.cluster = worker.control.cluster_id(b"another");
    worker.fill(2);
    let shed = worker.outputs();
    assert!(!shed.is_empty());
    for output in shed {
        assert!(matches!(output, Output::Shed(id) if id as usize <= to_the_first), "{output:?}");
    }
}

#[test]
fn a_worker_whose_requests_only_wait_is_not_taken_for_dead() {
    let [mut one, mut other] = workers();
    let waiting = 100 - one.fill(0).len() as u64;
    let (_, output) = other.admit(8, 1);
    assert_eq!(output, None);
    for ms in (50..500).step_by(50) {
        one.tick(ms);
        other.tick(ms);
    }
    assert_eq!(one.control.report().clusters[0].1.waiting(), waiting + 1);
}

#[test]
fn a_request_is_shed_when_it_has_waited_for_a_second_and_not_before() {
    let mut worker = worker();
    worker.fill(0);
    worker.outputs();
    let (id, _) = worker.admit(8, 0);
    worker.outputs();
    worker.tick(999);
    assert!(!worker.outputs().contains(&Output::Shed(id)));
    worker.tick(1_000);
    assert!(worker.outputs().contains(&Output::Shed(id)));
}

#[test]
fn the_most_important_is_sent_first_and_the_least_important_is_shed_first() {
    let mut worker = worker();
    let sent = worker.fill(0);
    let [(lowest, _), (highest, _)] = [1, 8].map(|priority| worker.admit(priority, 0));
    worker.finish(sent[0], GOOD, 1);
    assert_eq!(worker.outputs(), [Output::Send(highest)]);
    let first_shed = (0..1_024).find_map(|_| {
        worker.admit(2, 1);
        worker.outputs().first().copied()
    });
    assert_eq!(first_shed, Some(Output::Shed(lowest)));
}

#[test]
fn at_most_1024_requests_wait_in_a_worker() {
    let mut worker = worker();
    let mut shed = 0;
    for name in 0..40_u8 {
        worker.cluster = worker.control.cluster_id(&[name]);
        assert!(worker.cluster <= ClusterId::REST);
        for _ in 0..200 {
            let _ = worker.admit(2, 0);
        }
        shed += worker.outputs().iter().filter(|output| matches!(output, Output::Shed(_))).count();
    }
    let in_flight: i32 = worker.memory.gauges.borrow().iter().fold(0, |sum, ((_, gauge), value)| {
        sum + if *gauge == Gauge::InFlight { Gauges::new(*value, 0).in_flight } else { 0 }
    });
    assert!(40 * 200 - shed - in_flight as usize <= 1_024, "{shed} shed, {in_flight} in flight");
}

#[test]
fn a_slow_upload_holds_no_place_and_does_not_count_as_latency() {
    let mut worker = worker();
    let (id, _) = worker.admit_with(2, true, 0);
    assert_eq!(worker.in_flight(), 1);
    worker.tick(60);
    assert_eq!(worker.in_flight(), 0);
    worker.control.request_complete(id, at(5_000), &*worker.memory);
    assert_eq!(worker.in_flight(), 1);
    worker.finish(id, GOOD, 5_010);
    worker.tick(5_020);
    assert_eq!((worker.in_flight(), worker.control.report().signals.slow_ratio), (0, 0.0));
}

#[test]
fn a_hang_is_slow_before_it_ends() {
    let mut worker = worker();
    worker.admit(2, 0);
    worker.tick(500);
    assert_eq!(worker.control.report().signals.slow_ratio, 0.0);
    worker.tick(551);
    assert_eq!(worker.control.report().signals.slow_ratio, 1.0);
}

#[test]
fn with_shed_off_no_request_waits() {
    let thresholds = HealthThresholds { shed: false, ..HealthThresholds::default() };
    let mut worker = Worker::new(1, thresholds, &Rc::default());
    assert_eq!(worker.fill(0).len(), 100);
}

#[test]
fn a_superseded_generation_publishes_the_places_that_it_holds_and_nothing_else() {
    let mut worker = worker();
    let (held, _) = worker.admit(2, 0);
    let writes = |worker: &mut Worker, ms| {
        let before = worker.memory.writes.get();
        worker.tick_as(Role::Superseded, Duration::ZERO, ms);
        worker.memory.writes.get() - before
    };
    assert_eq!(writes(&mut worker, 60), 1, "it holds a place");
    worker.finish(held, GOOD, 70);
    assert_eq!(writes(&mut worker, 120), 1, "it has given the place back");
    assert_eq!([writes(&mut worker, 180), writes(&mut worker, 5_000)], [0, 0]);
}

/// A request each ten milliseconds until then, with these latencies in turn, and a call each `period_ms`.
fn serve(worker: &mut Worker, until_ms: u64, latencies_ms: &[u64], period_ms: u64) {
    let mut ends = BTreeSet::new();
    for ms in 0..until_ms {
        if ms % 10 == 0 {
            let (id, _) = worker.admit(2, ms);
            ends.insert((ms + latencies_ms[(ms / 10) as usize % latencies_ms.len()], id));
        }
        while let Some((_, id)) = ends.first().copied().filter(|(end, _)| *end <= ms) {
            ends.pop_first();
            worker.finish(id, GOOD, ms);
        }
        if ms % period_ms == 0 {
            worker.tick_as(Role::Newest, Duration::from_millis(period_ms), ms);
        }
    }
}

fn limit(worker: &Worker) -> f64 {
    worker.control.report().clusters[0].1.limit.limit()
}

#[test]
fn requests_that_are_rejected_for_another_reason_do_not_raise_the_limit() {
    let mut worker = worker();
    serve(&mut worker, 20_000, &[100], 50);
    let before = limit(&worker);
    for ms in 20_000..30_000 {
        for _ in 0..5 {
            let (id, _) = worker.admit(2, ms);
            worker.finish(id, RequestOutcome::NotSent, ms);
        }
        if ms % 50 == 0 {
            worker.tick(ms);
        }
    }
    assert!(limit(&worker) <= before, "{} and {before} before", limit(&worker));
}

#[test]
fn periodic_calls_that_come_when_they_can_are_not_late() {
    let mut worker = worker();
    serve(&mut worker, 10_000, &[5], 20);
    let baseline = worker.control.report().clusters[0].1.limit.baseline().unwrap();
    assert!((4_500..=5_500).contains(&baseline.as_micros()), "{baseline:?}");
}

#[test]
fn an_upstream_with_two_kinds_of_requests_is_healthy() {
    let mut worker = worker();
    // One in seven takes a hundred times as long, which is usual here.
    serve(&mut worker, 60_000, &[3, 3, 3, 3, 3, 3, 300], 50);
    assert_eq!(worker.control.report().reason, None);
}

#[test]
fn an_idle_worker_learns_what_others_did_before_it_sheds() {
    let mut worker = worker();
    worker.admit(2, 0);
    worker.tick(50);
    let key = key("test", "clusters/upstream");
    change(&*worker.memory, &key, |record: &mut ClusterRecord| record.limit.target = 200.0);
    worker.memory.add(worker.cluster, Gauge::InFlight, 50);
    let sent = worker.fill(400).len();
    assert_eq!((sent, worker.outputs()), (100, Vec::new()));
}

#[test]
fn a_worker_publishes_the_most_important_priority_in_its_queue() {
    let mut worker = worker();
    let published = |worker: &Worker| worker.memory.read(ClusterId(0), Gauge::Waiting).unwrap();
    assert_eq!(published(&worker), 0);
    worker.fill(0);
    assert_eq!(published(&worker), 1 << 12);
    let (id, _) = worker.admit(9, 0);
    assert_eq!(published(&worker), 1 << 54);
    worker.finish(id, RequestOutcome::NotSent, 1);
    assert_eq!(published(&worker), 1 << 12);
    worker.tick(1_500);
    (1..id).for_each(|id| worker.finish(id, RequestOutcome::NotSent, 1_500));
    let in_flight = worker.memory.read(ClusterId(0), Gauge::InFlight);
    assert_eq!((published(&worker), in_flight), (0, Some(0)), "nothing is left");
}

#[test]
fn a_hundred_workers_with_a_queue_do_not_seem_to_have_one_of_another_priority() {
    let mut workers = workers::<100>();
    workers[0].fill(0);
    for worker in &mut workers {
        worker.admit(5, 0);
    }
    let [in_flight, waiting] =
        [Gauge::InFlight, Gauge::Waiting].map(|gauge| workers[0].memory.read(ClusterId(0), gauge).unwrap());
    assert_eq!(Gauges::new(in_flight, waiting).highest_waiting(), Some(5));
    workers[99].admit(9, 0);
    let waiting = workers[0].memory.read(ClusterId(0), Gauge::Waiting).unwrap();
    assert_eq!(
        Gauges::new(in_flight, waiting).highest_waiting(),
        Some(9),
        "a more important one is published"
    );
}

#[test]
fn a_burst_to_a_quiet_upstream_waits() {
    let mut worker = worker();
    serve(&mut worker, 60_000, &[100], 50);
    for _ in 0..200 {
        worker.admit(2, 60_000);
    }
    assert!(!worker.outputs().iter().any(|output| matches!(output, Output::Shed(_))));
}

#[test]
fn no_worker_waits_for_long_while_others_get_every_place() {
    const SERVERS: usize = 5;
    let mut workers = workers::<8>();
    let (mut free_at, mut in_flight) = ([0; SERVERS], BTreeSet::<(u64, usize, RequestId)>::new());
    let (mut served_at, mut longest_ms, mut random) = ([0_u64; 8], 0, Random::new(1));
    for ms in 0..60_000 {
        while let Some((_, index, id)) = in_flight.first().copied().filter(|(end, ..)| *end <= ms) {
            in_flight.pop_first();
            workers[index].finish(id, GOOD, ms);
            longest_ms = longest_ms.max(ms - served_at[index]);
            served_at[index] = ms;
        }
        let first = random.below(8) as usize;
        for turn in 0..workers.len() {
            // Together they send three times what the upstream can do.
            let index = (turn + first) % workers.len();
            let worker = &mut workers[index];
            let admitted = (ms % 50 == index as u64).then(|| worker.admit(2, ms).1).flatten();
            if ms % 2 == 0 {
                worker.tick(ms);
            }
            for output in admitted.into_iter().chain(worker.outputs()) {
                if let Output::Send(id) = output {
                    let server = free_at.iter_mut().min().unwrap();
                    *server = ms.max(*server) + 100;
                    in_flight.insert((*server, index, id));
                }
            }
        }
    }
    assert!(longest_ms < 5_000, "{longest_ms}");
}
