//! `cargo xtask demo --overload`: load that rises and falls in front of an upstream that can bear only so much.
//!
//! It drives and does not show: its lines go to a terminal, or to a file where something else is on that.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{ADMIN_PORT, SERVICE_PORT};
use crate::envoy::ensure_free;
use crate::overload::{Between, HEALTH_PATH, Program, ROUTE_TIMEOUT, bootstrap, ours, tiers, write};
use crate::process::Running;
use crate::{step, workspace};

const UPSTREAM_PORT: u16 = 8001;

/// The load comes and goes until the demo ends: seconds of normal load, of overload, and of normal load again.
const BEFORE_SECONDS: u32 = 10;
const OVERLOAD_SECONDS: u32 = 30;
const AFTER_SECONDS: u32 = 30;

/// How many times what the upstream can bear is asked for.
const TIMES: u32 = 5;

/// A second's worth of waiting requests, so that an overload that ends is soon over.
const QUEUE: [&str; 2] = ["--queue", "100"];

/// Where the load's lines go.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Lines {
    /// Among our own.
    Shown,
    /// To `target/demo/load.log`, since something else is on the terminal.
    Kept,
}

/// The upstream and the load.
pub(super) struct Overload {
    program: Program,
    _upstream: Running,
    load: Option<Running>,
    lines: Lines,
}

impl Overload {
    /// Starts the upstream, and writes what Envoy needs to stand before it.
    pub(super) fn start(lines: Lines) -> Result<Self> {
        let upstream = loopback(UPSTREAM_PORT);
        ensure_free(upstream)?;
        let program = Program::build()?;
        // A little quicker than by default, so that there is something to see.
        let bounds = json!({"degrade_after_seconds": 1, "recover_after_seconds": 5});
        let service = (Ipv4Addr::UNSPECIFIED, SERVICE_PORT).into();
        let admin = loopback(ADMIN_PORT);
        let (route_timeout, protection) = (ROUTE_TIMEOUT, Some(ours(&bounds)));
        let between = Between { service, admin, upstream, route_timeout, protection };
        write(&bootstrap(between), &Self::bootstrap())?;
        write(&tiers(), &Self::tiers())?;
        let log = workspace::target().join("demo/upstream.log");
        step(format!("starting an upstream of limited capacity; its log: {}", workspace::shown(&log)));
        Ok(Self {
            _upstream: program.upstream(upstream, &QUEUE.map(str::to_owned), &log)?,
            program,
            load: None,
            lines,
        })
    }

    /// The bootstrap for Envoy.
    pub(super) fn bootstrap() -> PathBuf {
        workspace::target().join("demo/overload.json")
    }

    /// The tiers in it.
    pub(super) fn tiers() -> PathBuf {
        workspace::target().join("demo/overload-tiers.json")
    }

    /// Keeps the load going; to be called now and then, once Envoy runs. Gives a word where it begins anew.
    pub(super) fn tick(&mut self) -> Result<Option<String>> {
        if let Some(load) = &mut self.load {
            let Some(status) = load.exited()? else { return Ok(None) };
            ensure!(status.success(), "the load ended by itself ({status})");
        }
        let numbers = [
            ("before", BEFORE_SECONDS),
            ("overload", OVERLOAD_SECONDS),
            ("after", AFTER_SECONDS),
            ("times", TIMES),
        ];
        let plan: Vec<String> =
            numbers.iter().flat_map(|(name, value)| [format!("--{name}"), value.to_string()]).collect();
        let mut command = self.program.load(loopback(SERVICE_PORT), &plan);
        command.args(["--health", HEALTH_PATH]);
        self.load = Some(match self.lines {
            Lines::Shown => Running::start(&mut command),
            Lines::Kept => Running::start_logged(&mut command, &workspace::target().join("demo/load.log")),
        }?);
        Ok(Some(format!(
            "load: normal for {BEFORE_SECONDS} s, overload for {OVERLOAD_SECONDS} s, normal for {AFTER_SECONDS} s"
        )))
    }

    /// What is going on, for who sees the lines.
    pub(super) fn print_what_to_see() {
        println!(
            r#"
The limiter is running, in front of an upstream that can serve 100 requests a second. Callers ask for
50 a second for {BEFORE_SECONDS} s, for {} a second for {OVERLOAD_SECONDS} s, and for 50 again for {AFTER_SECONDS} s; then all over again.
Health turns by itself: free callers are turned away (shed: 503 with Retry-After), enterprise callers go on.

  curl http://localhost:{SERVICE_PORT}{HEALTH_PATH}
  curl -i http://localhost:{SERVICE_PORT}/                                a free caller
  curl -i http://localhost:{SERVICE_PORT}/ -H 'X-API-Key: enterprise-1'
  curl http://localhost:{UPSTREAM_PORT}/upstream/condition -d '{{"slowdown":4.0,"failing":0.0}}'   makes the upstream slow

Metrics: http://localhost:{ADMIN_PORT}/stats/prometheus?filter=rate_limiter"#,
            100 * TIMES
        );
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
