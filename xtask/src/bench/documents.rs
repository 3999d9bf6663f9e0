//! Fetched key documents: how long a worker delays requests while a document arrives, is fetched again, and changes.
//!
//! One caller sends a request a millisecond to an Envoy with one worker. The longest latency of a request is the
//! longest time for which the worker was busy with a document, if the machine is idle: compare with the first row,
//! which has ten keys.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::bootstrap;
use serde_json::{Value, json};

use super::config::{answer, listener, socket, wasm};
use super::load::rss_mib;
use super::{Machine, loopback};
use crate::envoy::ensure_free;
use crate::filter::{self, Toolchain};
use crate::process::Running;
use crate::step;

const SERVICE_PORT: u16 = 18010;
const ADMIN_PORT: u16 = 18011;

/// How often the documents are fetched.
const TTL: Duration = Duration::from_secs(2);

/// Long enough for two fetches of every document.
const UNCHANGED: Duration = Duration::from_secs(6);

/// The longest wait until a document applies.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(super) struct Options {
    /// The numbers of keys
    #[arg(long, value_delimiter = ',', default_values_t = [10, 20_000, 100_000])]
    keys: Vec<usize>,
    /// Measure this filter instead of building one
    #[arg(long, value_name = "WASM")]
    filter: Option<PathBuf>,
}

/// The served document; it may be replaced.
type Served = Arc<Mutex<Arc<Vec<u8>>>>;

/// The latencies of one caller.
#[derive(Debug, Default)]
struct Latencies {
    took: Vec<Duration>,
}

pub(super) fn run(options: &Options) -> Result<()> {
    let machine = Machine::find()?;
    let filter = match &options.filter {
        Some(filter) => std::path::absolute(filter)?,
        None => std::path::absolute(filter::build(Toolchain::find()?)?)?,
    };
    println!("| keys | document | phase | applied after | longest request | 99 % | memory |");
    println!("|--:|--:|---|--:|--:|--:|--:|");
    for keys in &options.keys {
        measure(&machine, &filter.display().to_string(), *keys).with_context(|| format!("{keys} keys"))?;
    }
    Ok(())
}

fn measure(machine: &Machine, filter: &str, keys: usize) -> Result<()> {
    let [service, admin] = [SERVICE_PORT, ADMIN_PORT].map(loopback);
    ensure_free(service)?;
    ensure_free(admin)?;
    let first = document(keys, "key-a");
    let size = first.len();
    let served: Served = Arc::new(Mutex::new(Arc::new(first)));
    let files = serve(Arc::clone(&served))?;
    step(format!("{keys} keys, {} KiB", size / 1024));
    let bootstrap = bootstrap(service, admin, files, filter);
    let envoy = machine.measured_envoy("documents", &bootstrap, admin)?;
    let row =
        |phase: &str, applied: Option<Duration>, latencies: &mut Latencies, envoy: &Running| -> Result<()> {
            let applied = applied.map_or(String::new(), |after| format!("{:.1} s", after.as_secs_f64()));
            let [longest, p99] =
                latencies.max_and_p99().map(|took| format!("{:.1} ms", took.as_secs_f64() * 1e3));
            let memory = rss_mib(envoy.id())?;
            println!(
                "| {keys} | {} KiB | {phase} | {applied} | {longest} | {p99} | {memory:.0} MiB |",
                size / 1024
            );
            Ok(())
        };

    let mut caller = Caller::connect(service)?;
    let (after, mut latencies) = caller.until("key-a")?;
    row("start", Some(after), &mut latencies, &envoy)?;
    let mut latencies = caller.watch("key-a", UNCHANGED)?;
    row("unchanged", None, &mut latencies, &envoy)?;
    *served.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(document(keys, "key-b"));
    let (after, mut latencies) = caller.until("key-b")?;
    row("one key changed", Some(after), &mut latencies, &envoy)
}

/// A document with `keys` entries of about forty bytes; one of them is `key`.
fn document(keys: usize, key: &str) -> Vec<u8> {
    let mut document = format!("{{\"{key}\": \"pro\"");
    for number in 1..keys {
        // Writing to a string cannot fail.
        let _ = write!(document, ",\n\"caller-{number:06}\": {{\"tier\":\"pro\"}}");
    }
    document.push('}');
    document.into_bytes()
}

fn bootstrap(service: SocketAddr, admin: SocketAddr, files: SocketAddr, filter: &str) -> Value {
    let configuration = json!({"config_source": {
        "cluster": "files", "api_keys": "/api_keys.json", "ttl_seconds": TTL.as_secs(),
    }});
    let host = json!({"name": "bench", "domains": ["*"], "routes": [answer()]});
    json!({
        "admin": {"address": socket(admin)},
        "static_resources": {
            "listeners": [listener(service, [wasm("rate_limiter", filter, &configuration)], &host)],
            "clusters": [bootstrap::cluster("files", &[socket(files)])],
        },
    })
}

/// Serves the document at every path, until the process ends.
fn serve(served: Served) -> Result<SocketAddr> {
    let server = TcpListener::bind(loopback(0))?;
    let address = server.local_addr()?;
    thread::spawn(move || {
        for stream in server.incoming().flatten() {
            let served = Arc::clone(&served);
            thread::spawn(move || answer_all(stream, &served));
        }
    });
    Ok(address)
}

fn answer_all(stream: TcpStream, served: &Served) -> std::io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    while let Some(line) = requests.next().transpose()? {
        if line.is_empty() {
            let document = Arc::clone(&served.lock().unwrap_or_else(PoisonError::into_inner));
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", document.len())?;
            stream.write_all(&document)?;
        }
    }
    Ok(())
}

/// One connection, and one request a millisecond.
struct Caller {
    stream: TcpStream,
}

impl Caller {
    fn connect(service: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(service)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream })
    }

    /// Sends requests until a key is known; returns the time, and the latencies of all requests but the first.
    fn until(&mut self, key: &str) -> Result<(Duration, Latencies)> {
        let begun = Instant::now();
        let mut latencies = Latencies::default();
        self.send(key)?;
        while begun.elapsed() < TIMEOUT {
            if self.timed(key, &mut latencies)? == "pro" {
                return Ok((begun.elapsed(), latencies));
            }
        }
        bail!("the document is not applied after {} s", TIMEOUT.as_secs())
    }

    /// Sends requests for this time.
    fn watch(&mut self, key: &str, time: Duration) -> Result<Latencies> {
        let begun = Instant::now();
        let mut latencies = Latencies::default();
        while begun.elapsed() < time {
            self.timed(key, &mut latencies)?;
        }
        Ok(latencies)
    }

    fn timed(&mut self, key: &str, latencies: &mut Latencies) -> Result<String> {
        thread::sleep(Duration::from_millis(1));
        let begun = Instant::now();
        let tier = self.send(key)?;
        latencies.took.push(begun.elapsed());
        Ok(tier)
    }

    /// Sends a request; returns the tier in the response.
    fn send(&mut self, key: &str) -> Result<String> {
        write!(self.stream, "GET / HTTP/1.1\r\nhost: bench\r\nx-api-key: {key}\r\n\r\n")?;
        let mut response = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let read = self.stream.read(&mut piece)?;
            response.extend_from_slice(&piece[..read]);
            let text = String::from_utf8_lossy(&response);
            if let Some((headers, body)) = text.split_once("\r\n\r\n") {
                let header =
                    |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let length: usize =
                    header("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
                if body.len() >= length {
                    return Ok(header("x-ratelimit-tier:").unwrap_or_default().to_owned());
                }
            }
            if read == 0 {
                bail!("Envoy closed the connection");
            }
        }
    }
}

impl Latencies {
    fn max_and_p99(&mut self) -> [Duration; 2] {
        self.took.sort_unstable();
        let at = |share: usize| self.took.get((self.took.len() * share / 100).min(self.took.len() - 1));
        [at(100), at(99)].map(|took| took.copied().unwrap_or_default())
    }
}
