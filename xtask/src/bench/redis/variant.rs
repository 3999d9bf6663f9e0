//! The measured variants as Envoy bootstraps.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use harness::bootstrap::{
    cluster, extension, internal, internal_listeners, redis_bridge, redis_nodes, redis_proxy, socket,
};
use serde_json::{Value, json};

use super::super::config::{FILTER, answer, callers, limiter, listener};
use super::super::load::Callers;
use super::super::{ADMIN, Expected, SERVICE, UPSTREAM};
use super::servers::{Servers, WEBDIS};

/// The name of the cluster with the Redis bridge.
const BRIDGE: &str = "redis";
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
    /// a Lua filter that queries webdis, no headers
    Webdis,
    /// ours, shared data, rejecting (429, no upstream)
    SharedDataRejecting,
    /// ours, Redis, rejecting (429, no upstream)
    RedisRejecting,
}

impl Variant {
    pub(super) fn expected(self) -> Expected {
        Expected {
            rejects: matches!(self, Self::SharedDataRejecting | Self::RedisRejecting),
            has_limit_headers: !matches!(self, Self::None | Self::Webdis),
        }
    }

    /// The expected number of commands to Redis for a request, on average.
    pub(super) fn commands(self) -> RangeInclusive<f64> {
        match self {
            Self::None | Self::SharedData | Self::SharedDataRejecting => 0.0..=0.0,
            Self::Redis | Self::RedisCluster | Self::Webdis => 0.99..=1.01,
            // Once a second the limiter queries Redis again, for all requests that wait at that moment.
            Self::RedisRejecting => 0.0..=0.01,
        }
    }

    pub(super) fn callers(self) -> Callers {
        let expected = self.expected();
        if expected.rejects { Callers::One(expected.api_key()) } else { Callers::InTurn }
    }

    /// Whether our limiter uses Redis.
    pub(super) fn uses_redis_store(self) -> bool {
        matches!(self, Self::Redis | Self::RedisCluster | Self::RedisRejecting)
    }

    /// Whether it uses the one Redis, directly or through webdis.
    pub(super) fn needs_redis(self) -> bool {
        matches!(self, Self::Redis | Self::RedisRejecting | Self::Webdis)
    }

    /// An Envoy in front of the upstream, with this variant's filter.
    pub(super) fn bootstrap(self, servers: &Servers) -> Result<Value> {
        let host = json!({
            "name": "bench",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
        });
        let mut listeners = vec![listener(SERVICE, self.filter(&servers.script), &host)];
        let mut clusters = vec![cluster("upstream", &[socket(UPSTREAM)])];
        let bridge = |endpoint| redis_bridge(BRIDGE, &endpoint, Path::new(FILTER));
        match self {
            Self::None | Self::SharedData | Self::SharedDataRejecting => {}
            Self::Redis | Self::RedisRejecting => clusters.push(bridge(socket(servers.redis()?))),
            Self::RedisCluster => {
                clusters.push(bridge(internal(NODES)));
                clusters.push(redis_nodes(NODES, &servers.nodes()?, refresh()));
                listeners.push(redis_proxy(NODES, &proxy_settings()));
            }
            Self::Webdis => clusters.push(cluster("webdis", &[socket(WEBDIS)])),
        }
        Ok(json!({
            "admin": {"address": socket(ADMIN)},
            "bootstrap_extensions": [internal_listeners()],
            "static_resources": {"listeners": listeners, "clusters": clusters},
        }))
    }

    fn filter(self, script: &str) -> Option<Value> {
        let mut settings = callers();
        match self {
            Self::None => return None,
            Self::Webdis => return Some(lua(script)),
            Self::SharedData | Self::SharedDataRejecting => {}
            Self::Redis | Self::RedisRejecting | Self::RedisCluster => {
                settings["store"] =
                    json!({"kind": "redis", "cluster": BRIDGE, "timeout_ms": 20, "on_failure": "local"});
            }
        }
        Some(limiter(&settings))
    }
}

/// The upstream: an Envoy with a direct response.
pub(super) fn upstream() -> Value {
    let host = json!({"name": "upstream", "domains": ["*"], "routes": [answer()]});
    json!({"static_resources": {"listeners": [listener(UPSTREAM, None, &host)]}})
}

/// The cheapest way in which stock Envoy can query an HTTP service about a request, send the caller, and read the
/// reply. An external authorizer has a fixed path and uses only the status, which is 200 in webdis for every reply of
/// Redis.
fn lua(script: &str) -> Value {
    let code = format!("local sha = \"{script}\"\n{}", include_str!("webdis.lua"));
    let fields = json!({"default_source_code": {"inline_string": code}});
    extension("envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.Lua", fields)
}

/// As in deploy/redis-cluster/envoy.yaml, like [`refresh`].
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
