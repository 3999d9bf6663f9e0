//! A million client addresses do not grow Envoy's memory beyond the table, and do not reset the bucket of a refused
//! caller.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::load::{self, StatusCounts};
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

use crate::support::two_tiers;

const ADDRESSES: usize = 1_000_000;
const ROUNDS: usize = 10;
/// For each thread of the load.
const CONNECTIONS: usize = 16;
const MAX_BUCKETS: u64 = 65_536;
const CAPACITY: u64 = 5;

/// The table itself, and the initial growth of V8 and the allocator.
const MOST_GROWTH_KIB: u64 = 64 * 1_024;
/// Memory that grows with the number of addresses would still grow in the second half.
const MOST_LATE_GROWTH_KIB: u64 = 8 * 1_024;

/// A request from the `n`th address; every fourth one has a /64 of its own.
fn encode(n: usize, bytes: &mut Vec<u8>) {
    let n = u32::try_from(n).expect("a million");
    bytes.extend_from_slice(b"GET / HTTP/1.1\r\nhost: e2e\r\nx-forwarded-for: ");
    let address = if n % 4 == 3 {
        Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(n) << 64) | 1).to_string()
    } else {
        Ipv4Addr::from(0x0a00_0000 + n).to_string()
    };
    bytes.extend_from_slice(address.as_bytes());
    bytes.extend_from_slice(b"\r\n\r\n");
}

#[test]
fn a_million_addresses_neither_grow_envoy_nor_reset_a_refused_callers_bucket() {
    let _alone = wait::alone();
    let mut config = two_tiers(CAPACITY, 100);
    config["store"] = json!({"kind": "shared_data", "max_buckets": MAX_BUCKETS});
    let envoy = Setup::new().config(&config).trusted_hops(1).quiet().start();
    let address = envoy.address();

    let refused_caller = Request::get("/").forwarded_for("203.0.113.77");
    let spent = load::burst(address, 4, 10, &refused_caller);
    assert_eq!(load::count(&spent, 200), CAPACITY);
    assert_eq!(envoy.send(&Request::get("/").key("pro")).remaining(), 99);

    let begun = Instant::now();
    let pause = Duration::from_millis(10);
    let ((counts, sizes), of_refused) = load::during(address, 1, pause, &refused_caller, || {
        let mut counts = StatusCounts::new();
        let mut sizes = vec![envoy.resident_kib()];
        for round in 0..ROUNDS {
            let numbers = round * ADDRESSES / ROUNDS..(round + 1) * ADDRESSES / ROUNDS;
            counts = load::merge(counts, load::flood(address, CONNECTIONS, numbers, encode));
            sizes.push(envoy.resident_kib());
            eprintln!(
                "{:>3} % of a million addresses in {:.1?}, Envoy uses {} MiB",
                (round + 1) * 100 / ROUNDS,
                begun.elapsed(),
                sizes[round + 1] / 1_024
            );
        }
        (counts, sizes)
    });

    let answered = load::count(&counts, 200) + load::count(&counts, 429);
    assert_eq!(answered, ADDRESSES as u64, "{counts:?}");
    assert!(of_refused.keys().eq([&429]), "the refused caller was admitted: {of_refused:?}");
    assert!(load::count(&of_refused, 429) > 100, "{of_refused:?}");
    let grown = |from: usize, to: usize| sizes[to].saturating_sub(sizes[from]);
    assert!(grown(0, ROUNDS) < MOST_GROWTH_KIB, "KiB by round: {sizes:?}");
    assert!(grown(ROUNDS / 2, ROUNDS) < MOST_LATE_GROWTH_KIB, "KiB by round: {sizes:?}");

    let admitted = load::count(&counts, 200);
    assert!(admitted >= MAX_BUCKETS, "new callers are admitted while the table has room: {counts:?}");
    assert!(admitted <= MAX_BUCKETS * CAPACITY, "no caller has more than its capacity: {counts:?}");
    let evictions = envoy.metric("rate_limiter_bucket_evictions_total", &[]);
    assert!(evictions.is_some_and(|n| n > 0.0), "{evictions:?}");
    assert_eq!(envoy.send(&refused_caller).status, 429);
    let keyed = envoy.send(&Request::get("/").key("pro"));
    assert_eq!((keyed.status, keyed.remaining()), (200, 98), "keys have their own bucket");
}
