//! Callers: addresses in canonical form, keys as hashes.

use dynamic_rate_limiter::identity::{KeyHash, Network, reads_as_address};

#[test]
fn an_address_is_read_without_its_port_and_in_canonical_form() {
    let cases = [
        ("192.0.2.1:40000", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:40000", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("[2001:DB8:1:2::ffff]:65535", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:80", "fe80::/64"),
        ("[::1]:80", "::/64"),
        ("0.0.0.0:0", "0.0.0.0"),
        ("", "unknown"),
        ("/run/client.sock", "unknown"),
        ("@abstract", "unknown"),
        ("192.0.2.1:port", "unknown"),
        ("192.0.2.256:1", "unknown"),
        ("[2001:db8::1", "unknown"),
        ("192.0.2.1:1:2", "unknown"),
    ];
    for (source, bucket) in cases {
        assert_eq!(Network::of_source(source.as_bytes(), 64).to_string(), bucket, "{source}");
    }
    assert_eq!(Network::of_source(b"\xff\xfe", 64), Network::Unknown);
}

#[test]
fn an_ipv6_prefix_of_any_length_masks_the_rest() {
    let all_ones = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:1";
    let cases =
        [(1, "8000::/1"), (48, "ffff:ffff:ffff::/48"), (127, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127")];
    for (prefix, bucket) in cases {
        assert_eq!(Network::of_source(all_ones.as_bytes(), prefix).to_string(), bucket);
    }
    let whole = Network::of_source(all_ones.as_bytes(), 128);
    assert_eq!(whole.to_string(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
}

#[test]
fn different_networks_have_different_bytes() {
    let sources = ["0.0.0.0", "0.0.0.1", "::", "::1:0:0:0:0", "1.2.3.4", "[::102:304]", "x"];
    let networks: std::collections::HashSet<_> =
        sources.iter().map(|source| Network::of_source(source.as_bytes(), 64).bytes()).collect();
    // `::` and `::102:304` are of the same /64.
    assert_eq!(networks.len(), sources.len() - 1);
}

#[test]
fn names_that_look_like_addresses_are_recognised() {
    for name in [
        "127.0.0.1",
        "::1",
        "2001:db8::/64",
        "10.0.0.0/8",
        "[::1]",
        "1.2.3.4:80",
        "unknown",
        "::ffff:1.2.3.4",
    ] {
        assert!(reads_as_address(name), "{name}");
    }
    for name in ["pro", "acme", "1.2.3", "1.2.3.4.5", "deadbeef", "a:b", "256.1.1.1"] {
        assert!(!reads_as_address(name), "{name}");
    }
}

#[test]
fn a_hash_is_parsed_from_hex_and_its_debug_output_shows_nothing() {
    let secret = KeyHash::of(b"abc");
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(secret.to_hex(), hex);
    assert_eq!(secret.short_hex(), "ba7816bf8f01cfea");
    assert_eq!(KeyHash::from_hex(&hex.to_uppercase()), Some(secret));
    assert!(secret.matches(KeyHash::of(b"abc")) && !secret.matches(KeyHash::of(b"abd")));
    for wrong in ["", "ba78", &hex[1..], &hex.replace('b', "g"), &format!("{hex}00"), &"é".repeat(32)] {
        assert_eq!(KeyHash::from_hex(wrong), None, "{wrong}");
    }
    assert!(!format!("{secret:?}").contains("ba78"));
}
