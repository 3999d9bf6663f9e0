//! Identification of callers by address: spec section 2, point 3.

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use serde_json::{Value, json};

use crate::support::two_tiers;

/// The capacity of every caller's bucket here.
const CAPACITY: u64 = 50;

fn config() -> Value {
    two_tiers(CAPACITY, CAPACITY)
}

/// Sends one request per entry and checks which share a bucket: exactly the entries with the same letter.
#[track_caller]
fn assert_grouping(envoy: &Envoy, entries: &[(char, &str)]) {
    let mut spent = std::collections::BTreeMap::new();
    for (group, forwarded_for) in entries {
        let spent = spent.entry(*group).or_insert(0);
        *spent += 1;
        let reply = envoy.send(&Request::get("/").forwarded_for(forwarded_for));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.remaining(), CAPACITY - *spent, "{forwarded_for:?} in group {group}");
    }
}

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

#[test]
fn untrusted_forwarded_for_is_ignored() {
    let envoy = Setup::new().config(&config()).start();
    assert_grouping(
        &envoy,
        &[
            ('a', "203.0.113.1"),
            ('a', "203.0.113.2"),
            ('a', "203.0.113.3, 198.51.100.1"),
            ('a', "2001:db8::1"),
            ('a', "127.0.0.2"),
            ('a', "nonsense"),
        ],
    );
}

#[test]
fn with_one_trusted_hop_the_last_entry_is_the_client() {
    let envoy = Setup::new().config(&config()).trusted_hops(1).start();
    assert_grouping(
        &envoy,
        &[
            ('a', "203.0.113.1"),
            ('b', "203.0.113.2"),
            ('a', "203.0.113.1"),
            // What the client writes before the trusted proxy's entry is ignored.
            ('a', "198.51.100.1, 203.0.113.1"),
            ('a', "198.51.100.2, 203.0.113.1"),
            ('b', "203.0.113.1, 203.0.113.2"),
        ],
    );
}

#[test]
fn with_two_trusted_hops_the_last_but_one_entry_is_the_client() {
    let envoy = Setup::new().config(&config()).trusted_hops(2).start();
    assert_grouping(
        &envoy,
        &[
            ('a', "203.0.113.1, 192.0.2.1"),
            ('b', "203.0.113.2, 192.0.2.1"),
            ('a', "203.0.113.1, 192.0.2.2"),
            ('a', "198.51.100.1, 203.0.113.1, 192.0.2.1"),
        ],
    );
}

#[test]
fn behind_a_proxy_that_appends_the_configured_hops_decide() {
    // `use_remote_address: false`: the last entry is the client's; with one hop it is the entry before.
    let behind = |hops: u32| {
        Setup::new()
            .config(&config())
            .hcm(&json!({"use_remote_address": false, "xff_num_trusted_hops": hops}))
            .start()
    };
    assert_grouping(
        &behind(0),
        &[('a', "203.0.113.1"), ('a', "198.51.100.1, 203.0.113.1"), ('b', "203.0.113.2")],
    );
    assert_grouping(
        &behind(1),
        &[
            ('a', "203.0.113.1, 192.0.2.1"),
            ('a', "198.51.100.1, 203.0.113.1, 192.0.2.2"),
            ('b', "203.0.113.2, 192.0.2.1"),
        ],
    );
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
