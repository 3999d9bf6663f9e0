//! Load, and what serving it took.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output_of;

/// The unit of CPU times in `/proc`: `USER_HZ`, which is 100 on every Linux architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What wrk is to send.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) header: (&'static str, &'static str),
    pub(crate) connections: u32,
}

/// One run of wrk against one Envoy.
#[derive(Debug)]
pub(crate) struct Measurement {
    /// Envoy's CPU time, all threads, user and system, for each request.
    pub(crate) cpu_us: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) rss_mib: f64,
    /// How many of the answers were neither 2xx nor 3xx, from 0 to 1.
    pub(crate) refused_share: f64,
}

impl Load {
    /// Runs the load from one thread, and reads what the process `envoy` spent on it.
    pub(crate) fn run(&self, mut wrk: Command, seconds: u32, envoy: u32) -> Result<Measurement> {
        let (name, value) = self.header;
        wrk.args(["--threads", "1", "--latency"])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{seconds}s")])
            .args(["--header", &format!("{name}: {value}")])
            .arg(format!("http://{}/", self.address));
        let before = cpu_seconds(envoy)?;
        let printed = output_of(&mut wrk)?;
        let cpu_us = (cpu_seconds(envoy)? - before) * 1e6;
        let report =
            Report::parse(&printed).with_context(|| format!("cannot read what wrk printed:\n{printed}"))?;
        Ok(Measurement {
            cpu_us: cpu_us / report.requests,
            requests_per_second: report.requests_per_second,
            p50_ms: report.p50_ms,
            p99_ms: report.p99_ms,
            rss_mib: rss_mib(envoy)?,
            refused_share: report.refused / report.requests,
        })
    }
}

#[derive(Debug, PartialEq)]
struct Report {
    requests: f64,
    refused: f64,
    requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Report {
    fn parse(printed: &str) -> Option<Self> {
        let after = |label: &str| {
            let rest = printed.lines().find_map(|line| line.trim().strip_prefix(label))?;
            rest.split_whitespace().next()
        };
        let summary = printed.lines().find(|line| line.contains(" requests in "))?;
        Some(Self {
            requests: summary.split_whitespace().next()?.parse().ok()?,
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

/// User and system time of all threads of a process.
fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let ticks = |field: usize| -> Option<f64> {
        // The second field is the program's name in parentheses, and may hold anything.
        let (_, fields) = stat.rsplit_once(") ")?;
        fields.split(' ').nth(field - 3)?.parse().ok()
    };
    let total = ticks(14).zip(ticks(15)).map(|(user, system)| user + system);
    Ok(total.context("/proc/<pid>/stat is not as documented")? / TICKS_PER_SECOND)
}

fn rss_mib(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    Ok(kib.context("/proc/<pid>/status has no VmRSS")?.parse::<f64>()? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn reads_what_wrk_prints() {
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
