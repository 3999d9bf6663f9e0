//! `source.address`, after a byte for the length of the prefix: a name that reads as an address and means the same.

use dynamic_rate_limiter::identity::{KeyHash, Network, reads_as_address};

pub(super) const WORDS: &str = "\
    127.0.0.1|0.0.0.0|255.255.255.255|::|::1|::ffff:1.2.3.4|::ffff:0:0|2001:db8::|fe80::1%eth0|[|]|]:|\
    :0|:65535|:65536|%|/|/64|/128|unknown|00|0x1| ";

pub(super) fn check(bytes: &[u8]) {
    let (prefix, source) = bytes.split_first().map_or((64, bytes), |(first, rest)| (first % 128 + 1, rest));
    let network = Network::of_source(source, prefix);
    let name = network.to_string();
    assert!(reads_as_address(&name), "an id could be {name}");
    // Without the prefix, the name parses as the same address.
    let host = name.split('/').next().unwrap_or_default();
    let again = Network::of_source(host.as_bytes(), prefix);
    assert_eq!(again, network, "{name}");
    assert_eq!(again.bytes(), network.bytes());
    let with_port = if host.contains(':') { format!("[{host}]:1") } else { format!("{host}:1") };
    assert_eq!(Network::of_source(with_port.as_bytes(), prefix), network, "{with_port}");
    if let Ok(text) = std::str::from_utf8(source) {
        // A zone may contain a slash; an id may not.
        assert!(network == Network::Unknown || text.contains('/') || reads_as_address(text), "{text}");
        if let Some(secret) = KeyHash::from_hex(text) {
            assert_eq!(secret.to_hex(), text.to_ascii_lowercase());
        }
    }
}
