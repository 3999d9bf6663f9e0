//! `cargo xtask demo --overload`: load that rises and falls, and an upstream with limited capacity.
//!
//! It does not draw: the lines of the load go to the terminal, or to a file if the terminal is used otherwise.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{ADMIN_PORT, SERVICE_PORT};
use crate::envoy::{ensure_free, loopback};
use crate::overload::{Between, HEALTH_PATH, Program, ROUTE_TIMEOUT, bootstrap, ours, tiers};
use crate::process::Running;
use crate::{step, workspace};

const UPSTREAM_PORT: u16 = 8001;

/// The load is repeated until the demo ends: seconds of normal load, of overload, and of normal load again.
const BEFORE_SECONDS: u32 = 10;
const OVERLOAD_SECONDS: u32 = 30;
const AFTER_SECONDS: u32 = 30;

/// The load in overload, as a multiple of the capacity.
const TIMES: u32 = 5;

/// A queue of one second, so that recovery after an overload is fast.
const QUEUE: &str = "--queue 100";

pub(super) struct Overload {
    program: Program,
    _upstream: Running,
    load: Option<Running>,
    /// The file for the load's lines, if the terminal is used otherwise.
    log: Option<PathBuf>,
}

impl Overload {
    /// Starts the upstream, and writes the bootstrap for Envoy.
    pub(super) fn start(log: Option<PathBuf>) -> Result<Self> {
        let upstream = loopback(UPSTREAM_PORT);
        ensure_free([upstream])?;
        let program = Program::build()?;
        // Shorter than the defaults, so that the changes are visible.
        let bounds = json!({"degrade_after_seconds": 1, "recover_after_seconds": 5});
        let between = Between {
            service: (Ipv4Addr::UNSPECIFIED, SERVICE_PORT).into(),
            admin: loopback(ADMIN_PORT),
            upstream,
            route_timeout: ROUTE_TIMEOUT,
            protection: Some(ours(bounds)),
        };
        workspace::write(&Self::bootstrap(), format!("{:#}", bootstrap(between)))?;
        workspace::write(&Self::tiers(), format!("{:#}", tiers()))?;
        let upstream_log = workspace::target().join("demo/upstream.log");
        let shown = workspace::shown(&upstream_log);
        step(format!("starting an upstream of limited capacity; its log: {shown}"));
        Ok(Self { _upstream: program.upstream(upstream, QUEUE, &upstream_log)?, program, load: None, log })
    }

    pub(super) fn bootstrap() -> PathBuf {
        workspace::target().join("demo/overload.json")
    }

    pub(super) fn tiers() -> PathBuf {
        workspace::target().join("demo/overload-tiers.json")
    }

    /// Restarts the load when it has ended; call it regularly once Envoy runs. Returns a notice at each start.
    pub(super) fn tick(&mut self) -> Result<Option<String>> {
        if let Some(load) = &mut self.load {
            let Some(status) = load.exited()? else { return Ok(None) };
            ensure!(status.success(), "the load ended by itself ({status})");
        }
        let plan = format!(
            "--before {BEFORE_SECONDS} --overload {OVERLOAD_SECONDS} --after {AFTER_SECONDS} --times {TIMES}"
        );
        let mut command = self.program.load(loopback(SERVICE_PORT), &plan);
        command.args(["--health", HEALTH_PATH]);
        self.load = Some(match &self.log {
            None => Running::start(&mut command),
            Some(log) => Running::start_logged(&mut command, log),
        }?);
        Ok(Some(format!(
            "load: normal for {BEFORE_SECONDS} s, overload for {OVERLOAD_SECONDS} s, normal for {AFTER_SECONDS} s"
        )))
    }

    /// What is going on, for who sees the lines.
    pub(super) fn print_overload_instructions() {
        println!(
            r#"
The limiter is running, in front of an upstream with a capacity of 100 requests a second. Callers send
50 a second for {BEFORE_SECONDS} s, {} a second for {OVERLOAD_SECONDS} s, and 50 again for {AFTER_SECONDS} s; this is repeated.
Health changes automatically: free callers are shed (503 with Retry-After), enterprise callers are served.

  curl http://localhost:{SERVICE_PORT}{HEALTH_PATH}
  curl -i http://localhost:{SERVICE_PORT}/                                a free caller
  curl -i http://localhost:{SERVICE_PORT}/ -H 'X-API-Key: enterprise-1'
  curl http://localhost:{UPSTREAM_PORT}/upstream/condition -d '{{"slowdown":4.0,"failing":0.0}}'   makes the upstream slow

Metrics: http://localhost:{ADMIN_PORT}/stats/prometheus?filter=rate_limiter"#,
            100 * TIMES
        );
    }
}
