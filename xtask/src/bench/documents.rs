//! Fetched key documents: how long a worker delays requests while a document arrives, is fetched again, and changes.
//!
//! One caller sends a request a millisecond to an Envoy with one worker. The longest latency of a request is the
//! longest time for which the worker was busy with a document, if the machine is idle: compare with the first row,
//! which has ten keys.

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::bootstrap;
use serde_json::{Value, json};

use super::config::{answer, limiter, listener, socket};
use super::load::rss_mib;
use super::{ADMIN, Machine, SERVICE, UPSTREAM, directory};
use crate::envoy::ensure_free;
use crate::filter::{self, Toolchain};
use crate::process::Running;
use crate::{http, step};

const KEYS: [usize; 3] = [10, 20_000, 100_000];

/// How often the documents are fetched.
const TTL: Duration = Duration::from_secs(2);

/// Long enough for two fetches of every document.
const UNCHANGED: Duration = Duration::from_secs(6);

const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run() -> Result<()> {
    let machine = Machine::find()?;
    filter::build(Toolchain::find()?)?;
    println!("| keys | document | phase | applied after | longest request | 99 % | memory |");
    println!("|--:|--:|---|--:|--:|--:|--:|");
    KEYS.into_iter().try_for_each(|keys| measure(&machine, keys).with_context(|| format!("{keys} keys")))
}

fn measure(machine: &Machine, keys: usize) -> Result<()> {
    let file = directory().join("documents").join("api_keys.json");
    let size_kib = save(&file, keys, "key-a")? / 1024;
    step(format!("{keys} keys, {size_kib} KiB"));
    let _server = serve(machine, &file)?;
    let envoy = machine.measured_envoy("documents", &bootstrap())?;
    let row = |phase: &str, applied: &str, latencies: Vec<Duration>| -> Result<()> {
        let [longest, p99] = max_and_p99(latencies).map(|took| format!("{:.1} ms", took.as_secs_f64() * 1e3));
        let memory = rss_mib(envoy.id())?;
        println!("| {keys} | {size_kib} KiB | {phase} | {applied} | {longest} | {p99} | {memory:.0} MiB |");
        Ok(())
    };

    let caller = Caller { http: http::agent(), url: format!("http://{SERVICE}/") };
    let (after, latencies) = caller.send("key-a", |tier, _| tier == "pro")?;
    row("start", &after, latencies)?;
    let (_, latencies) = caller.send("key-a", |_, time| time >= UNCHANGED)?;
    row("unchanged", "", latencies)?;
    save(&file, keys, "key-b")?;
    let (after, latencies) = caller.send("key-b", |tier, _| tier == "pro")?;
    row("one key changed", &after, latencies)
}

/// Writes a document with `keys` entries of about forty bytes, one of which is `key`; returns its size.
fn save(file: &Path, keys: usize, key: &str) -> Result<usize> {
    let mut document = format!("{{\"{key}\": \"pro\"");
    for number in 1..keys {
        write!(document, ",\n\"caller-{number:06}\": {{\"tier\":\"pro\"}}")?;
    }
    document.push('}');
    filter::replace(file, document.as_bytes())?;
    Ok(document.len())
}

/// Serves the document with Python's file server.
fn serve(machine: &Machine, file: &Path) -> Result<Running> {
    ensure_free([UPSTREAM])?;
    let mut python = machine.on_other_cpus(Path::new("python3"));
    python.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
    python.arg(file.with_file_name("")).arg(UPSTREAM.port().to_string());
    let mut server = Running::start_logged(&mut python, &directory().join("files.log"))?;
    server.wait_until_ready(TIMEOUT, || http::get_ok(UPSTREAM, "/"))?;
    Ok(server)
}

fn bootstrap() -> Value {
    let configuration = json!({"config_source": {
        "cluster": "files", "api_keys": "/api_keys.json", "ttl_seconds": TTL.as_secs(),
    }});
    let host = json!({"name": "bench", "domains": ["*"], "routes": [answer()]});
    json!({
        "admin": {"address": socket(ADMIN)},
        "static_resources": {
            "listeners": [listener(SERVICE, [limiter(&configuration)], &host)],
            "clusters": [bootstrap::cluster("files", &[socket(UPSTREAM)])],
        },
    })
}

/// One connection, and one request a millisecond.
struct Caller {
    http: ureq::Agent,
    url: String,
}

impl Caller {
    /// Sends requests until the end, by the tier in a response or by the time so far. Returns the time, and the latencies
    /// of all requests but the first.
    fn send(&self, key: &str, is_end: fn(&str, Duration) -> bool) -> Result<(String, Vec<Duration>)> {
        let begun = Instant::now();
        let mut latencies = Vec::new();
        self.tier(key)?;
        while begun.elapsed() < TIMEOUT {
            thread::sleep(Duration::from_millis(1));
            let sent = Instant::now();
            let tier = self.tier(key)?;
            latencies.push(sent.elapsed());
            if is_end(&tier, begun.elapsed()) {
                return Ok((format!("{:.1} s", begun.elapsed().as_secs_f64()), latencies));
            }
        }
        bail!("the document is not applied after {} s", TIMEOUT.as_secs())
    }

    /// Sends a request; returns the tier in the response.
    fn tier(&self, key: &str) -> Result<String> {
        let mut response = self.http.get(&self.url).header("x-api-key", key).call()?;
        // The connection can be used again once the body is read.
        response.body_mut().read_to_string()?;
        let tier = response.headers().get("x-ratelimit-tier").context("no tier in the response")?;
        Ok(tier.to_str()?.to_owned())
    }
}

fn max_and_p99(mut latencies: Vec<Duration>) -> [Duration; 2] {
    latencies.sort_unstable();
    let last = latencies.len().saturating_sub(1);
    [last, last.min(latencies.len() * 99 / 100)]
        .map(|index| latencies.get(index).copied().unwrap_or_default())
}
