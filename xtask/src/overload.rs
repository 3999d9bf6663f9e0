//! Shared by `bench --overload` and `demo --overload`: the load, the upstream, and the Envoy between them.
//!
//! Load and upstream are a separate program, `bench/loadgen`, built with optimisations: the load must not be the
//! bottleneck.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use harness::bootstrap;
use serde_json::{Map, Value, json};

use crate::bench::config::{limiter, socket};
use crate::process::{Running, run};
use crate::{http, step, workspace};

const START_LIMIT: Duration = Duration::from_secs(10);

/// The route timeout for clients with a timeout of one second: it is shorter, so that Envoy itself detects that the
/// upstream did not answer.
pub(crate) const ROUTE_TIMEOUT: &str = "0.9s";

pub(crate) const HEALTH_PATH: &str = "/system/health";

/// The number of callers with keys of each tier, as in `bench/loadgen/src/plan.rs`.
const KEYS: [(&str, u32); 2] = [("pro", 200), ("enterprise", 40)];

pub(crate) struct Program(PathBuf);

impl Program {
    pub(crate) fn build() -> Result<Self> {
        step("building the load and the upstream");
        run(workspace::cargo().args("build --quiet --profile search --package loadgen".split(' ')))?;
        Ok(Self(workspace::target().join("search/loadgen")))
    }

    pub(crate) fn subcommand(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.current_dir(workspace::root()).arg(subcommand);
        command
    }

    pub(crate) fn upstream(&self, address: SocketAddr, arguments: &str, log: &Path) -> Result<Running> {
        let mut command = self.subcommand("upstream");
        command.args(["--listen", &address.to_string()]).args(arguments.split(' '));
        let mut running = Running::start_logged(&mut command, log)?;
        running.wait_until_ready(START_LIMIT, || http::get(address, "/", &[]).map(drop))?;
        Ok(running)
    }

    pub(crate) fn load(&self, to: SocketAddr, plan: &str) -> Command {
        let mut command = self.subcommand("load");
        command.args(["--to", &to.to_string()]).args(plan.split(' '));
        command
    }
}

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
        // Each caller of this load has its own address in X-Forwarded-For, as behind a load balancer.
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

pub(crate) fn ours(mut health: Value) -> Value {
    health["mode"] = "auto".into();
    limiter(&json!({"tiers": tiers(), "default_tier": "free", "api_keys": api_keys(), "health": health}))
}

/// No caller reaches a limit: the load tests shedding, not buckets.
pub(crate) fn tiers() -> Value {
    let tier = json!({"base": {"capacity": 100_000, "refill_rate": 10_000}, "ttl": 60});
    json!({"free": tier, "pro": tier, "enterprise": tier})
}

fn api_keys() -> Value {
    let keys = KEYS.into_iter().flat_map(|(tier, count)| (0..count).map(move |number| (tier, number)));
    let entry = |(tier, number)| {
        let key = format!("{tier}-{number}");
        (key.clone(), json!({"tier": tier, "id": key}))
    };
    keys.map(entry).collect::<Map<_, _>>().into()
}
