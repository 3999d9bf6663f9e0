//! The Redis part of a bootstrap: the cluster with the bridge, and its endpoints.

use std::net::SocketAddr;
use std::path::Path;

use harness::bootstrap::{
    HTTP_PROTOCOL_OPTIONS, extension, internal, redis_bridge, redis_nodes, redis_proxy, socket,
};
use serde_json::{Value, json};

use super::{LIMITER, REDIS_CLUSTER, Setup};
use crate::envoy::filter_wasm;

/// The internal listener whose filter is `redis_proxy`.
const NODES_LISTENER: &str = "redis_nodes";

impl Setup {
    /// Adds the cluster [`REDIS_CLUSTER`] with the bridge to this one Redis.
    pub fn redis(self, address: SocketAddr) -> Self {
        self.bridge(REDIS_CLUSTER, &socket(address))
    }

    /// [`Setup::redis`] for a replica set: the cluster lists all its nodes.
    pub fn replica_set(self, nodes: &[SocketAddr]) -> Self {
        let mut setup = self.redis(nodes[0]);
        if let Some(cluster) = setup.clusters.last_mut() {
            let endpoint = |node: &SocketAddr| json!({"endpoint": {"address": socket(*node)}});
            let endpoints: Vec<_> = nodes.iter().map(endpoint).collect();
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = json!(endpoints);
        }
        setup
    }

    /// [`Setup::redis`] with the bridge in the limiter's VM.
    pub fn redis_in_one_vm(self, address: SocketAddr) -> Self {
        let mut setup = self.redis(address);
        if let Some(cluster) = setup.clusters.last_mut() {
            let options = &mut cluster["typed_extension_protocol_options"][HTTP_PROTOCOL_OPTIONS];
            options["http_filters"][0]["typed_config"]["config"]["vm_config"]["vm_id"] = json!(LIMITER);
        }
        setup
    }

    /// Adds the cluster `second_redis` with the bridge to another Redis.
    pub fn second_redis(self, address: SocketAddr) -> Self {
        self.bridge("second_redis", &socket(address))
    }

    /// [`Setup::redis`] over TLS: it trusts the authority in this file and expects the name `redis.test`.
    pub fn redis_tls(self, address: SocketAddr, authority: &Path) -> Self {
        let mut setup = self.redis(address);
        if let Some(cluster) = setup.clusters.last_mut() {
            let kind = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
            let name = json!({"san_type": "DNS", "matcher": {"exact": "redis.test"}});
            let fields = json!({"sni": "redis.test", "common_tls_context": {"validation_context": {
                "trusted_ca": {"filename": authority},
                "match_typed_subject_alt_names": [name],
            }}});
            cluster["transport_socket"] = extension("envoy.transport_sockets.tls", kind, fields);
        }
        setup
    }

    /// [`Setup::redis`] for a Redis Cluster: the bridge leads to an internal listener with `redis_proxy`, which reads
    /// from these nodes which of them owns which slot.
    pub fn redis_nodes(self, nodes: &[SocketAddr]) -> Self {
        let mut setup = self.bridge(REDIS_CLUSTER, &internal(NODES_LISTENER));
        let refresh = json!({
            "cluster_refresh_rate": "1s",
            "cluster_refresh_timeout": "0.5s",
            "redirect_refresh_interval": "0.2s",
            "redirect_refresh_threshold": 1,
        });
        setup.clusters.push(redis_nodes(NODES_LISTENER, nodes, refresh));
        let settings = json!({"op_timeout": "1s", "enable_redirection": true});
        setup.internal_listeners.push(redis_proxy(NODES_LISTENER, &settings));
        setup
    }

    fn bridge(mut self, cluster: &str, endpoint: &Value) -> Self {
        self.clusters.push(redis_bridge(cluster, endpoint, &filter_wasm()));
        self
    }
}
