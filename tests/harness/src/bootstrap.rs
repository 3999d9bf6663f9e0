//! Parts of Envoy's configuration.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

pub const WASM_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";

pub const HTTP_PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub fn socket(address: SocketAddr) -> Value {
    tcp(&address.ip().to_string(), address.port())
}

pub fn tcp(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// An extension by its name and the full name of its type.
pub fn extension(name: &str, kind: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": name, "typed_config": fields})
}

/// The bootstrap extension for internal listeners.
pub fn internal_listeners() -> Value {
    let kind = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    extension("envoy.bootstrap.internal_listener", kind, json!({}))
}

/// A listener whose HTTP connection manager has these fields, and these filters before the router.
pub fn listener(
    name: &str,
    address: &Value,
    mut fields: Value,
    filters: impl IntoIterator<Item = Value>,
) -> Value {
    let router = "envoy.extensions.filters.http.router.v3.Router";
    let router = extension("envoy.filters.http.router", router, json!({}));
    fields["stat_prefix"] = name.into();
    fields["http_filters"] = filters.into_iter().chain([router]).collect();
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = extension("envoy.filters.network.http_connection_manager", kind, fields);
    json!({"name": name, "address": address, "filter_chains": [{"filters": [manager]}]})
}

/// A route configuration with these routes for all hosts.
pub fn routes(routes: &Value) -> Value {
    json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]})
}

pub fn cluster(name: &str, addresses: &[Value]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"endpoint": {"address": address}})).collect();
    json!({
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

/// A cluster that uses HTTP/2.
pub fn http2_cluster(name: &str, addresses: &[Value]) -> Value {
    let mut cluster = cluster(name, addresses);
    cluster["typed_extension_protocol_options"] = http2(&json!([]));
    cluster
}

/// Protocol options for HTTP/2, with these upstream filters.
fn http2(filters: &Value) -> Value {
    let mut options = json!({
        "@type": format!("type.googleapis.com/{HTTP_PROTOCOL_OPTIONS}"),
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    if filters != &json!([]) {
        options["http_filters"] = filters.clone();
    }
    json!({HTTP_PROTOCOL_OPTIONS: options})
}

/// A Wasm filter in its own VM; its name is also that of the VM and of the root context.
pub fn wasm(name: &str, file: &Path, fields: Value) -> Value {
    let mut config = json!({
        "name": name,
        "root_id": name,
        "allow_on_headers_stop_iteration": true,
        "failure_policy": "FAIL_RELOAD",
        "vm_config": {
            "vm_id": name,
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": file}},
        },
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!({"name": name, "typed_config": {"@type": WASM_TYPE, "config": config}})
}

/// A plugin's configuration as text.
pub fn string_value(text: &str) -> Value {
    json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text})
}

/// An HTTP cluster whose streams are raw TCP connections, with the Redis bridge as upstream filter.
pub fn redis_bridge(name: &str, endpoint: &Value, filter: &Path) -> Value {
    let pool = "envoy.extensions.upstreams.http.tcp.v3.TcpConnectionPoolProto";
    let codec = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec";
    let codec = extension("envoy.filters.http.upstream_codec", codec, json!({}));
    let mut bridge = cluster(name, std::slice::from_ref(endpoint));
    bridge["connect_timeout"] = "0.25s".into();
    bridge["upstream_config"] = extension("envoy.filters.connection_pools.http.tcp", pool, json!({}));
    bridge["typed_extension_protocol_options"] =
        http2(&json!([wasm("redis_bridge", filter, json!({})), codec]));
    bridge
}

/// A cluster that reads the owners of slots from these nodes of a Redis Cluster.
pub fn redis_nodes(name: &str, nodes: &[SocketAddr], refresh: Value) -> Value {
    let kind = "envoy.extensions.clusters.redis.v3.RedisClusterConfig";
    let mut cluster = cluster(name, &nodes.iter().copied().map(socket).collect::<Vec<_>>());
    cluster["connect_timeout"] = "0.25s".into();
    cluster["lb_policy"] = "CLUSTER_PROVIDED".into();
    cluster["cluster_type"] = extension("envoy.clusters.redis", kind, refresh);
    cluster
}

/// An internal listener of this name with `redis_proxy` for the cluster of the same name.
pub fn redis_proxy(name: &str, settings: &Value) -> Value {
    let kind = "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy";
    let fields = json!({
        "stat_prefix": name,
        "settings": settings,
        "prefix_routes": {"catch_all_route": {"cluster": name}},
    });
    let proxy = extension("envoy.filters.network.redis_proxy", kind, fields);
    json!({"name": name, "internal_listener": {}, "filter_chains": [{"filters": [proxy]}]})
}

pub fn internal(name: &str) -> Value {
    json!({"envoy_internal_address": {"server_listener_name": name}})
}
