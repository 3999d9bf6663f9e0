//! What is measured, as Envoy bootstraps.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use harness::bootstrap::{
    cluster, extension, internal, internal_listeners, redis_bridge, redis_nodes, redis_proxy, socket,
};
use serde_json::{Value, json};

use super::super::config::{FILTER, KEYS, REFUSED_KEY, answer, callers, limiter, listener};
use super::super::load::Callers;
use super::servers::Servers;

/// What the limiter calls the cluster that leads to Redis.
const PIPE: &str = "redis";
const NODES: &str = "redis_nodes";

/// One way to run Envoy in front of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Variant {
    /// no limiter
    None,
    /// ours, shared data
    SharedData,
    /// ours, Redis
    Redis,
    /// ours, Redis Cluster of three
    RedisCluster,
    /// a Lua filter that asks webdis, no headers
    Webdis,
    /// ours, shared data, refusing (429, no upstream)
    SharedDataRefusing,
    /// ours, Redis, refusing (429, no upstream)
    RedisRefusing,
}

impl Variant {
    /// Whether it says in headers what it took.
    pub(super) fn has_limit_headers(self) -> bool {
        !matches!(self, Self::None | Self::Webdis)
    }

    /// Whether it refuses nearly every request rather than none.
    pub(super) fn refuses(self) -> bool {
        matches!(self, Self::SharedDataRefusing | Self::RedisRefusing)
    }

    /// How many questions a request may cost Redis, on average.
    pub(super) fn questions(self) -> RangeInclusive<f64> {
        match self {
            Self::None | Self::SharedData | Self::SharedDataRefusing => 0.0..=0.0,
            Self::Redis | Self::RedisCluster | Self::Webdis => 0.99..=1.01,
            // Once a second somebody is asked about again, by all who are waiting just then.
            Self::RedisRefusing => 0.0..=0.01,
        }
    }

    pub(super) fn callers(self) -> Callers {
        if self.refuses() { Callers::One(REFUSED_KEY) } else { Callers::InTurn(KEYS) }
    }

    /// A key that it knows.
    pub(super) fn api_key(self) -> &'static str {
        if self.refuses() { REFUSED_KEY } else { "key-50" }
    }

    /// Whether our limiter asks Redis.
    pub(super) fn has_pipe(self) -> bool {
        matches!(self, Self::Redis | Self::RedisCluster | Self::RedisRefusing)
    }

    /// Whether the one Redis is asked, by whomever.
    pub(super) fn needs_redis(self) -> bool {
        matches!(self, Self::Redis | Self::RedisRefusing | Self::Webdis)
    }

    /// An Envoy in front of the upstream, with this variant's filter.
    pub(super) fn bootstrap(self, servers: &Servers) -> Result<Value> {
        let host = json!({
            "name": "bench",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
        });
        let mut listeners = vec![listener(servers.service(), self.filter(&servers.script), &host)];
        let mut clusters = vec![cluster("upstream", &[socket(servers.upstream())])];
        let pipe = |endpoint| redis_bridge(PIPE, &endpoint, Path::new(FILTER));
        match self {
            Self::None | Self::SharedData | Self::SharedDataRefusing => {}
            Self::Redis | Self::RedisRefusing => clusters.push(pipe(socket(servers.redis()?))),
            Self::RedisCluster => {
                clusters.push(pipe(internal(NODES)));
                clusters.push(redis_nodes(NODES, &servers.nodes()?, refresh()));
                listeners.push(redis_proxy(NODES, &proxy_settings()));
            }
            Self::Webdis => clusters.push(cluster("webdis", &[socket(servers.webdis())])),
        }
        Ok(json!({
            "admin": {"address": socket(servers.admin())},
            "bootstrap_extensions": [internal_listeners()],
            "static_resources": {"listeners": listeners, "clusters": clusters},
        }))
    }

    fn filter(self, script: &str) -> Option<Value> {
        let mut settings = callers();
        match self {
            Self::None => return None,
            Self::Webdis => return Some(lua(script)),
            Self::SharedData | Self::SharedDataRefusing => {}
            Self::Redis | Self::RedisRefusing | Self::RedisCluster => {
                settings["store"] =
                    json!({"kind": "redis", "cluster": PIPE, "timeout_ms": 20, "on_failure": "local"});
            }
        }
        Some(limiter(&settings))
    }
}

/// The upstream: an Envoy that answers by itself.
pub(super) fn upstream(address: SocketAddr) -> Value {
    let host = json!({"name": "upstream", "domains": ["*"], "routes": [answer()]});
    json!({"static_resources": {"listeners": [listener(address, None, &host)]}})
}

/// Of stock Envoy's ways to ask an HTTP service about a request, this is the cheapest that can tell
/// who asks and read the reply: an external authorizer has a fixed path, and looks at the status,
/// which webdis makes 200 whatever Redis says.
fn lua(script: &str) -> Value {
    let code = format!("local sha = \"{script}\"\n{}", include_str!("webdis.lua"));
    let fields = json!({"default_source_code": {"inline_string": code}});
    extension("envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.Lua", fields)
}

/// As in deploy/redis-cluster/envoy.yaml, and so is [`refresh`].
fn proxy_settings() -> Value {
    json!({
        "op_timeout": "0.1s",
        "enable_redirection": true,
        "dns_cache_config": {"name": NODES, "dns_lookup_family": "V4_PREFERRED"},
    })
}

fn refresh() -> Value {
    json!({
        "cluster_refresh_rate": "1s",
        "cluster_refresh_timeout": "0.5s",
        "redirect_refresh_interval": "0.5s",
        "redirect_refresh_threshold": 5,
        "failure_refresh_threshold": 5,
    })
}
