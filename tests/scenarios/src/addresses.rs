//! Identification of callers by address: spec section 2, point 3.
#![allow(missing_docs, reason = "a scenario's name says what it shows")]

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::two_tiers;
use crate::{Gateway, Host, Request, Setup};

/// The capacity of every caller's bucket here.
const CAPACITY: u64 = 50;

fn config() -> Value {
    two_tiers(CAPACITY, CAPACITY)
}

/// Sends one request per entry and checks which share a bucket: exactly the entries with the same letter.
#[track_caller]
fn assert_grouping(gateway: &mut dyn Gateway, entries: &[(char, &str)]) {
    let mut spent = BTreeMap::new();
    for (group, address) in entries {
        let spent = spent.entry(*group).or_insert(0);
        *spent += 1;
        let reply = gateway.send(&Request::get("/").from(address));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.remaining(), CAPACITY - *spent, "{address:?} in group {group}");
    }
}

pub fn ipv6_clients_are_grouped_by_64_bits(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&config()).addresses());
    assert_grouping(
        &mut *gateway,
        &[
            ('a', "2001:db8:1:2::1"),
            ('a', "2001:db8:1:2::2"),
            ('a', "2001:db8:1:2:ffff:ffff:ffff:ffff"),
            ('a', "2001:0DB8:0001:0002:0000:0000:0000:0001"),
            ('b', "2001:db8:1:3::1"),
            ('c', "2001:db8:2:2::1"),
        ],
    );
}

pub fn the_ipv6_prefix_is_configurable(host: &dyn Host) {
    let with_prefix = |bits: u8| {
        let mut config = config();
        config["ipv6_prefix"] = json!(bits);
        host.start(&Setup::new().config(&config).addresses())
    };
    assert_grouping(
        &mut *with_prefix(128),
        &[('a', "2001:db8:1:2::1"), ('b', "2001:db8:1:2::2"), ('a', "2001:db8:1:2::1")],
    );
    assert_grouping(
        &mut *with_prefix(56),
        &[('a', "2001:db8:1:100::1"), ('a', "2001:db8:1:1ff::1"), ('b', "2001:db8:1:200::1")],
    );
}

pub fn an_ipv4_mapped_address_is_the_ipv4_address(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&config()).addresses());
    assert_grouping(
        &mut *gateway,
        &[
            ('a', "203.0.113.1"),
            ('a', "::ffff:203.0.113.1"),
            ('a', "::ffff:cb00:7101"),
            ('b', "::ffff:203.0.113.2"),
            ('b', "203.0.113.2"),
        ],
    );
}
