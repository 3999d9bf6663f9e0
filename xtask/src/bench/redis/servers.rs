//! What stands behind the measured Envoy: the upstream, one Redis, a cluster of three, webdis.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::super::{Machine, directory, loopback, start_envoy};
use super::variant::{self, Variant};
use crate::envoy::{Envoy, ensure_free};
use crate::process::{Running, log_tail, pause};
use crate::{http, step, tools};

const START_LIMIT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

const SLOTS: usize = 16384;

/// The limiter's own script, which webdis is to run as well.
const SCRIPT: &str = include_str!("../../../../src/store/redis/take.lua");

/// Where everybody listens.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) service: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) upstream: SocketAddr,
    pub(super) redis: SocketAddr,
    pub(super) nodes: [SocketAddr; 3],
    /// Where the nodes talk to each other.
    buses: [SocketAddr; 3],
    pub(super) webdis: SocketAddr,
}

impl Addresses {
    /// Not those of the demo or of the other table, and below those that the kernel gives to
    /// connections.
    pub(super) fn new() -> Self {
        Self {
            service: loopback(18010),
            admin: loopback(18011),
            upstream: loopback(18012),
            redis: loopback(18013),
            nodes: [18014, 18015, 18016].map(loopback),
            buses: [18017, 18018, 18019].map(loopback),
            webdis: loopback(18020),
        }
    }
}

/// All that some variants need, until the handle is dropped.
pub(super) struct Servers {
    upstream: Envoy,
    webdis: Option<Server>,
    redis: Option<Redis>,
    cluster: Option<[Redis; 3]>,
    /// The name by which the one Redis knows the limiter's script.
    pub(super) script: String,
}

impl Servers {
    pub(super) fn start(machine: &Machine, addresses: &Addresses, variants: &[Variant]) -> Result<Self> {
        let needs_redis = variants.iter().any(|variant| variant.needs_redis());
        let needs_cluster = variants.contains(&Variant::RedisCluster);
        let needs_webdis = variants.contains(&Variant::Webdis);

        step("starting what stands behind Envoy");
        ensure_free(addresses.upstream)?;
        let mut upstream = start_envoy(
            machine.on_other_cpus(&machine.envoy),
            "upstream",
            &variant::upstream(addresses.upstream),
        )?;
        upstream.wait_for(addresses.upstream, "/")?;

        let binary = if needs_redis || needs_cluster { tools::redis_server()? } else { PathBuf::new() };
        let start = |address, bus| Redis::start(machine, &binary, address, bus);
        let redis = needs_redis.then(|| start(addresses.redis, None)).transpose()?;
        let cluster = if needs_cluster {
            let [a, b, c] = [0, 1, 2].map(|n| start(addresses.nodes[n], Some(addresses.buses[n])));
            let nodes = [a?, b?, c?];
            join(&nodes, &addresses.buses)?;
            Some(nodes)
        } else {
            None
        };
        let script = match &redis {
            Some(redis) => redis.command(&["SCRIPT", "LOAD", SCRIPT])?,
            None => String::new(),
        };
        let webdis = needs_webdis.then(|| start_webdis(machine, addresses)).transpose()?;
        Ok(Self { upstream, webdis, redis, cluster, script })
    }

    /// Ids of the Redis processes that a variant asks.
    pub(super) fn redis_processes(&self, variant: Variant) -> Vec<u32> {
        self.asked(variant).iter().map(|redis| redis.server.process.id()).collect()
    }

    /// Ids of whoever else stands between a variant's Envoy and Redis.
    pub(super) fn other_processes(&self, variant: Variant) -> Vec<u32> {
        let webdis = self.webdis.iter().filter(|_| variant == Variant::Webdis);
        webdis.map(|webdis| webdis.process.id()).collect()
    }

    /// How many times each Redis that a variant asks has been asked for a token so far; each of all,
    /// where it should ask none.
    pub(super) fn questions(&self, variant: Variant) -> Result<Vec<f64>> {
        let asked = self.asked(variant);
        if asked.is_empty() {
            self.all_redis().map(Redis::questions).collect()
        } else {
            asked.iter().map(Redis::questions).collect()
        }
    }

    /// An error if something has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.upstream.check().context("the upstream")?;
        let redis = self.redis.iter_mut().chain(self.cluster.iter_mut().flatten());
        redis.map(|redis| &mut redis.server).chain(&mut self.webdis).try_for_each(Server::check)
    }

    fn asked(&self, variant: Variant) -> &[Redis] {
        if variant == Variant::RedisCluster {
            self.cluster.as_ref().map_or(&[], |nodes| nodes)
        } else if variant.needs_redis() {
            self.redis.as_slice()
        } else {
            &[]
        }
    }

    fn all_redis(&self) -> impl Iterator<Item = &Redis> {
        self.redis.iter().chain(self.cluster.iter().flatten())
    }
}

/// A program that listens.
struct Server {
    process: Running,
    log: PathBuf,
}

impl Server {
    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.exited()? {
            bail!("a server ended by itself ({status})\n{}", log_tail(&self.log));
        }
        Ok(())
    }

    fn wait_until(&mut self, is_ready: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_ready() {
            self.check()?;
            ensure!(
                start.elapsed() < START_LIMIT,
                "not ready within {} s\n{}",
                START_LIMIT.as_secs(),
                log_tail(&self.log)
            );
            pause(Duration::from_millis(50))?;
        }
        Ok(())
    }
}

/// A `redis-server` that keeps nothing on disk but, as a node, the map of its cluster.
struct Redis {
    server: Server,
    address: SocketAddr,
}

impl Redis {
    /// One that answers. With a bus it is a node of a cluster.
    fn start(machine: &Machine, binary: &Path, address: SocketAddr, bus: Option<SocketAddr>) -> Result<Self> {
        ensure_free(address)?;
        let port = address.port().to_string();
        let directory = directory()?.join(format!("redis-{port}"));
        // A node that finds the map of an earlier cluster looks for that one.
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let log = directory.join("redis.log");

        let mut command = machine.on_other_cpus(binary);
        command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(&directory);
        if let Some(bus) = bus {
            ensure_free(bus)?;
            command.args(["--cluster-enabled", "yes", "--cluster-port", &bus.port().to_string()]);
            command.args(["--cluster-announce-ip", "127.0.0.1"]);
        }
        let process = Running::start_logged(&mut command, &log)?;
        let mut redis = Self { server: Server { process, log }, address };
        redis.server.wait_until(|| ask(address, &["PING"]).is_ok_and(|reply| reply == "PONG"))?;
        Ok(redis)
    }

    fn command(&self, words: &[&str]) -> Result<String> {
        ask(self.address, words).with_context(|| format!("{} to Redis at {}", words[0], self.address))
    }

    /// A failed EVALSHA, which EVAL follows, counts once more. There are few.
    fn questions(&self) -> Result<f64> {
        let stats = self.command(&["INFO", "commandstats"])?;
        let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse().ok();
        Ok(stats.lines().find_map(calls).unwrap_or(0.0))
    }
}

/// Makes a cluster of three masters.
fn join(nodes: &[Redis; 3], buses: &[SocketAddr; 3]) -> Result<()> {
    let count = nodes.len();
    for (index, node) in nodes.iter().enumerate() {
        let (first, after) = (SLOTS * index / count, SLOTS * (index + 1) / count);
        node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(after - 1).to_string()])?;
        node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()])?;
    }
    for (node, bus) in nodes.iter().zip(buses).skip(1) {
        let [port, bus] = [node.address, *bus].map(|address| address.port().to_string());
        nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
    }
    let start = Instant::now();
    for node in nodes {
        let is_whole = |info: &str| {
            ["cluster_state:ok", "cluster_known_nodes:3"].iter().all(|line| info.lines().any(|l| l == *line))
        };
        while !is_whole(&node.command(&["CLUSTER", "INFO"])?) {
            ensure!(start.elapsed() < START_LIMIT, "no cluster\n{}", log_tail(&node.server.log));
            pause(Duration::from_millis(50))?;
        }
    }
    Ok(())
}

/// webdis as Debian sets it up, less the log of each request.
fn start_webdis(machine: &Machine, addresses: &Addresses) -> Result<Server> {
    ensure_free(addresses.webdis)?;
    let binary = tools::webdis()?;
    let directory = directory()?;
    let (file, log) = (directory.join("webdis-settings.json"), directory.join("webdis.log"));
    let settings = json!({
        "redis_host": addresses.redis.ip(),
        "redis_port": addresses.redis.port(),
        "http_host": addresses.webdis.ip(),
        "http_port": addresses.webdis.port(),
        "threads": 2,
        "daemonize": false,
        "database": 0,
        "verbosity": 0,
        "logfile": directory.join("webdis-requests.log"),
    });
    fs::write(&file, serde_json::to_vec_pretty(&settings)?)?;
    let process = Running::start_logged(machine.on_other_cpus(&binary).arg(&file), &log)?;
    let mut webdis = Server { process, log };
    webdis.wait_until(|| http::get(addresses.webdis, "/PING", &[]).is_ok_and(|reply| reply.status == 200))?;
    Ok(webdis)
}

/// Runs one command on a connection of its own. A simple reply or a string is returned; everything
/// else is an error.
fn ask(address: SocketAddr, words: &[&str]) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(command.as_bytes())?;

    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end();
    if let Some(simple) = line.strip_prefix('+') {
        return Ok(simple.to_owned());
    }
    let length = line.strip_prefix('$').and_then(|length| length.parse().ok());
    let mut text = vec![0; length.with_context(|| format!("the reply is {line:?}"))?];
    reader.read_exact(&mut text)?;
    Ok(String::from_utf8(text)?)
}
