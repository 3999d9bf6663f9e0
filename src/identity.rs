//! Who the caller is: API keys and client addresses, as hashes and canonical networks.
//!
//! A key is known here only by its SHA-256; an address only as Envoy reports it. No request header is ever
//! taken for an address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

/// Longest `X-API-Key` that is looked at, in bytes. A longer one is an unknown key.
pub const MAX_KEY_BYTES: usize = 256;

/// SHA-256 of an API key or an admin token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub fn of(plain: &[u8]) -> Self {
        KeyHash(Sha256::digest(plain).into())
    }

    /// Reads 64 hexadecimal digits, either case.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        Some(KeyHash(hash))
    }

    pub fn bytes(self) -> [u8; 32] {
        self.0
    }

    /// The hash in 64 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }

    /// The first 16 of the 64 digits: names a bucket whose key has no `id`.
    pub fn short_hex(self) -> String {
        hex(self.0.get(..8).unwrap_or_default())
    }

    /// Compares in time that does not depend on where two hashes differ.
    pub fn matches(self, other: Self) -> bool {
        use subtle::ConstantTimeEq;
        self.0.ct_eq(&other.0).into()
    }
}

/// Shows nothing: a hash of a short secret can be guessed back.
impl fmt::Debug for KeyHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyHash(…)")
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]).collect()
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The network that a caller without a known key is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// An IPv4 address, or an IPv6 network with the bits after the prefix cleared.
    Ip(IpAddr, u8),
    /// No IP address: a Unix domain socket, or nothing that could be read. All such callers share a bucket.
    Unknown,
}

impl Network {
    /// Reads Envoy's `source.address` (`1.2.3.4:5678` or `[2001:db8::1]:5678`; the port may be absent).
    ///
    /// IPv4-mapped IPv6 becomes IPv4, so that a caller does not get a second bucket over the second stack;
    /// IPv6 keeps its first `ipv6_prefix` bits (1 to 128), because one caller usually owns all the rest.
    pub fn of_source(source: &[u8], ipv6_prefix: u8) -> Self {
        let Some(ip) = std::str::from_utf8(source).ok().and_then(ip_of_source) else {
            return Network::Unknown;
        };
        match ip.to_canonical() {
            IpAddr::V4(ip) => Network::Ip(IpAddr::V4(ip), 32),
            IpAddr::V6(ip) => {
                let host_bits = 128_u32.saturating_sub(ipv6_prefix.into());
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Network::Ip(Ipv6Addr::from_bits(ip.to_bits() & mask).into(), ipv6_prefix)
            }
        }
    }

    /// Whether it is 127.0.0.1 or the network of ::1, from which only Envoy's own machine can connect.
    pub fn is_this_machine(self) -> bool {
        match self {
            Network::Ip(IpAddr::V4(ip), _) => ip == Ipv4Addr::LOCALHOST,
            Network::Ip(IpAddr::V6(_), prefix) => self == Self::of_source(b"::1", prefix),
            Network::Unknown => false,
        }
    }

    /// The bytes that stand for this network in a keyed hash: different for different networks.
    pub fn bytes(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        let (family, address) = match self {
            Network::Ip(IpAddr::V4(ip), _) => (4, u128::from(ip.to_bits())),
            Network::Ip(IpAddr::V6(ip), _) => (6, ip.to_bits()),
            Network::Unknown => (0, 0),
        };
        if let Some((first, rest)) = bytes.split_first_mut() {
            *first = family;
            rest.copy_from_slice(&address.to_be_bytes());
        }
        bytes
    }
}

/// The bucket's name, as operators see it: `127.0.0.1`, `2001:db8::/64`, `unknown`.
impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::Ip(IpAddr::V4(ip), _) => write!(formatter, "{ip}"),
            Network::Ip(IpAddr::V6(ip), 128) => write!(formatter, "{ip}"),
            Network::Ip(IpAddr::V6(ip), prefix) => write!(formatter, "{ip}/{prefix}"),
            Network::Unknown => formatter.write_str("unknown"),
        }
    }
}

/// Whether `name` could be taken for an address, a network or an address with a port.
pub fn reads_as_address(name: &str) -> bool {
    let host = name.split_once('/').map_or(name, |(host, _)| host);
    name == "unknown" || ip_of_source(host).is_some()
}

fn ip_of_source(source: &str) -> Option<IpAddr> {
    let host = match source.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?.0,
        None => source,
    };
    // A zone (`fe80::1%eth0`) names the link and not the caller.
    let host = host.split_once('%').map_or(host, |(host, _)| host);
    host.parse().ok().or_else(|| {
        let (ip, port) = host.rsplit_once(':')?;
        let ip = ip.parse::<std::net::Ipv4Addr>().ok()?;
        port.parse::<u16>().ok().map(|_| ip.into())
    })
}
