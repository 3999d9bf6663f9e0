//! Load with wrk, and the CPU time and memory of processes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use procfs::process::{Process, Stat};
use serde::Deserialize;

use super::config::KEYS;
use super::{SERVICE, directory};
use crate::process::{log_tail, run_logged_within};
use crate::workspace;

const WRK_CALLERS: &str = include_str!("callers.lua");
const WRK_REPORT: &str = include_str!("report.lua");

#[derive(Debug)]
pub(super) struct Load {
    pub(super) callers: Callers,
    pub(super) connections: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Callers {
    /// The same key in all requests.
    One(&'static str),
    /// All [`KEYS`] keys in turn.
    InTurn,
}

/// What `report.lua` prints at the end of a run.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub(super) requests: f64,
    /// Responses that were neither 2xx nor 3xx.
    pub(super) rejected: f64,
    pub(super) requests_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Load {
    pub(super) fn run(&self, mut wrk: Command, seconds: u32) -> Result<Report> {
        let directory = directory();
        let (script, printed) = (directory.join("wrk.lua"), directory.join("wrk.log"));
        let connections = self.connections;
        wrk.args(format!("--threads 1 --connections {connections} --duration {seconds}s").split(' '));
        wrk.arg("--script").arg(&script);
        let url = format!("http://{SERVICE}/");
        match self.callers {
            Callers::One(key) => {
                // Without a function for each request, wrk is faster.
                workspace::write(&script, WRK_REPORT)?;
                wrk.args(["--header", &format!("x-api-key: {key}"), &url]);
            }
            Callers::InTurn => {
                workspace::write(&script, [WRK_REPORT, WRK_CALLERS].concat())?;
                wrk.args([&url, "--", &KEYS.to_string()]);
            }
        }
        let has_succeeded = run_logged_within(&mut wrk, &printed, Duration::MAX)?;
        ensure!(has_succeeded, "wrk failed\n{}", log_tail(&printed));
        let report = fs::read_to_string(&printed)?.lines().last().map(serde_json::from_str);
        report.context("no output")?.with_context(|| format!("no report by wrk\n{}", log_tail(&printed)))
    }
}

/// User and system time of all threads of these processes, in microseconds.
pub(super) fn cpu_us(processes: &[u32]) -> Result<f64> {
    let ticks = |process: &u32| stat(*process).map(|stat| (stat.utime + stat.stime) as f64);
    let ticks: f64 = processes.iter().map(ticks).sum::<Result<_>>()?;
    Ok(ticks / procfs::ticks_per_second() as f64 * 1e6)
}

pub(super) fn rss_mib(process: u32) -> Result<f64> {
    Ok((stat(process)?.rss * procfs::page_size()) as f64 / f64::from(1 << 20))
}

fn stat(process: u32) -> Result<Stat> {
    Ok(Process::new(process.try_into()?)?.stat()?)
}
