//! Load with wrk, and the CPU time and memory of processes.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::directory;
use crate::process::{log_tail, run_logged_within};

/// The unit of CPU times in `/proc`: `USER_HZ`, which is 100 on every Linux architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

const WRK_SCRIPT: &str = include_str!("callers.lua");

#[derive(Debug)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    pub(super) callers: Callers,
    pub(super) connections: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Callers {
    /// The same key in all requests.
    One(&'static str),
    /// `key-0` and the following keys, this many, in turn.
    InTurn(usize),
}

#[derive(Debug, PartialEq)]
pub(super) struct Report {
    pub(super) requests: f64,
    /// Responses that were neither 2xx nor 3xx.
    refused: f64,
    pub(super) requests_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Load {
    pub(super) fn run(&self, mut wrk: Command, seconds: u32) -> Result<Report> {
        let directory = directory()?;
        wrk.args(["--threads", "1", "--latency"])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{seconds}s")]);
        let url = format!("http://{}/", self.address);
        match self.callers {
            Callers::One(key) => wrk.args(["--header", &format!("x-api-key: {key}")]).arg(url),
            Callers::InTurn(count) => {
                let script = directory.join("callers.lua");
                fs::write(&script, WRK_SCRIPT)?;
                wrk.arg("--script").arg(script).arg(url).arg("--").arg(count.to_string())
            }
        };
        let printed = directory.join("wrk.log");
        let has_succeeded = run_logged_within(&mut wrk, &printed, Duration::MAX)?;
        ensure!(has_succeeded, "wrk failed\n{}", log_tail(&printed));
        Report::parse(&fs::read_to_string(&printed)?)
            .with_context(|| format!("cannot parse wrk's output\n{}", log_tail(&printed)))
    }
}

impl Report {
    pub(super) fn refused_share(&self) -> f64 {
        self.refused / self.requests
    }

    fn parse(printed: &str) -> Option<Self> {
        let after = |label: &str| {
            let rest = printed.lines().find_map(|line| line.trim().strip_prefix(label))?;
            rest.split_whitespace().next()
        };
        let summary = printed.lines().find(|line| line.contains(" requests in "))?;
        let requests = summary.split_whitespace().next()?.parse().ok().filter(|&requests| requests > 0.0)?;
        Some(Self {
            requests,
            refused: after("Non-2xx or 3xx responses:").map_or(Some(0.0), |n| n.parse().ok())?,
            requests_per_second: after("Requests/sec:")?.parse().ok()?,
            p50_ms: milliseconds(after("50%")?)?,
            p99_ms: milliseconds(after("99%")?)?,
        })
    }
}

/// wrk's `812.00us`, `4.21ms` or `1.02s`.
fn milliseconds(time: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (number, unit) = units.iter().find_map(|(name, ms)| Some((time.strip_suffix(name)?, ms)))?;
    Some(number.parse::<f64>().ok()? * unit)
}

/// User and system time of all threads of these processes, in microseconds.
pub(super) fn cpu_us(processes: &[u32]) -> Result<f64> {
    processes.iter().map(|&process| Ok(cpu_ticks(process)? / TICKS_PER_SECOND * 1e6)).sum()
}

fn cpu_ticks(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let ticks = |field: usize| -> Option<f64> {
        // The second field is the program's name in parentheses, which may contain any character.
        let (_, fields) = stat.rsplit_once(") ")?;
        fields.split(' ').nth(field - 3)?.parse().ok()
    };
    let total = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    total.context("/proc/<pid>/stat is not as documented")
}

pub(super) fn rss_mib(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    Ok(kib.context("/proc/<pid>/status has no VmRSS")?.parse::<f64>()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn wrks_output_is_parsed() {
        let printed = "\
Running 5s test @ http://127.0.0.1:8000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.95ms    1.00ms  15.72ms   91.35%
    Req/Sec    16.36k     1.39k   18.26k    86.00%
  Latency Distribution
     50%  812.00us
     75%    3.94ms
     90%    4.51ms
     99%    1.02s
  81434 requests in 5.01s, 9.55MB read
  Non-2xx or 3xx responses: 81432
Requests/sec:  16262.63
Transfer/sec:      1.91MB
";
        let expected = Report {
            requests: 81434.0,
            refused: 81432.0,
            requests_per_second: 16262.63,
            p50_ms: 0.812,
            p99_ms: 1020.0,
        };
        assert_eq!(Report::parse(printed), Some(expected));
    }
}
