//! The Redis side of a bootstrap: the cluster with the bridge, and what stands behind it.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::{Setup, WASM_TYPE, endpoints, tcp};
use crate::envoy::filter_wasm;

/// The Envoy cluster that a test's `store` names.
pub const REDIS_CLUSTER: &str = "redis";

/// The internal listener whose filter is `redis_proxy`.
const NODES_LISTENER: &str = "redis_nodes";

impl Setup {
    /// Adds the cluster [`REDIS_CLUSTER`] with the bridge, which leads to this one Redis.
    pub fn redis(mut self, address: SocketAddr) -> Self {
        self.clusters.push(bridge(&tcp(&address.ip().to_string(), address.port())));
        self
    }

    /// The same over TLS, trusting the authority in this file and expecting the name `redis.test`.
    pub fn redis_tls(self, address: SocketAddr, authority: &Path) -> Self {
        let mut setup = self.redis(address);
        if let Some(cluster) = setup.clusters.last_mut() {
            cluster["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": "redis.test",
                    "common_tls_context": {"validation_context": {
                        "trusted_ca": {"filename": authority},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "redis.test"}}],
                    }},
                },
            });
        }
        setup
    }

    /// The same to a Redis Cluster: behind the bridge is an internal listener with `redis_proxy`, which finds
    /// out from these nodes who has which slot.
    pub fn redis_nodes(mut self, nodes: &[SocketAddr]) -> Self {
        let internal = json!({"envoy_internal_address": {"server_listener_name": NODES_LISTENER}});
        self.clusters.push(bridge(&internal));
        let nodes: Vec<_> = nodes.iter().map(|node| tcp(&node.ip().to_string(), node.port())).collect();
        self.clusters.push(json!({
            "name": NODES_LISTENER,
            "connect_timeout": "0.25s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {
                "name": "envoy.clusters.redis",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.clusters.redis.v3.RedisClusterConfig",
                    "cluster_refresh_rate": "1s",
                    "cluster_refresh_timeout": "0.5s",
                    "redirect_refresh_interval": "0.2s",
                    "redirect_refresh_threshold": 1,
                },
            },
            "load_assignment": {"cluster_name": NODES_LISTENER, "endpoints": endpoints(&nodes)},
        }));
        self.internal_listeners.push(json!({
            "name": NODES_LISTENER,
            "internal_listener": {},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.redis_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
                    "stat_prefix": NODES_LISTENER,
                    "settings": {"op_timeout": "1s", "enable_redirection": true},
                    "prefix_routes": {"catch_all_route": {"cluster": NODES_LISTENER}},
                },
            }]}],
        }));
        self
    }
}

/// An HTTP cluster whose streams are raw TCP connections, with the filter's other half on them.
fn bridge(endpoint: &Value) -> Value {
    json!({
        "name": REDIS_CLUSTER,
        "connect_timeout": "0.25s",
        "upstream_config": {
            "name": "envoy.filters.connection_pools.http.tcp",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.tcp.v3.TcpConnectionPoolProto",
            },
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
                "http_filters": [
                    {
                        "name": "redis_bridge",
                        "typed_config": {"@type": WASM_TYPE, "config": {
                            "name": "redis_bridge",
                            "root_id": "redis_bridge",
                            "failure_policy": "FAIL_RELOAD",
                            "vm_config": {
                                "vm_id": "redis_bridge",
                                "runtime": "envoy.wasm.runtime.v8",
                                "code": {"local": {"filename": filter_wasm()}},
                            },
                        }},
                    },
                    {
                        "name": "envoy.filters.http.upstream_codec",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
                        },
                    },
                ],
            },
        },
        "load_assignment": {
            "cluster_name": REDIS_CLUSTER,
            "endpoints": endpoints(std::slice::from_ref(endpoint)),
        },
    })
}
