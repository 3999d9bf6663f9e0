//! Ports that stay with a test while nobody listens on them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below what Linux gives to outgoing connections (32768 and up): a server that is killed and started
/// again finds its port free, however many connections the tests open meanwhile.
const FIRST: u16 = 20_000;
const PORTS: u16 = 12_000;

/// An address on the loopback where nothing listens, and that nobody else in this process is given.
pub fn reserve() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another test run beside this one starts to look somewhere else.
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    (0..PORTS)
        .map(|_| {
            let offset = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(start) % PORTS;
            SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + offset))
        })
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}
