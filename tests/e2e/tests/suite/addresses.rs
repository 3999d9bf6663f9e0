//! Identification of callers by address: spec section 2, point 3.

use e2e::client::{Connection, Request};
use e2e::setup::Setup;
use scenarios::addresses::{CAPACITY, assert_grouping, config};
use serde_json::json;

#[test]
fn every_client_address_has_its_own_bucket_whatever_its_port() {
    let envoy = Setup::new().config(&config()).start();
    for round in 1..=3 {
        for last in 1..=5 {
            let mut connection = Connection::open_from(last, envoy.address());
            let reply = connection.send(&Request::get("/"));
            assert_eq!(reply.remaining(), CAPACITY - round, "127.0.0.{last}");
        }
    }
}

/// `use_remote_address`, the number of trusted hops, and values of `x-forwarded-for`, each with the name of its bucket.
type Grouping<'a> = (bool, u32, &'a [(char, &'a str)]);

#[test]
fn the_client_is_the_entry_that_the_last_trusted_hop_has_written() {
    let cases: [Grouping; 5] = [
        // No entry is trusted.
        (
            true,
            0,
            &[
                ('a', "203.0.113.1"),
                ('a', "203.0.113.2"),
                ('a', "203.0.113.3, 198.51.100.1"),
                ('a', "2001:db8::1"),
                ('a', "127.0.0.2"),
                ('a', "nonsense"),
            ],
        ),
        // What the client writes before the trusted proxy's entry is ignored.
        (
            true,
            1,
            &[
                ('a', "203.0.113.1"),
                ('b', "203.0.113.2"),
                ('a', "203.0.113.1"),
                ('a', "198.51.100.1, 203.0.113.1"),
                ('a', "198.51.100.2, 203.0.113.1"),
                ('b', "203.0.113.1, 203.0.113.2"),
            ],
        ),
        (
            true,
            2,
            &[
                ('a', "203.0.113.1, 192.0.2.1"),
                ('b', "203.0.113.2, 192.0.2.1"),
                ('a', "203.0.113.1, 192.0.2.2"),
                ('a', "198.51.100.1, 203.0.113.1, 192.0.2.1"),
            ],
        ),
        // Behind a proxy that appends: the last entry is the client's; with one hop it is the entry before.
        (false, 0, &[('a', "203.0.113.1"), ('a', "198.51.100.1, 203.0.113.1"), ('b', "203.0.113.2")]),
        (
            false,
            1,
            &[
                ('a', "203.0.113.1, 192.0.2.1"),
                ('a', "198.51.100.1, 203.0.113.1, 192.0.2.2"),
                ('b', "203.0.113.2, 192.0.2.1"),
            ],
        ),
    ];
    for (use_remote_address, hops, entries) in cases {
        let hcm = json!({"use_remote_address": use_remote_address, "xff_num_trusted_hops": hops});
        eprintln!("{hcm}");
        let envoy = Setup::new().config(&config()).hcm(&hcm).start();
        assert_grouping(entries, |value| envoy.send(&Request::get("/").forwarded_for(value)));
    }
}

#[test]
fn a_client_is_the_same_on_a_dual_stack_listener() {
    let envoy = Setup::new().config(&config()).dual_stack_listener("dual").start();
    let dual = envoy.listener("dual").port();
    let main = Connection::open(envoy.address()).send(&Request::get("/"));
    assert_eq!(main.remaining(), CAPACITY - 1);
    let by_ipv4 = Connection::open(([127, 0, 0, 1], dual).into()).send(&Request::get("/"));
    assert_eq!(by_ipv4.remaining(), CAPACITY - 2);
    let loopback: std::net::Ipv6Addr = "::1".parse().expect("an address");
    let by_ipv6 = Connection::open((loopback, dual).into()).send(&Request::get("/"));
    assert_eq!(by_ipv6.remaining(), CAPACITY - 1, "another address");
}
