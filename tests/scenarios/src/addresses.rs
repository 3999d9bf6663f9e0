//! Identification of callers by address: spec section 2, point 3.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::two_tiers;
use crate::{Host, Request, Response, Setup};

/// The capacity of every caller's bucket here.
pub const CAPACITY: u64 = 50;

pub fn config() -> Value {
    two_tiers(CAPACITY, CAPACITY)
}

/// Sends one request per entry and checks which share a bucket: exactly the entries with the same letter.
#[track_caller]
pub fn assert_grouping(entries: &[(char, &str)], mut send: impl FnMut(&str) -> Response) {
    let mut spent = BTreeMap::new();
    for (group, address) in entries {
        let spent = spent.entry(*group).or_insert(0);
        *spent += 1;
        let reply = send(address);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.remaining(), CAPACITY - *spent, "{address:?} in group {group}");
    }
}

#[track_caller]
fn assert_addresses_grouped(host: &dyn Host, config: &Value, entries: &[(char, &str)]) {
    let mut gateway = host.start(&Setup::new().config(config).addresses());
    assert_grouping(entries, |address| gateway.send(&Request::get("/").from(address)));
}

pub fn ipv6_clients_are_grouped_by_64_bits(host: &dyn Host) {
    let entries = [
        ('a', "2001:db8:1:2::1"),
        ('a', "2001:db8:1:2::2"),
        ('a', "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ('a', "2001:0DB8:0001:0002:0000:0000:0000:0001"),
        ('b', "2001:db8:1:3::1"),
        ('c', "2001:db8:2:2::1"),
    ];
    assert_addresses_grouped(host, &config(), &entries);
}

pub fn the_ipv6_prefix_is_configurable(host: &dyn Host) {
    let mut config = config();
    config["ipv6_prefix"] = json!(128);
    let entries = [('a', "2001:db8:1:2::1"), ('b', "2001:db8:1:2::2"), ('a', "2001:db8:1:2::1")];
    assert_addresses_grouped(host, &config, &entries);
    config["ipv6_prefix"] = json!(56);
    let entries = [('a', "2001:db8:1:100::1"), ('a', "2001:db8:1:1ff::1"), ('b', "2001:db8:1:200::1")];
    assert_addresses_grouped(host, &config, &entries);
}

pub fn an_ipv4_mapped_address_is_the_ipv4_address(host: &dyn Host) {
    let entries = [
        ('a', "203.0.113.1"),
        ('a', "::ffff:203.0.113.1"),
        ('a', "::ffff:cb00:7101"),
        ('b', "::ffff:203.0.113.2"),
        ('b', "203.0.113.2"),
    ];
    assert_addresses_grouped(host, &config(), &entries);
}
