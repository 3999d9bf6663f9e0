//! Ports that stay reserved for a test while no process listens on them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports of outgoing connections in Linux (32768 and up): a server that is killed and restarted finds its
/// port free, even if the tests open many connections.
const FIRST: u16 = 20_000;
const PORTS: u16 = 12_000;

/// A loopback address where no process listens. Each call in this process returns another one.
pub fn reserve() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another concurrent test run starts its search elsewhere.
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    (0..PORTS)
        .map(|_| {
            let offset = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(start) % PORTS;
            SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + offset))
        })
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}
