//! Buckets in shared data: bounds, and the guarantee of the address table. `tests/interleavings.rs` has the races.

use std::collections::HashMap;
use std::time::Duration;

use dynamic_rate_limiter::bucket::Outcome;
use dynamic_rate_limiter::identity::Network;
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::store::{AddressTable, Contended, Taken, take_keyed};
use dynamic_rate_limiter::time::whole_micros;
use harness::{FakeData, IntervalOracle, SECOND, limit};
use proptest::prelude::*;

const TTL: Duration = Duration::from_secs(60);

fn network(number: u32) -> Network {
    Network::of_source(std::net::Ipv4Addr::from_bits(number).to_string().as_bytes(), 64)
}

fn table(data: &FakeData, max_buckets: u32) -> AddressTable {
    AddressTable::open(data, "test", max_buckets, (1, 2)).expect("no contention")
}

fn take(data: &FakeData, table: &AddressTable, number: u32, limit: Limit) -> Taken {
    table.take(data, network(number), limit, TTL).expect("no contention").value
}

#[test]
fn a_worker_that_loses_every_race_gives_up() {
    let data = FakeData::at(SECOND);
    data.refuse_writes();
    assert_eq!(take_keyed(&data, "key", limit(1, 1)), Err(Contended));
    assert_eq!(data.take_calls(), (256, 256));
}

#[test]
fn a_rejection_reads_once_and_writes_nothing() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 64);
    // (reads and writes of an admission, and of a rejection)
    for calls in [(1, 1), (1, 0)] {
        data.take_calls();
        take_keyed(&data, "key", limit(1, 1)).expect("no contention");
        assert_eq!(data.take_calls(), calls);
        take(&data, &table, 1, limit(1, 1));
        assert_eq!(data.take_calls(), calls);
    }
}

#[test]
fn invalid_bytes_count_as_no_bucket() {
    let data = FakeData::at(SECOND);
    let limit = limit(3, 1);
    for invalid in [&b""[..], b"x", &[0xff; 15], &[0; 17]] {
        data.put("key", invalid);
        assert_eq!(take_keyed(&data, "key", limit).map(|taken| taken.value.verdict.remaining), Ok(2));
    }
    let table = table(&data, 8);
    for invalid in [&[7; 23][..], &[7; 25], &[7; 8 * 24 + 24]] {
        data.put("rate_limiter/test/address/0", invalid);
        assert_eq!(take(&data, &table, 1, limit).verdict.remaining, 2);
    }
}

#[test]
fn the_table_keeps_its_first_hash_key_and_size() {
    let data = FakeData::at(SECOND);
    // (namespace, size, hash key, size in force, tokens left): a reload hands back no token, and another namespace is
    // another limiter.
    let cases = [("test", 64, (1, 2), 64, 1), ("test", 128, (3, 4), 64, 0), ("other", 128, (3, 4), 128, 1)];
    for (namespace, max_buckets, hash_key, size, left) in cases {
        let table = AddressTable::open(&data, namespace, max_buckets, hash_key).expect("no contention");
        assert_eq!(table.max_buckets(), size, "{namespace} with {max_buckets}");
        let taken = take(&data, &table, 1, limit(2, 1));
        assert_eq!(taken.verdict.remaining, left, "{namespace} with {max_buckets}");
    }
}

#[test]
fn the_number_of_buckets_is_bounded() {
    for (max_buckets, most) in [(1, 1), (7, 7), (8, 8), (20, 16), (64, 64)] {
        let data = FakeData::at(SECOND);
        let table = table(&data, max_buckets);
        assert_eq!(table.max_buckets(), most);
        let before = data.size();
        for number in 0..10_000 {
            take(&data, &table, number, limit(2, 1_000_000));
        }
        assert_eq!(data.size() - before, most as usize * 24, "{max_buckets} buckets at most");
    }
}

#[test]
fn an_eviction_is_counted_unless_the_bucket_had_expired() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 1);
    let ttl_us = whole_micros(TTL);
    let cases = [
        (0, false, "the place was free"),
        (0, true, "the bucket was in use"),
        (2 * SECOND, true, "the bucket was full, and not yet expired"),
        (ttl_us - 1, true, "a tick before it expired"),
        (ttl_us, false, "expired"),
    ];
    for (number, (later_us, evicted, what)) in (1..).zip(cases) {
        data.advance(later_us);
        assert_eq!(take(&data, &table, number, limit(2, 1_000_000)).evicted, evicted, "{what}");
    }
}

#[test]
fn a_bucket_does_not_expire_before_it_is_full() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 1);
    let slow = limit(2, 1_000);
    let fill_us = 2_000 * SECOND;
    take(&data, &table, 1, slow);
    data.advance(whole_micros(TTL));
    assert_eq!(take(&data, &table, 1, slow).verdict.remaining, 0, "long after the ttl, and not full");
    data.advance(fill_us - 1);
    assert!(take(&data, &table, 2, slow).evicted);
}

#[test]
fn a_new_bucket_takes_a_free_place_or_replaces_the_fullest_bucket() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 2);
    let limit = limit(4, 1);
    let remaining = |number| take(&data, &table, number, limit).verdict.remaining;
    assert_eq!([1, 1, 1, 2].map(remaining), [3, 2, 1, 3]);
    assert_eq!(remaining(3), 2, "inherits the three tokens of address 2");
    assert_eq!(remaining(1), 0, "address 1 kept its bucket");
    assert_eq!(remaining(2), 1, "address 2 comes back to no more than it had");
}

#[test]
fn a_rejected_newcomer_evicts_no_bucket_when_the_clock_steps_back() {
    let data = FakeData::at(2 * SECOND);
    let table = table(&data, 1);
    take(&data, &table, 1, limit(1, 1));
    data.set_time(SECOND);
    let newcomer = take(&data, &table, 2, limit(1, 1));
    assert_eq!((newcomer.verdict.outcome, newcomer.evicted), (Outcome::Rejected, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Safety for every address, with any number of addresses and places.
    #[test]
    fn pushing_addresses_out_never_mints_a_token(
        max_buckets in 1..10_u32,
        capacity in 1..5_u32,
        rate in 1..3_000_000_u64,
        requests in prop::collection::vec((0..20_u32, 0..400_000_u32), 1..300),
    ) {
        let limit = limit(capacity, rate);
        let data = FakeData::at(1_000 * SECOND);
        let table = table(&data, max_buckets);
        let mut oracles: HashMap<u32, IntervalOracle> = HashMap::new();
        for (number, step_us) in requests {
            data.advance(step_us.into());
            let taken = take(&data, &table, number, limit);
            let oracle = oracles.entry(number).or_insert_with(|| IntervalOracle::new(limit));
            let allowed = oracle.may_admit(taken.at.as_micros());
            if taken.verdict.outcome == Outcome::Admitted {
                prop_assert!(allowed, "address {} got a token that it did not have", number);
                oracle.admit();
            }
        }
    }

    /// While all addresses fit, the table has no effect.
    #[test]
    fn with_room_for_all_every_address_has_a_bucket_of_its_own(
        requests in prop::collection::vec((0..8_u32, 0..400_000_u32), 1..200),
    ) {
        let (data, alone) = (FakeData::at(SECOND), FakeData::at(SECOND));
        let table = table(&data, 8);
        let limit = limit(3, 900_000);
        for (number, step_us) in requests {
            data.advance(step_us.into());
            alone.advance(step_us.into());
            let own = take_keyed(&alone, &number.to_string(), limit).expect("no contention").value;
            prop_assert_eq!(take(&data, &table, number, limit), own);
        }
    }
}
