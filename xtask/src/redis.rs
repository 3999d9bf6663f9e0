//! One running Redis for the demo: on the loopback, without persistence.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{Running, log_tail, pause};
use crate::workspace;

/// How long Redis may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);

const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Nothing is loaded from disk and nothing is saved to it.
const IN_MEMORY: [&str; 4] = ["--save", "", "--appendonly", "no"];

/// A Redis or Valkey that ends with its handle.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Running,
    binary: PathBuf,
    log: PathBuf,
    is_running: bool,
}

impl Redis {
    /// Starts Redis on this port of the loopback, with its output in `log`, and waits until it answers.
    pub(crate) fn start(binary: &Path, port: u16, log: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]).args(IN_MEMORY);
        command.arg("--dir").arg(log.parent().unwrap_or(workspace::root()));
        let process = Running::start_logged(&mut command, log)?;
        let mut redis = Self { process, binary: binary.to_owned(), log: log.to_owned(), is_running: true };
        redis.wait_for((Ipv4Addr::LOCALHOST, port).into())?;
        Ok(redis)
    }

    fn wait_for(&mut self, address: SocketAddr) -> Result<()> {
        let start = Instant::now();
        while !answers(address) {
            if let Some(status) = self.process.exited()? {
                bail!("Redis ended by itself ({status})\n{}", log_tail(&self.log));
            }
            if start.elapsed() > START_LIMIT {
                bail!(
                    "Redis is not ready: no PONG from {address} within {} s\n{}",
                    START_LIMIT.as_secs(),
                    log_tail(&self.log)
                );
            }
            pause(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Its exit status, returned once after it has ended.
    pub(crate) fn just_ended(&mut self) -> Result<Option<ExitStatus>> {
        if !self.is_running {
            return Ok(None);
        }
        let ended = self.process.exited()?;
        self.is_running = ended.is_none();
        Ok(ended)
    }

    /// The command that starts the same Redis on its default port.
    pub(crate) fn command_line(&self) -> String {
        format!("{} --bind 127.0.0.1 --save '' --appendonly no", self.program())
    }

    /// The command line client that comes with it.
    pub(crate) fn client(&self) -> String {
        self.program().replace("-server", "-cli")
    }

    fn program(&self) -> String {
        self.binary.file_name().unwrap_or(OsStr::new("redis-server")).to_string_lossy().into_owned()
    }
}

fn answers(address: SocketAddr) -> bool {
    let ping = || -> std::io::Result<[u8; 7]> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 7];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    };
    ping().is_ok_and(|reply| reply == *b"+PONG\r\n")
}
