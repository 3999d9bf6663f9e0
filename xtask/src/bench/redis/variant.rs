//! What is measured, as Envoy bootstraps.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::super::config::{KEYS, REFUSED_KEY, answer, bridge, callers, limiter, listener, socket};
use super::super::load::Callers;
use super::servers::Addresses;

/// What the limiter calls the cluster that leads to Redis.
const PIPE: &str = "redis";
const PROXY: &str = "redis_proxy";
const NODES: &str = "redis_nodes";

/// One way to run Envoy in front of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Variant {
    None,
    SharedData,
    Redis,
    RedisCluster,
    Webdis,
    SharedDataRefusing,
    RedisRefusing,
}

impl Variant {
    pub(super) const ALL: [Self; 7] = [
        Self::None,
        Self::SharedData,
        Self::Redis,
        Self::RedisCluster,
        Self::Webdis,
        Self::SharedDataRefusing,
        Self::RedisRefusing,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SharedData => "shared-data",
            Self::Redis => "redis",
            Self::RedisCluster => "redis-cluster",
            Self::Webdis => "webdis",
            Self::SharedDataRefusing => "shared-data-refusing",
            Self::RedisRefusing => "redis-refusing",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::None => "no limiter",
            Self::SharedData => "ours, shared data",
            Self::Redis => "ours, Redis",
            Self::RedisCluster => "ours, Redis Cluster of three",
            Self::Webdis => "a Lua filter that asks webdis, no headers",
            Self::SharedDataRefusing => "ours, shared data, refusing (429, no upstream)",
            Self::RedisRefusing => "ours, Redis, refusing (429, no upstream)",
        }
    }

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

    /// An Envoy in front of the upstream, with this variant's filter. `script` is the name by which
    /// Redis knows the limiter's own.
    pub(super) fn bootstrap(self, addresses: &Addresses, script: &str) -> Value {
        let host = json!({
            "name": "bench",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
        });
        let mut listeners = vec![listener(addresses.service, self.filter(script), &host)];
        let mut clusters = vec![cluster("upstream", &[socket(addresses.upstream)])];
        match self {
            Self::None | Self::SharedData | Self::SharedDataRefusing => {}
            Self::Redis | Self::RedisRefusing => clusters.push(pipe(&socket(addresses.redis))),
            Self::RedisCluster => {
                clusters.push(pipe(&json!({"envoy_internal_address": {"server_listener_name": PROXY}})));
                clusters.push(nodes(&addresses.nodes));
                listeners.push(proxy());
            }
            Self::Webdis => clusters.push(cluster("webdis", &[socket(addresses.webdis)])),
        }
        json!({
            "admin": {"address": socket(addresses.admin)},
            "bootstrap_extensions": [{
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
                },
            }],
            "static_resources": {"listeners": listeners, "clusters": clusters},
        })
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
    json!({
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {
                "inline_string": format!("local sha = \"{script}\"\n{}", include_str!("webdis.lua")),
            },
        },
    })
}

/// As in deploy/redis/envoy.yaml.
fn pipe(endpoint: &Value) -> Value {
    let mut pipe = cluster(PIPE, std::slice::from_ref(endpoint));
    pipe["upstream_config"] = json!({
        "name": "envoy.filters.connection_pools.http.tcp",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.tcp.v3.TcpConnectionPoolProto",
        },
    });
    let codec = json!({
        "name": "envoy.filters.http.upstream_codec",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
        },
    });
    pipe["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
            "http_filters": [bridge(), codec],
        },
    });
    pipe
}

/// As in deploy/redis-cluster/envoy.yaml, and so is [`nodes`].
fn proxy() -> Value {
    json!({
        "name": PROXY,
        "internal_listener": {},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.redis_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
                "stat_prefix": "redis",
                "settings": {
                    "op_timeout": "0.1s",
                    "enable_redirection": true,
                    "dns_cache_config": {"name": NODES, "dns_lookup_family": "V4_PREFERRED"},
                },
                "prefix_routes": {"catch_all_route": {"cluster": NODES}},
            },
        }]}],
    })
}

fn nodes(addresses: &[SocketAddr]) -> Value {
    let mut nodes = cluster(NODES, &addresses.iter().copied().map(socket).collect::<Vec<_>>());
    nodes["lb_policy"] = json!("CLUSTER_PROVIDED");
    nodes["cluster_type"] = json!({
        "name": "envoy.clusters.redis",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.clusters.redis.v3.RedisClusterConfig",
            "cluster_refresh_rate": "1s",
            "cluster_refresh_timeout": "0.5s",
            "redirect_refresh_interval": "0.5s",
            "redirect_refresh_threshold": 5,
            "failure_refresh_threshold": 5,
        },
    });
    nodes
}

fn cluster(name: &str, addresses: &[Value]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"endpoint": {"address": address}})).collect();
    json!({
        "name": name,
        "connect_timeout": "0.25s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}
