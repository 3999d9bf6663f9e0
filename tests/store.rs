//! Buckets in shared data: races, bounds, and the guarantee of the address table.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{FakeData, IntervalOracle, SECOND, limit};
use dynamic_rate_limiter::bucket::Outcome;
use dynamic_rate_limiter::identity::Network;
use dynamic_rate_limiter::store::{AddressTable, Contended, Taken, keyed_bucket_key, take_keyed};
use dynamic_rate_limiter::tier::Limit;
use dynamic_rate_limiter::time::whole_micros;
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
fn two_workers_that_race_for_a_new_bucket_share_it() {
    let data = FakeData::at(SECOND);
    let key = keyed_bucket_key("test", "pro");
    let limit = limit(2, 1);
    let theirs = key.clone();
    data.before_next_write(move |data| {
        assert_eq!(take_keyed(data, &theirs, limit).map(|taken| taken.value.verdict.remaining), Ok(1));
    });
    let ours = take_keyed(&data, &key, limit).expect("no contention");
    assert_eq!((ours.value.verdict.remaining, ours.retries), (0, 1), "the second token, after a lost race");
    assert_eq!(take_keyed(&data, &key, limit).map(|taken| taken.value.verdict.outcome), Ok(Outcome::Refused));
}

#[test]
fn two_workers_that_race_for_the_last_token_get_it_once() {
    let data = FakeData::at(SECOND);
    let key = keyed_bucket_key("test", "pro");
    let limit = limit(2, 1);
    take_keyed(&data, &key, limit).expect("no contention");
    let theirs = key.clone();
    data.before_next_write(move |data| {
        assert_eq!(
            take_keyed(data, &theirs, limit).map(|taken| taken.value.verdict.outcome),
            Ok(Outcome::Admitted)
        );
    });
    assert_eq!(take_keyed(&data, &key, limit).map(|taken| taken.value.verdict.outcome), Ok(Outcome::Refused));
}

#[test]
fn a_worker_that_loses_every_race_gives_up() {
    let data = FakeData::at(SECOND);
    data.refuse_writes();
    assert_eq!(take_keyed(&data, "key", limit(1, 1)), Err(Contended));
    let (reads, writes) = data.take_calls();
    assert_eq!((reads, writes), (256, 256));
}

#[test]
fn a_refusal_reads_once_and_writes_nothing() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 64);
    let limit = limit(1, 1);
    take_keyed(&data, "key", limit).expect("no contention");
    take(&data, &table, 1, limit);
    data.take_calls();
    take_keyed(&data, "key", limit).expect("no contention");
    assert_eq!(data.take_calls(), (1, 0));
    take(&data, &table, 1, limit);
    assert_eq!(data.take_calls(), (1, 0));
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
    let limit = limit(2, 1);
    let first = AddressTable::open(&data, "test", 64, (1, 2)).expect("no contention");
    assert_eq!(take(&data, &first, 1, limit).verdict.remaining, 1);
    let second = AddressTable::open(&data, "test", 128, (3, 4)).expect("no contention");
    assert_eq!(second.max_buckets(), 64);
    assert_eq!(take(&data, &second, 1, limit).verdict.remaining, 0, "a reload hands back no token");
    let other = AddressTable::open(&data, "other", 128, (3, 4)).expect("no contention");
    assert_eq!(other.max_buckets(), 128);
    assert_eq!(take(&data, &other, 1, limit).verdict.remaining, 1, "another namespace is another limiter");
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
fn an_address_that_is_refused_stays_refused_through_a_flood() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 16);
    let limit = limit(5, 1);
    while take(&data, &table, 1, limit).verdict.outcome == Outcome::Admitted {}
    for number in 2..50_000 {
        data.advance(10);
        take(&data, &table, number, limit);
        if number % 100 == 0 {
            assert_eq!(take(&data, &table, 1, limit).verdict.outcome, Outcome::Refused, "after {number}");
        }
    }
}

#[test]
fn an_eviction_is_counted_unless_the_bucket_had_expired() {
    let data = FakeData::at(SECOND);
    let table = table(&data, 1);
    let limit = limit(2, 1_000_000);
    assert!(!take(&data, &table, 1, limit).evicted, "the place was free");
    assert!(take(&data, &table, 2, limit).evicted, "the bucket was in use");
    data.advance(2 * SECOND);
    assert!(take(&data, &table, 3, limit).evicted, "the bucket was full, and not yet expired");
    data.advance(whole_micros(TTL) - 1);
    assert!(take(&data, &table, 4, limit).evicted, "a tick before it expired");
    data.advance(whole_micros(TTL));
    assert!(!take(&data, &table, 5, limit).evicted, "expired");
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
    for _ in 0..3 {
        take(&data, &table, 1, limit);
    }
    take(&data, &table, 2, limit);
    let newcomer = take(&data, &table, 3, limit);
    assert_eq!(newcomer.verdict.remaining, 2, "inherits the three tokens of address 2");
    assert_eq!(take(&data, &table, 1, limit).verdict.remaining, 0, "address 1 kept its bucket");
    let back = take(&data, &table, 2, limit);
    assert_eq!(back.verdict.remaining, 1, "address 2 comes back to no more than it had");
}

/// With any number of addresses, the table never admits what the definition forbids.
fn check_safety(max_buckets: u32, limit: Limit, requests: Vec<(u32, u32)>) -> Result<(), TestCaseError> {
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
    Ok(())
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
        check_safety(max_buckets, limit(capacity, rate), requests)?;
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
