//! What all workers know of one cluster.

use super::*;

fn entry(in_flight: u32, ms: u64) -> WorkerEntry {
    WorkerEntry { at: at(ms), in_flight, demand: 1.0, ..WorkerEntry::default() }
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
    let mut record = ClusterRecord::default();
    let observed = Observations::default();
    record.update(&observed, 1, entry(5, 0), gauges(5));
    let taken_off = (1..).map(|step| step * 50).find(|ms| {
        let excess = record.update(&observed, 2, entry(3, *ms), gauges(8));
        excess.in_flight == 5
    });
    assert!(taken_off.is_some_and(|ms| (500..=1_000).contains(&ms)), "{taken_off:?}");
}

#[test]
fn places_of_live_workers_are_not_released() {
    let mut record = ClusterRecord::default();
    for ms in (0..10_000).step_by(25) {
        // The gauge is ahead of a worker's last entry, or behind it.
        let in_flight = if ms % 100 < 50 { 9 } else { 7 };
        let excess = record.update(&Observations::default(), ms % 50 / 25, entry(4, ms), gauges(in_flight));
        assert_eq!(excess, Gauges::default(), "{ms}");
    }
}

#[test]
fn without_gauges_the_shares_add_up_to_the_limit_and_follow_demand() {
    let mut record = ClusterRecord::default();
    for (worker, demand) in [(1, 6.0), (2, 3.0), (3, 1.0)] {
        let entry = WorkerEntry { demand, ..entry(0, 0) };
        record.update(&Observations::default(), worker, entry, None);
    }
    record.limit.target = 5.0;
    let mut sums = [0.0; 3];
    for turn in 0..10 {
        let share = |worker| record.share(worker, at(turn * 100));
        let shares = [share(1), share(2), share(3)];
        assert_eq!(shares.iter().sum::<f64>(), 5.0);
        sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
    assert_eq!(sums, [30.0, 15.0, 5.0], "in a second each has its share");
}

#[test]
fn incomplete_bytes_are_ignored() {
    let record = ClusterRecord::default();
    let encoded = postcard::to_allocvec(&record).unwrap();
    assert_eq!(decode::<ClusterRecord>(&encoded), Some(record));
    for bytes in [&encoded[..5], &[], &[1]] {
        assert_eq!(decode::<ClusterRecord>(bytes), None, "{bytes:?}");
    }
}
