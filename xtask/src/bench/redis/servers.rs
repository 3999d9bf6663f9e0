//! The servers behind the measured Envoy: the upstream, one Redis, a cluster of three, webdis.

use std::net::SocketAddr;
use std::slice;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::redis::Redis;
use harness::redis_cluster::RedisCluster;
use serde_json::json;

use super::super::{Machine, UPSTREAM, directory, start_envoy};
use super::variant::{self, Variant};
use crate::envoy::{ensure_free, loopback};
use crate::process::Running;
use crate::{http, step, tools, workspace};

const START_LIMIT: Duration = Duration::from_secs(20);

/// The limiter's own script, which webdis runs as well.
const SCRIPT: &str = include_str!("../../../../src/store/redis/take.lua");

pub(super) const WEBDIS: SocketAddr = loopback(18003);

pub(super) struct Servers {
    upstream: Running,
    webdis: Option<Running>,
    redis: Option<Redis>,
    cluster: Option<RedisCluster>,
    pub(super) script: String,
}

impl Servers {
    pub(super) fn start(machine: &Machine, variants: &[Variant]) -> Result<Self> {
        step("starting the servers behind Envoy");
        ensure_free([UPSTREAM])?;
        let command = machine.on_other_cpus(&machine.envoy);
        let upstream = start_envoy(command, 1, "upstream", &variant::upstream(), (UPSTREAM, "/"))?;

        let redis = variants.iter().any(|variant| variant.needs_redis()).then(Redis::start);
        let cluster = variants.contains(&Variant::RedisCluster).then(RedisCluster::of_masters);
        let script = redis.as_ref().map(|redis| redis.command(&["SCRIPT", "LOAD", SCRIPT]).text());
        let webdis = match &redis {
            Some(redis) if variants.contains(&Variant::Webdis) => {
                Some(start_webdis(machine, redis.address())?)
            }
            _ => None,
        };
        Ok(Self { upstream, webdis, redis, cluster, script: script.unwrap_or_default() })
    }

    pub(super) fn redis(&self) -> Result<SocketAddr> {
        Ok(self.redis.as_ref().context("no Redis was started")?.address())
    }

    pub(super) fn nodes(&self) -> Result<Vec<SocketAddr>> {
        Ok(self.cluster.as_ref().context("no cluster was started")?.addresses())
    }

    pub(super) fn redis_processes(&self, variant: Variant) -> Vec<u32> {
        self.redis_of(variant).iter().map(Redis::id).collect()
    }

    /// Ids of other processes between a variant's Envoy and Redis.
    pub(super) fn other_processes(&self, variant: Variant) -> Vec<u32> {
        let webdis = self.webdis.iter().filter(|_| variant == Variant::Webdis);
        webdis.map(Running::id).collect()
    }

    /// The script calls in each Redis that a variant uses so far; in all of them if it should use none. A failed
    /// EVALSHA, which is followed by EVAL, counts once more, but there are few.
    pub(super) fn commands(&self, variant: Variant) -> Vec<f64> {
        let calls = |redis: &Redis| redis.calls("evalsha") as f64;
        match self.redis_of(variant) {
            [] => self.redis.iter().chain(self.masters()).map(calls).collect(),
            used => used.iter().map(calls).collect(),
        }
    }

    pub(super) fn check(&mut self) -> Result<()> {
        self.upstream.check()?;
        self.webdis.as_mut().map_or(Ok(()), Running::check)
    }

    fn redis_of(&self, variant: Variant) -> &[Redis] {
        if variant == Variant::RedisCluster {
            self.masters()
        } else {
            self.redis.as_ref().filter(|_| variant.needs_redis()).map_or(&[], slice::from_ref)
        }
    }

    fn masters(&self) -> &[Redis] {
        self.cluster.as_ref().map_or(&[], RedisCluster::masters)
    }
}

/// Starts webdis with Debian's settings, but without a log of each request.
fn start_webdis(machine: &Machine, redis: SocketAddr) -> Result<Running> {
    ensure_free([WEBDIS])?;
    let (binary, _) = tools::program("WEBDIS", &["webdis"], "webdis")?;
    let directory = directory();
    let file = directory.join("webdis-settings.json");
    let settings = json!({
        "redis_host": redis.ip(),
        "redis_port": redis.port(),
        "http_host": WEBDIS.ip(),
        "http_port": WEBDIS.port(),
        "threads": 2,
        "daemonize": false,
        "database": 0,
        "verbosity": 0,
        "logfile": directory.join("webdis-requests.log"),
    });
    workspace::write(&file, format!("{settings:#}"))?;
    let mut command = machine.on_other_cpus(&binary);
    let mut webdis = Running::start_logged(command.arg(&file), &directory.join("webdis.log"))?;
    webdis.wait_until_ready(START_LIMIT, || http::get_ok(WEBDIS, "/PING"))?;
    Ok(webdis)
}
