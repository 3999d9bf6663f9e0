//! The demo's Redis: on the loopback, without persistence.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::envoy::{ensure_free, loopback};
use crate::process::Running;
use crate::{step, workspace};

/// The address of Redis in `deploy/redis/envoy.yaml`.
const ADDRESS: SocketAddr = loopback(6379);

const START_LIMIT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

pub(super) fn ensure_port_free() -> Result<()> {
    ensure_free([ADDRESS]).with_context(|| {
        format!(
            "the demo starts a Redis of its own on port {}, so another must not be there \
             (a Debian service ends with `sudo systemctl stop redis-server`)",
            ADDRESS.port()
        )
    })
}

/// A Redis or Valkey that ends with its handle.
pub(super) struct Redis {
    process: Running,
    /// The name of its program.
    program: String,
}

impl Redis {
    /// Starts Redis, and waits until it answers. Nothing is loaded from disk and nothing is saved to it.
    pub(super) fn start(binary: &Path) -> Result<Self> {
        // Again: an installation of the package may have started its service.
        ensure_port_free()?;
        let folder = workspace::target().join("demo");
        let log = folder.join("redis.log");
        step(format!("starting Redis on port {}; its log: {}", ADDRESS.port(), workspace::shown(&log)));
        let mut command = Command::new(binary);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
        let mut process = Running::start_logged(&mut command, &log)?;
        let client = ::redis::Client::open(format!("redis://{ADDRESS}"))?;
        process.wait_until_ready(START_LIMIT, || {
            let mut connection = client.get_connection_with_timeout(ANSWER_LIMIT)?;
            connection.set_read_timeout(Some(ANSWER_LIMIT))?;
            Ok(::redis::cmd("PING").exec(&mut connection)?)
        })?;
        let program = binary.file_name().unwrap_or("redis-server".as_ref()).to_string_lossy().into_owned();
        Ok(Self { process, program })
    }

    /// A notice if it has ended. A user may stop Redis to test that, so the demo continues.
    pub(super) fn notice_of_end(&mut self) -> Result<Option<String>> {
        let ended = self.process.exited()?;
        Ok(ended.map(|status| {
            format!(
                "Redis has ended ({status}). The same limits apply without it. Start it again, and the limiter \
                 uses it within five seconds:\n    {} --bind 127.0.0.1 --save '' --appendonly no",
                self.program
            )
        }))
    }

    pub(super) fn print_instructions(&self) {
        let client = self.program.replace("-server", "-cli");
        println!(
            r#"
Buckets and health are in Redis:

  {client} HGETALL rate_limit:pro           a caller's bucket, after its first request
  {client} DEL rate_limit:127.0.0.1         a full bucket for that address, within a second
  {client} GET system:health:status         NORMAL or DEGRADED, if it was set
  {client} SHUTDOWN NOSAVE                  stop Redis: the same limits apply without it"#
        );
    }
}
