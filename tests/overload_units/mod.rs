//! The parts of the overload control, and workers that share memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use super::admission_queue::AdmissionQueue;
use super::cluster_record::{ClusterRecord, WorkerEntry};
use super::concurrency_limit::{ConcurrencyLimit, LimitState};
use super::health_detector::HealthDetector;
use super::parameters::INITIAL_LIMIT;
use super::shared::{Gauges, decode, encode};
use super::window::{CallerCounts, CallerObservations, Observations};
use super::{
    Admission, Arrival, ClusterId, DegradeReason, Gauge, Output, OverloadControl, RequestOutcome, Shared,
};
use crate::config::HealthThresholds;
use crate::control::Control;
use crate::generation::Role;
use crate::health::Health;
use crate::measured_health::put_into_force;
use crate::metrics::Metrics;
use crate::request::RequestId;
use crate::store::{Conflict, SharedData};
use crate::time::StoreTime;

fn at(ms: u64) -> StoreTime {
    StoreTime::from_micros(1_000_000_000 + ms * 1_000)
}

mod queue {
    use super::*;

    #[test]
    fn the_most_important_is_sent_first_then_the_greater_place_then_the_older() {
        let mut queue = AdmissionQueue::default();
        for (id, priority, order) in [(1, 2, 9), (2, 8, 1), (3, 8, 5), (4, 8, 5), (5, 200, 0)] {
            queue.push(id, priority, order, at(0));
        }
        assert_eq!(queue.pop_worst(), Some(1));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_best()).collect();
        assert_eq!(order, [5, 3, 4, 2]);
        assert_eq!((queue.len(), queue.priorities()), (0, 0));
    }

    #[test]
    fn a_request_leaves_the_queue_exactly_at_its_deadline() {
        let mut queue = AdmissionQueue::default();
        let rank = queue.push(1, 9, 0, at(10));
        assert_eq!(queue.priorities(), 1 << 54);
        assert_eq!(queue.pop_waiting_since(at(9)), Vec::<RequestId>::new());
        assert_eq!(queue.pop_waiting_since(at(10)), [1]);
        assert_eq!(queue.remove(rank), None);
    }
}

mod limit {
    use super::*;

    const MS: f64 = 1e-3;

    /// A second of 100 responses with this latency, while this percentage of requests waits.
    fn second(limit: &mut ConcurrencyLimit, now_ms: &mut u64, latency_ms: f64, waiting_percent: f64) {
        let (mut epoch, mut since_ms) = (limit.epoch, *now_ms - 1_000);
        for _ in 0..20 {
            *now_ms += 50;
            let waited = 5.0 * waiting_percent / 100.0;
            let mut observed =
                Observations { arrivals: 5.0, waited, ended: 5.0, responses: 5.0, ..Observations::default() };
            if epoch != limit.epoch {
                (epoch, since_ms) = (limit.epoch, *now_ms);
            }
            let age_ms = (*now_ms - since_ms) as f64;
            if age_ms >= latency_ms {
                (0..5).for_each(|_| observed.sample(Duration::from_secs_f64(latency_ms * MS)));
            }
            let open_s = 0.1 * age_ms.min(latency_ms) * age_ms.min(latency_ms) * MS / 2.0;
            limit.update(&observed, open_s, limit.limit(at(*now_ms)), at(*now_ms));
        }
    }

    fn learned() -> (ConcurrencyLimit, u64) {
        let (mut limit, mut now_ms) = (ConcurrencyLimit::new(at(0)), 1_000);
        (0..60).for_each(|_| second(&mut limit, &mut now_ms, 100.0, 0.0));
        let baseline_ms = limit.baseline().unwrap().as_millis();
        assert!(limit.state == LimitState::Open && (95..105).contains(&baseline_ms), "{limit:?}");
        (limit, now_ms)
    }

    #[test]
    fn it_grows_while_requests_wait_and_latency_is_at_the_baseline() {
        for (percent, grows) in [(10.0, false), (35.0, true)] {
            let (mut limit, mut now_ms) = learned();
            let before = limit.limit(at(now_ms));
            second(&mut limit, &mut now_ms, 100.0, percent);
            let has_grown = limit.limit(at(now_ms)) > 1.5 * before;
            assert_eq!(has_grown, grows, "{percent} % wait, {limit:?}");
        }
    }

    #[test]
    fn neither_the_baseline_nor_the_limit_follows_a_queue_that_builds_up() {
        for waiting_percent in [0.0, 5.0] {
            let (mut limit, mut now_ms) = learned();
            let before = limit.limit(at(now_ms));
            for latency_ms in (150..650).step_by(50) {
                second(&mut limit, &mut now_ms, latency_ms.into(), waiting_percent);
            }
            assert!(limit.baseline() < Some(Duration::from_millis(300)), "{waiting_percent}: {limit:?}");
            assert!(limit.limit(at(now_ms)) < 1.3 * before, "{waiting_percent}: {limit:?}");
        }
    }

    #[test]
    fn the_baseline_of_a_cold_start_does_not_follow_a_queue_that_builds_up() {
        let (mut limit, mut now_ms) = (ConcurrencyLimit::new(at(0)), 1_000);
        assert_eq!(limit.limit(at(0)), INITIAL_LIMIT / 2.0);
        for latency_ms in (100..600).step_by(50) {
            second(&mut limit, &mut now_ms, latency_ms.into(), 0.0);
        }
        assert!(limit.baseline() < Some(Duration::from_millis(250)), "{limit:?}");
        assert!(limit.limit(at(now_ms)) < 2.0 * INITIAL_LIMIT, "{limit:?}");
    }

    #[test]
    fn a_cut_that_lowers_latency_stays() {
        let (mut limit, mut now_ms) = learned();
        let before = limit.limit(at(now_ms));
        while !matches!(limit.state, LimitState::Cutting(_)) {
            second(&mut limit, &mut now_ms, 400.0, 90.0);
        }
        assert!(limit.queue_limit() >= before, "an unproved cut is no reason to shed");
        (0..4).for_each(|_| second(&mut limit, &mut now_ms, 140.0, 90.0));
        assert!(limit.limit(at(now_ms)) < before, "{limit:?}");
        assert!(limit.baseline() < Some(Duration::from_millis(115)), "{limit:?}");
    }

    #[test]
    fn a_cut_that_does_not_lower_latency_is_reverted_and_the_baseline_follows_the_measurement() {
        let (mut limit, mut now_ms) = learned();
        (0..30).for_each(|_| second(&mut limit, &mut now_ms, 400.0, 90.0));
        assert!(limit.baseline() > Some(Duration::from_millis(390)), "{limit:?}");
        assert!(limit.limit(at(now_ms)) > 1.0, "{limit:?}");
    }

    #[test]
    fn without_a_response_the_limit_falls_and_recovers_with_the_first_good_ones() {
        let (mut limit, mut now_ms) = learned();
        let waits = Observations { arrivals: 5.0, waited: 5.0, ..Observations::default() };
        let mut until_silent_ms = 0;
        while !matches!(limit.state, LimitState::Silent(_)) {
            (now_ms, until_silent_ms) = (now_ms + 50, until_silent_ms + 50);
            limit.update(&waits, 0.0, 15.0, at(now_ms));
        }
        assert_eq!(until_silent_ms, 1_050, "silence is more than a second");
        second(&mut limit, &mut now_ms, 100.0, 90.0);
        assert!(limit.limit(at(now_ms)) >= INITIAL_LIMIT, "{limit:?}");
    }

    #[test]
    fn with_any_observations_the_limit_stays_at_least_one() {
        let wild = [0.0, -1.0, 1.0, 1e300, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE];
        let mut limit = ConcurrencyLimit::new(at(0));
        for (step, samples) in (0..).zip(wild.iter().cycle().take(200)) {
            let latency_s = wild[step as usize * 3 % wild.len()];
            let observed = Observations {
                arrivals: 1.0,
                waited: wild[step as usize * 5 % wild.len()],
                samples: *samples,
                latency_s,
                ended: *samples,
                responses: 1.0,
                ..Observations::default()
            };
            // A clock that steps back, too.
            let now = at(step * 997 % 1_500);
            limit.learn_usual(&observed, now);
            limit.update(&observed, *samples, *samples, now);
            // NaN and infinity do not survive the record.
            let bytes = serde_json::to_vec(&limit).unwrap();
            limit = serde_json::from_slice(&bytes).unwrap_or_else(|_| ConcurrencyLimit::new(now));
            assert!(limit.limit(now) >= 1.0, "{limit:?}");
        }
    }
}

mod record {
    use super::*;

    fn entry(worker: u64, in_flight: u32, ms: u64) -> WorkerEntry {
        WorkerEntry { worker, at: at(ms), in_flight, demand: 1.0, ..WorkerEntry::default() }
    }

    fn gauges(in_flight: u64) -> Option<Gauges> {
        Some(Gauges::new(in_flight, 0))
    }

    #[test]
    fn gauges_are_decoded_and_encoded() {
        let whole = Gauges::new((3 << 32) + 7, 5 << 48 | 63);
        assert_eq!((whole.in_flight, whole.queues, whole.highest_waiting()), (7, 3, Some(8)));
        assert_eq!(whole.values(), ((3 << 32) + 7, 5 << 48 | 63));
        let below = Gauges::new(u64::MAX, 0);
        assert_eq!((below.in_flight, below.queues), (-1, 0), "a negative value is no queue");
    }

    #[test]
    fn places_of_a_dead_worker_are_released_within_a_second() {
        let mut record = ClusterRecord::new(at(0));
        let observed = Observations::default();
        record.update(&observed, entry(1, 5, 0), gauges(5), at(0));
        let taken_off = (1..).map(|step| step * 50).find(|ms| {
            let excess = record.update(&observed, entry(2, 3, *ms), gauges(8), at(*ms));
            excess.in_flight == 5
        });
        assert!(taken_off.is_some_and(|ms| (500..=1_000).contains(&ms)), "{taken_off:?}");
    }

    #[test]
    fn places_of_live_workers_are_not_released() {
        let mut record = ClusterRecord::new(at(0));
        for ms in (0..10_000).step_by(25) {
            // The gauge is ahead of a worker's last entry, or behind it.
            let in_flight = if ms % 100 < 50 { 9 } else { 7 };
            let entry = entry(ms % 50 / 25, 4, ms);
            let excess = record.update(&Observations::default(), entry, gauges(in_flight), at(ms));
            assert_eq!(excess, Gauges::default(), "{ms}");
        }
    }

    #[test]
    fn without_gauges_the_shares_add_up_to_the_limit_and_follow_demand() {
        let mut record = ClusterRecord::new(at(0));
        for (worker, demand) in [(1, 6.0), (2, 3.0), (3, 1.0)] {
            let entry = WorkerEntry { demand, ..entry(worker, 0, 0) };
            record.update(&Observations::default(), entry, None, at(0));
        }
        let mut sums = [0.0; 3];
        for turn in 0..10 {
            let share = |worker| record.share(worker, 5.0, at(turn * 100));
            let shares = [share(1), share(2), share(3)];
            assert_eq!(shares.iter().sum::<f64>(), 5.0);
            sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
        assert_eq!(sums, [30.0, 15.0, 5.0], "in a second each has its share");
    }

    #[test]
    fn bytes_of_another_version_are_ignored() {
        let record = ClusterRecord::new(at(0));
        assert_eq!(decode::<ClusterRecord>(&encode(&record)), Some(record.clone()));
        let mut other = encode(&record);
        other[0] += 1;
        assert_eq!(decode::<ClusterRecord>(&other), None, "another format");
        let cut = &encode(&record)[..5];
        for bytes in [cut, &[], &[1]] {
            assert_eq!(decode::<ClusterRecord>(bytes), None, "{bytes:?}");
        }
    }
}

mod health {
    use super::*;

    /// The time until this health, at most ten minutes, with callers that send these requests and errors a second.
    fn seconds_until(
        wanted: Health,
        detector: &mut HealthDetector,
        now_ms: &mut u64,
        callers: &[(f64, f64)],
    ) -> Option<f64> {
        let began_ms = *now_ms;
        for _ in 0..600 {
            *now_ms += 1_000;
            let mut observed = CallerObservations::default();
            for (caller, (requests, errors)) in (0..).zip(callers) {
                let (requests, errors) = (*requests, *errors);
                observed.count(caller, CallerCounts { requests, errors, ..CallerCounts::default() });
            }
            detector.update(&observed, &HealthThresholds::default(), at(*now_ms));
            if detector.reason.is_some() == (wanted == Health::Degraded) {
                return Some((*now_ms - began_ms) as f64 / 1e3);
            }
        }
        None
    }

    fn detector() -> HealthDetector {
        HealthDetector::new(at(0))
    }

    #[test]
    fn errors_of_all_callers_turn_health_degraded_and_it_recovers() {
        let (mut detector, mut now_ms) = (detector(), 0);
        let failing = seconds_until(Health::Degraded, &mut detector, &mut now_ms, &[(10.0, 10.0); 20]);
        assert!(failing.is_some_and(|seconds| (3.0..=5.0).contains(&seconds)), "{failing:?}");
        assert_eq!(detector.reason, Some(DegradeReason::ErrorRatio));
        let healthy = seconds_until(Health::Normal, &mut detector, &mut now_ms, &[(10.0, 0.0); 20]);
        assert!(healthy.is_some_and(|seconds| (10.0..=15.0).contains(&seconds)), "{healthy:?}");
    }

    #[test]
    fn one_caller_among_twenty_cannot_turn_health_degraded() {
        let mut callers = vec![(0.25, 0.0); 20];
        callers.push((1_000.0, 1_000.0));
        assert_eq!(seconds_until(Health::Degraded, &mut detector(), &mut 0, &callers), None);
    }

    #[test]
    fn too_few_requests_decide_nothing() {
        let few = [(4.0, 4.0)];
        assert_eq!(seconds_until(Health::Degraded, &mut detector(), &mut 0, &few), None);
    }

    #[test]
    fn more_than_a_tenth_of_requests_shed_turns_health_degraded() {
        for (shed, is_degraded) in [(9.9, false), (10.1, true)] {
            let mut detector = detector();
            for second in 1..60 {
                let mut observed = CallerObservations::default();
                for caller in 0..20 {
                    let requests = 100.0 - shed;
                    observed.count(caller, CallerCounts { requests, shed, ..CallerCounts::default() });
                }
                detector.update(&observed, &HealthThresholds::default(), at(second * 1_000));
            }
            assert_eq!(detector.reason.is_some(), is_degraded, "{shed} %");
        }
    }
}

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

mod workers {
    use super::*;

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
            let arrival = Arrival { cluster: self.cluster, priority, order: 0, caller: 1, completes_later };
            (self.next, self.control.admit(self.next, arrival, at(ms), memory))
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
        for outcome in [
            GOOD,
            RequestOutcome::Response { failed: true },
            RequestOutcome::ClientLeft,
            RequestOutcome::NotSent,
        ] {
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
}
