//! The two ends of an overload, and the Envoy between them: what `bench overload` and `demo --overload` have in common.
//!
//! The ends are a program of its own, `bench/loadgen`, built to be quick: the load must not be what is slow.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::bootstrap;
use serde_json::{Map, Value, json};

use crate::bench::config::{limiter, socket};
use crate::process::{Running, log_tail, pause, run as run_program};
use crate::{http, step, workspace};

/// How long the upstream may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The route timeout where callers wait a second: a little shorter, so that Envoy answers and knows itself that the
/// upstream did not.
pub(crate) const ROUTE_TIMEOUT: &str = "0.9s";

/// The limiter's own word on health.
pub(crate) const HEALTH_PATH: &str = "/system/health";

/// Callers with keys: how many there are of each tier, as `bench/loadgen/src/plan.rs` counts them.
const KEYS: [(&str, u32); 2] = [("pro", 200), ("enterprise", 40)];

/// A tier that nobody gets to the end of, whatever the health: what is to be seen is shedding, not buckets.
const CAPACITY: u32 = 100_000;
const REFILL_RATE: u32 = 10_000;

/// The program, built.
pub(crate) struct Program(PathBuf);

impl Program {
    pub(crate) fn build() -> Result<Self> {
        step("building the load and the upstream");
        run_program(workspace::cargo().args([
            "build",
            "--quiet",
            "--profile",
            "soak",
            "--package",
            "loadgen",
        ]))?;
        Ok(Self(workspace::target().join("soak/loadgen")))
    }

    /// One of its verbs.
    pub(crate) fn verb(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.current_dir(workspace::root()).arg(verb);
        command
    }

    /// An upstream that listens.
    pub(crate) fn upstream(&self, address: SocketAddr, arguments: &[String], log: &Path) -> Result<Running> {
        let mut command = self.verb("upstream");
        command.args(["--listen", &address.to_string()]).args(arguments);
        let mut running = Running::start_logged(&mut command, log)?;
        let start = Instant::now();
        while http::get(address, "/", &[]).is_err() {
            if let Some(status) = running.exited()? {
                bail!("the upstream ended by itself ({status})\n{}", log_tail(log));
            }
            ensure!(start.elapsed() < START_LIMIT, "the upstream does not listen\n{}", log_tail(log));
            pause(Duration::from_millis(20))?;
        }
        Ok(running)
    }

    /// Callers, who ask an Envoy according to a plan.
    pub(crate) fn load(&self, to: SocketAddr, plan: &[String]) -> Command {
        let mut command = self.verb("load");
        command.args(["--to", &to.to_string()]).args(plan);
        command
    }
}

/// Where an Envoy listens, what it protects, and how.
pub(crate) struct Between {
    pub(crate) service: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) route_timeout: &'static str,
    pub(crate) protection: Option<Value>,
}

/// An Envoy between callers, whose addresses it takes from `X-Forwarded-For`, and the upstream.
pub(crate) fn bootstrap(between: Between) -> Value {
    let Between { service, admin, upstream, route_timeout, protection } = between;
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": route_timeout}});
    let fields = json!({
        // The callers of this load have addresses of their own in X-Forwarded-For, as behind a load balancer.
        "use_remote_address": true,
        "xff_num_trusted_hops": 1,
        "route_config": bootstrap::routes(&json!([route])),
    });
    let listener = bootstrap::listener("service", &socket(service), fields, protection);
    json!({
        "node": {"id": "overload", "cluster": "overload"},
        "admin": {"address": socket(admin)},
        "static_resources": {
            "listeners": [listener],
            "clusters": [bootstrap::cluster("upstream", &[socket(upstream)])],
        },
    })
}

/// Our limiter, measuring, with these bounds on top of the defaults.
pub(crate) fn ours(bounds: &Value) -> Value {
    let mut health = json!({"mode": "auto"});
    for (name, value) in bounds.as_object().into_iter().flatten() {
        health[name] = value.clone();
    }
    limiter(&json!({"tiers": tiers(), "default_tier": "free", "api_keys": api_keys(), "health": health}))
}

/// The tier document.
pub(crate) fn tiers() -> Value {
    let tier = json!({"base": {"capacity": CAPACITY, "refill_rate": REFILL_RATE}, "ttl": 60});
    json!({"free": tier, "pro": tier, "enterprise": tier})
}

fn api_keys() -> Value {
    let of_tier = |(tier, count): (&'static str, u32)| {
        (0..count).map(move |number| format!("{tier}-{number}")).map(move |key| (tier, key))
    };
    let keys = KEYS.into_iter().flat_map(of_tier);
    keys.map(|(tier, key)| (key.clone(), json!({"tier": tier, "id": key}))).collect::<Map<_, _>>().into()
}

/// Writes a bootstrap where an Envoy is to find it.
pub(crate) fn write(bootstrap: &Value, file: &Path) -> Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(file, serde_json::to_vec_pretty(bootstrap)?)
        .with_context(|| format!("cannot write {}", file.display()))
}
