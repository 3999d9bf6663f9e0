//! One running Envoy.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::process::{Running, log_tail, pause};
use crate::{http, workspace};

/// How long Envoy may take to start: reading its configuration and compiling the filter.
const START_LIMIT: Duration = Duration::from_secs(60);

/// An Envoy that ends with its handle.
#[derive(Debug)]
pub(crate) struct Envoy {
    process: Running,
    log: PathBuf,
}

impl Envoy {
    /// Starts Envoy in the repository's root, with its output in `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        // Without the shared memory for hot restarts, several Envoys can run at once.
        command.current_dir(workspace::root()).arg("--disable-hot-restart");
        Ok(Self { process: Running::start_logged(command, log)?, log: log.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until a GET is answered with 200.
    pub(crate) fn wait_for(&mut self, address: SocketAddr, path: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let response = http::get(address, path, &[]);
            if response.as_ref().is_ok_and(|response| response.status == 200) {
                return Ok(());
            }
            self.check()?;
            if start.elapsed() > START_LIMIT {
                let found = match response {
                    Ok(response) => format!("it answers {}", response.status),
                    Err(error) => format!("{error:#}"),
                };
                bail!(
                    "Envoy is not ready: no 200 from http://{address}{path} within {} s; {found}\n{}",
                    START_LIMIT.as_secs(),
                    log_tail(&self.log)
                );
            }
            pause(Duration::from_millis(100))?;
        }
    }

    /// Returns an error if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.exited()? {
            bail!("Envoy ended by itself ({status})\n{}", log_tail(&self.log));
        }
        Ok(())
    }
}

/// Returns an error if the port is in use. Envoy itself would not fail: it shares ports with other Envoys, and the
/// kernel would distribute connections among them.
pub(crate) fn ensure_free(address: SocketAddr) -> Result<()> {
    let free = std::net::TcpListener::bind(address);
    ensure!(
        free.is_ok(),
        "port {} is taken: another demo? `ss -ltnp 'sport = :{0}'` names the program",
        address.port()
    );
    Ok(())
}
