//! `deploy/istio`: valid by Istio's CRDs, and the configuration that istiod creates from it limits requests in a real
//! Envoy. istiod does not run: this file reimplements how it turns a WasmPlugin and EnvoyFilters into Envoy's
//! configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::drain;
use crate::schemas::{check_istio, check_kubernetes};
use crate::support::{await_that, find};
use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use harness::bootstrap::{WASM_TYPE, cluster, extension, listener, routes, socket, string_value, tcp};
use serde_json::{Value, json};

use crate::manifests::{
    ADMIN_TOKEN, REDIS_ADDRESS, assert_health_is_set, assert_labels, assert_limits, await_degraded, boot,
    environment, manifest, object, redis, socket_address, upstream, wasm_volume,
};

const HCM: &str = "envoy.filters.network.http_connection_manager";
const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
const GATEWAY: &str = "deploy/istio/gateway.yaml";
const REDIS: &str = "deploy/istio/redis.yaml";
const FILTER: &str = "deploy/istio/rate-limiter.yaml";
const PLACE: &str = "/var/lib/rate-limiter";
const LISTENER: &str = "outbound_0.0.0.0_8080";
const PLUGIN: &str = "deploy/istio/wasm-plugin.yaml";

#[test]
fn the_manifests_are_valid_by_schemas_of_kubernetes_and_istio() {
    assert_eq!(check_kubernetes(&manifest(GATEWAY, &[])), Ok(()));
    for file in [REDIS, FILTER, PLUGIN] {
        let documents = manifest(file, &[]);
        assert_eq!(documents.len(), 1);
        check_istio(&documents[0]).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let breaking: [(&str, &str, &str, &str); 4] = [
        (PLUGIN, "pluginName:", "rootID:", "rootID"),
        (PLUGIN, "FAIL_RELOAD", "FAIL_SOMEHOW", "FAIL_SOMEHOW"),
        (PLUGIN, "{name: ADMIN_TOKEN, valueFrom: HOST}", "{name: ADMIN_TOKEN, from: HOST}", "from"),
        (FILTER, "INSERT_BEFORE", "INSERT_SOMEWHERE", "INSERT_SOMEWHERE"),
    ];
    for (file, from, to, named) in breaking {
        let broken = &manifest(file, &[(from, to)])[0];
        assert!(check_istio(broken).is_err_and(|error| error.contains(named)), "{to}");
    }
}

#[test]
fn every_selector_matches_the_gateway() {
    let documents = json!([GATEWAY, REDIS, FILTER, PLUGIN].map(|file| manifest(file, &[])).concat());
    let labels = find("$[?(@.kind == 'Deployment')].spec.template.metadata.labels", &documents);
    let paths = [
        "$[?(@.kind == 'Service')].spec.selector",
        "$[*].spec.selector.matchLabels",
        "$[*].spec.workloadSelector.labels",
    ];
    let selectors: Vec<_> = paths.iter().flat_map(|path| find(path, &documents)).collect();
    assert_eq!((labels.len(), selectors.len()), (1, 5));
    for selector in selectors {
        for (label, value) in selector.as_object().expect("labels") {
            assert_eq!(labels[0][label], *value);
        }
    }
}

#[test]
fn limits_health_and_labels_work_by_envoy_filter() {
    let (redis, upstream) = (redis(), upstream());
    let filters = [redis_filter(&redis), manifest(FILTER, &[LONG_TIMEOUT]).remove(0)];
    let delivered = patched(gateway(upstream.address(), &[]), &filters);
    let envoy = delivered.start();
    let service = envoy.listener(LISTENER);
    assert_limits(service, &redis);
    assert_health_is_set(service, &redis);
    assert_labels(&envoy);
    // The patches also set this.
    let dump = envoy.admin("/config_dump?resource=static_listeners");
    assert!(dump.contains(r#""request_timeout": "60s""#), "{dump}");
}

#[test]
fn a_changed_envoy_filter_applies_without_a_restart_and_an_invalid_one_is_refused() {
    let (redis, upstream) = (redis(), upstream());
    let deliver = |tiers: &str| {
        let change =
            (r#""free": {"base": {"capacity": 5, "refill_rate": 1}, "burst": {"capacity": 10},"#, tiers);
        let filters = [redis_filter(&redis), manifest(FILTER, &[LONG_TIMEOUT, change]).remove(0)];
        patched(gateway(upstream.address(), &[]), &filters)
    };
    let envoy = deliver(r#""free": {"base": {"capacity": 111, "refill_rate": 1},"#).start();
    let mut connection = Connection::open(envoy.listener(LISTENER));
    assert_eq!(connection.send(&Request::get("/test")).limit(), 111);
    deliver(r#""free": {"base": {"capacity": 222, "refill_rate": 1},"#).deliver(&envoy, 2);
    await_that("the new limit", || connection.send(&Request::get("/test")).limit() == 222);
    deliver(r#""free": {"base": {"capacity": -1, "refill_rate": 1},"#).deliver(&envoy, 3);
    envoy.await_log(&["tiers.free.base.capacity", "-1"]);
    assert_eq!(connection.send(&Request::get("/test")).limit(), 222);
}

#[test]
fn as_a_wasm_plugin_it_limits_and_takes_health_from_redis() {
    let (redis, upstream) = (redis(), upstream());
    let plugin = &manifest(PLUGIN, &[("timeout_ms: 20,", "timeout_ms: 5000,")])[0];
    let resource = extension_config(plugin);
    let discovered = json!({
        "name": resource["name"],
        "config_discovery": {
            "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            "type_urls": [WASM_TYPE, "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"],
        },
    });
    let mut delivered = patched(gateway(upstream.address(), &[discovered]), &[redis_filter(&redis)]);
    delivered.extension = resource;
    let envoy = delivered.start();
    let service = envoy.listener(LISTENER);
    assert_limits(service, &redis);
    assert_labels(&envoy);

    // As in wasm-plugin.yaml and in the docs.
    let change = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    let send = |request: &Request| Connection::open(service).send(request);
    assert_eq!(send(&change.header("X-Admin-Token", ADMIN_TOKEN)).status, 408);
    assert_eq!(send(&Request::get("/system/health")).json()["health"], "NORMAL");
    redis.command(&["SET", "system:health:status", "DEGRADED"]);
    await_degraded(service);
}

#[test]
fn pre_stop_drains_without_losing_a_request() {
    let documents = manifest(GATEWAY, &[]);
    let pod = &object(&documents, "Deployment", "rate-limited-gateway")["spec"]["template"]["spec"];
    let (redis, upstream) = (redis(), drain::slow_upstream());
    let filters = [redis_filter(&redis), manifest(FILTER, &[LONG_TIMEOUT]).remove(0)];
    let delivered = patched(gateway(upstream.address(), &[]), &filters);
    drain::assert_pre_stop_drains(pod, LISTENER, || delivered.start());
}

/// A Redis timeout that a busy machine does not exceed.
const LONG_TIMEOUT: (&str, &str) = (r#""timeout_ms": 20,"#, r#""timeout_ms": 5000,"#);

#[track_caller]
fn redis_filter(redis: &Redis) -> Value {
    manifest(REDIS, &[(REDIS_ADDRESS, &socket_address(redis.address()))]).remove(0)
}

/// The configuration of a gateway: a complete bootstrap, and the one resource that is delivered by ECDS.
struct Delivered {
    bootstrap: Value,
    extension: Value,
}

impl Delivered {
    /// Starts the gateway with the environment and the volume that `gateway.yaml` gives it.
    #[track_caller]
    fn start(&self) -> Envoy {
        let documents = manifest(GATEWAY, &[]);
        let pod_template = &object(&documents, "Deployment", "rate-limited-gateway")["spec"]["template"];
        let pod = &pod_template["spec"];
        let proxy = &pod["containers"][0];
        let place = wasm_volume(&pod["initContainers"][0], proxy, &pod["volumes"]);
        assert_eq!(place, PLACE);
        let env = environment(proxy);
        let annotations = &pod_template["metadata"]["annotations"];
        // Istio's agent adds these statistics to the ones that Envoy keeps.
        let mut bootstrap = self.bootstrap.clone();
        let kept = list(&mut bootstrap["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]);
        let suffixes = annotations["sidecar.istio.io/statsInclusionSuffixes"].as_str().expect("suffixes");
        kept.extend(suffixes.split(',').map(|suffix| json!({"suffix": suffix})));
        // Istio's agent passes this to Envoy unchanged, and Envoy merges it.
        let added = &annotations["sidecar.istio.io/bootstrapOverride"];
        let added = object(&documents, "ConfigMap", added.as_str().expect("a name"));
        let added = added["data"]["custom_bootstrap.json"].as_str().expect("text");
        boot(&bootstrap, place, &["--config-yaml", added], &env, |folder| self.write(folder, 1))
    }

    /// Delivers only the resource to a running gateway.
    #[track_caller]
    fn deliver(&self, envoy: &Envoy, version: u32) {
        self.write(envoy.folder(), version);
    }

    /// A file replaces istiod's stream.
    fn write(&self, folder: &Path, version: u32) {
        let response = json!({"version_info": version.to_string(), "resources": [self.extension]});
        let text = response.to_string().replace(PLACE, &folder.display().to_string());
        let next = folder.join("next");
        fs::create_dir_all(&next).expect("a folder");
        fs::write(next.join("ecds.json"), text).expect("written");
        fs::rename(next.join("ecds.json"), folder.join("ecds.json")).expect("renamed");
    }
}

/// A bootstrap like that of an Istio gateway: the parts that the patches change, including what istiod would deliver
/// later. `plugins` are in front of the router, where istiod inserts WasmPlugins without a phase.
fn gateway(upstream: SocketAddr, plugins: &[Value]) -> Value {
    let kind = |kind: &str| format!("envoy.extensions.filters.http.{kind}");
    let mut filters = vec![
        extension("envoy.filters.http.grpc_stats", &kind("grpc_stats.v3.FilterConfig"), json!({})),
        extension("envoy.filters.http.fault", &kind("fault.v3.HTTPFault"), json!({})),
        extension("envoy.filters.http.cors", &kind("cors.v3.Cors"), json!({})),
    ];
    filters.extend_from_slice(plugins);
    let service = "outbound|8080||upstream.default.svc.cluster.local";
    let manager = json!({
        "use_remote_address": true,
        "normalize_path": true,
        "stream_idle_timeout": "300s",
        "route_config": routes(&json!([{"match": {"prefix": "/"}, "route": {"cluster": service}}])),
    });
    json!({
        "node": {"id": "router~127.0.0.1~rate-limited-gateway.default~default.svc.cluster.local", "cluster": "rate-limited-gateway.default"},
        "admin": {"address": tcp("127.0.0.1", 0)},
        "stats_config": {
            "use_all_default_tags": false,
            "stats_tags": [{"tag_name": "cluster_name", "regex": "^cluster\\.((.+?(\\..+?\\.svc\\.cluster\\.local)?)\\.)"}],
            "stats_matcher": {"inclusion_list": {"patterns": [
                {"prefix": "server"}, {"prefix": "wasm"},
            ]}},
        },
        "static_resources": {
            "listeners": [listener(LISTENER, &tcp("127.0.0.1", 0), manager, filters)],
            "clusters": [cluster(service, &[socket(upstream)])],
        },
    })
}

/// A WasmPlugin as istiod and Istio's agent deliver it by ECDS: `pluginConfig` is JSON in a string, the code is a file,
/// and there is neither a `vm_id` nor `allow_on_headers_stop_iteration`.
#[track_caller]
fn extension_config(plugin: &Value) -> Value {
    let (spec, name) = (&plugin["spec"], plugin["metadata"]["name"].as_str().expect("a name"));
    assert!(spec["url"].as_str().is_some_and(|url| url.starts_with("oci://")));
    let keys: Vec<_> = spec["vmConfig"]["env"]
        .as_array()
        .expect("variables")
        .iter()
        .inspect(|variable| assert_eq!(variable["valueFrom"], "HOST"))
        .map(|variable| variable["name"].clone())
        .collect();
    let config = json!({
        "name": format!("default.{name}"),
        "root_id": spec["pluginName"],
        "failure_policy": spec["failStrategy"],
        "configuration": string_value(&spec["pluginConfig"].to_string()),
        "vm_config": {
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": format!("{PLACE}/dynamic_rate_limiter.wasm")}},
            "environment_variables": {"host_env_keys": keys},
        },
    });
    json!({
        "@type": EXTENSION,
        "name": format!("extensions.istio.io/wasmplugin/default.{name}"),
        "typed_config": {"@type": WASM_TYPE, "config": config},
    })
}

/// Applies EnvoyFilters as istiod does, for the kinds of patch that we ship. Each patch must match.
#[track_caller]
fn patched(mut bootstrap: Value, filters: &[Value]) -> Delivered {
    let mut extension = Value::Null;
    for patch in
        filters.iter().flat_map(|filter| filter["spec"]["configPatches"].as_array().expect("patches"))
    {
        assert_eq!(patch["match"]["context"], "GATEWAY");
        let kind =
            [&patch["applyTo"], &patch["patch"]["operation"]].map(|word| word.as_str().expect("a word"));
        let (wanted, value) =
            (&patch["match"]["listener"]["filterChain"]["filter"], &patch["patch"]["value"]);
        match kind {
            ["CLUSTER", "ADD"] => {
                list(&mut bootstrap["static_resources"]["clusters"]).push(value.clone());
            }
            ["EXTENSION_CONFIG", "ADD"] => {
                assert!(extension.is_null(), "only one");
                extension = value.clone();
                extension["@type"] = json!(EXTENSION);
            }
            ["NETWORK_FILTER", "MERGE"] => merge(network_filter(&mut bootstrap, &wanted["name"]), value),
            ["HTTP_FILTER", "INSERT_BEFORE"] => {
                let manager = network_filter(&mut bootstrap, &wanted["name"]);
                let filters = list(&mut manager["typed_config"]["http_filters"]);
                let name = &wanted["subFilter"]["name"];
                let place =
                    filters.iter().position(|filter| filter["name"] == *name).expect("the other filter");
                filters.insert(place, value.clone());
            }
            other => panic!("{other:?} is not supported by this test"),
        }
    }
    // From a file instead of from istiod.
    let manager = network_filter(&mut bootstrap, &json!(HCM));
    for filter in list(&mut manager["typed_config"]["http_filters"]) {
        if let Some(source) =
            filter.pointer_mut("/config_discovery/config_source").and_then(Value::as_object_mut)
        {
            assert_eq!(source.remove("ads"), Some(json!({})));
            source.insert("path_config_source".to_owned(), json!({"path": "{folder}/ecds.json"}));
        }
    }
    Delivered { bootstrap, extension }
}

#[track_caller]
fn network_filter<'a>(bootstrap: &'a mut Value, name: &Value) -> &'a mut Value {
    let chains = &mut bootstrap["static_resources"]["listeners"][0]["filter_chains"];
    let filters = list(&mut chains[0]["filters"]);
    filters.iter_mut().find(|filter| filter["name"] == *name).expect("the network filter")
}

#[track_caller]
fn list(value: &mut Value) -> &mut Vec<Value> {
    value.as_array_mut().expect("a list")
}

/// Protobuf's merge: messages are merged field by field, lists are concatenated, other values are replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                match into.get_mut(name) {
                    Some(old) => merge(old, value),
                    None => drop(into.insert(name.clone(), value.clone())),
                }
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend_from_slice(from),
        (into, from) => *into = from.clone(),
    }
}
