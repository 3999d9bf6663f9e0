//! Starting an Envoy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::process::Running;
use crate::{http, workspace};

/// How long Envoy may take to start: reading its configuration and compiling the filter.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Starts Envoy in the repository's root, with its output in `log`, and waits until a GET of `path` is answered with 200.
pub(crate) fn start(command: &mut Command, log: &Path, address: SocketAddr, path: &str) -> Result<Running> {
    // Without the shared memory for hot restarts, several Envoys can run at once.
    command.current_dir(workspace::root()).arg("--disable-hot-restart");
    let mut envoy = Running::start_logged(command, log)?;
    envoy.wait_until_ready(START_LIMIT, || http::get_ok(address, path))?;
    Ok(envoy)
}

pub(crate) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Returns an error if a port is in use. Envoy itself would not fail: it shares ports with other Envoys, and the kernel
/// would distribute connections among them.
pub(crate) fn ensure_free(addresses: impl IntoIterator<Item = SocketAddr>) -> Result<()> {
    for address in addresses {
        ensure!(
            TcpListener::bind(address).is_ok(),
            "port {} is taken: another demo? `ss -ltnp 'sport = :{0}'` names the program",
            address.port()
        );
    }
    Ok(())
}
