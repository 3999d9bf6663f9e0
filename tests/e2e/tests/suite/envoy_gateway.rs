//! `deploy/envoy-gateway`: valid by our shapes of Envoy Gateway's CRDs, and the resulting configuration limits requests
//! in a real Envoy. Envoy Gateway itself does not run: this file reimplements how it turns an EnvoyExtensionPolicy into
//! a filter and how it applies JSON patches.

use crate::schemas::{check_envoy_gateway, check_kubernetes};
use harness::bootstrap::{cluster, extension, socket, string_value, tcp};
use json_patch::PatchOperation;
use serde_json::{Value, json};
use serde_json_path::JsonPath;

use crate::manifests::{
    REDIS_ADDRESS, assert_health_is_set, assert_labels, assert_limits, boot, environment, manifest, object,
    redis, socket_address, upstream, wasm_volume,
};

const PROXY: &str = "deploy/envoy-gateway/proxy.yaml";
const POLICIES: &str = "deploy/envoy-gateway/rate-limiter.yaml";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

#[test]
fn the_manifests_are_valid_by_our_shapes_of_envoy_gateway() {
    let documents = [manifest(PROXY, &[]), manifest(POLICIES, &[])].concat();
    assert_eq!(documents.len(), 3);
    for document in &documents {
        check_envoy_gateway(document).unwrap_or_else(|error| panic!("{}: {error}", document["kind"]));
    }
    let breaking: [(&str, &str, &str, &str); 3] = [
        (POLICIES, "rootID:", "rootId:", "rootID"),
        (POLICIES, "type: JSONPatch", "type: MergePatch", "MergePatch"),
        (PROXY, "replicas:", "replica:", "replica"),
    ];
    for (file, from, to, named) in breaking {
        let errors: Vec<_> = manifest(file, &[(from, to)])
            .iter()
            .filter_map(|document| check_envoy_gateway(document).err())
            .collect();
        assert!(errors.len() == 1 && errors[0].contains(named), "{errors:?}");
    }
}

/// Envoy Gateway copies these fields of an EnvoyProxy into a Deployment.
#[test]
fn the_pod_fields_are_valid_by_kubernetes_schemas() {
    let documents = manifest(PROXY, &[]);
    let deployment = deployment(&documents);
    let mut container = deployment["container"].clone();
    container["name"] = json!("envoy");
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "rate-limiter"},
        "spec": {
            "initContainers": deployment["initContainers"],
            "containers": [container],
            "volumes": deployment["pod"]["volumes"],
        },
    });
    assert_eq!(check_kubernetes(&[pod]), Ok(()));
}

#[test]
fn limits_health_and_labels_work_with_the_patches() {
    let (redis, upstream) = (redis(), upstream());
    let changes =
        [(REDIS_ADDRESS, &*socket_address(redis.address())), ("timeout_ms: 20,", "timeout_ms: 5000,")];
    let policies = manifest(POLICIES, &changes);
    let mut listener = gateway_listener(object(&policies, "EnvoyExtensionPolicy", "rate-limiter"));
    let mut clusters = vec![cluster("httproute/default/backend/rule/0", &[socket(upstream.address())])];
    let patches = &object(&policies, "EnvoyPatchPolicy", "rate-limiter")["spec"]["jsonPatches"];
    for patch in patches.as_array().expect("patches") {
        let operation = &patch["operation"];
        match patch["type"].as_str() {
            Some(LISTENER) => {
                assert_eq!(patch["name"], listener["name"]);
                apply(&mut listener, operation);
            }
            // A patch without a path adds a resource.
            Some(CLUSTER) => {
                assert_eq!((&operation["op"], &operation["path"]), (&json!("add"), &json!("")));
                assert_eq!(operation["value"]["name"], patch["name"]);
                clusters.push(operation["value"].clone());
            }
            other => panic!("{other:?} is not supported by this test"),
        }
    }

    let documents = manifest(PROXY, &[]);
    let deployment = deployment(&documents);
    let proxy = &deployment["container"];
    let place = wasm_volume(&deployment["initContainers"][0], proxy, &deployment["pod"]["volumes"]);
    let mut bootstrap = gateway_bootstrap();
    let of_bootstrap = &object(&documents, "EnvoyProxy", "rate-limiter")["spec"]["bootstrap"]["jsonPatches"];
    for operation in of_bootstrap.as_array().expect("patches") {
        apply(&mut bootstrap, operation);
    }
    bootstrap["static_resources"] = json!({"listeners": [listener], "clusters": clusters});
    let envoy = boot(&bootstrap, place, &[], &environment(proxy), |_| ());
    let service = envoy.listener("default/eg/http");
    assert_limits(service, &redis);
    assert_health_is_set(service, &redis);
    assert_labels(&envoy);
    let dump = envoy.admin("/config_dump?resource=static_listeners");
    for set in [r#""request_timeout": "60s""#, r#""failure_policy": "FAIL_RELOAD""#] {
        assert!(dump.contains(set), "{set} in {dump}");
    }
}

fn deployment(documents: &[Value]) -> &Value {
    &object(documents, "EnvoyProxy", "rate-limiter")["spec"]["provider"]["kubernetes"]["envoyDeployment"]
}

/// The bootstrap of Envoy Gateway's proxies: the parts that the patches change.
fn gateway_bootstrap() -> Value {
    json!({
        "node": {"id": "envoy-default-eg", "cluster": "default/eg"},
        "admin": {"address": tcp("127.0.0.1", 0)},
        "stats_config": {
            "use_all_default_tags": true,
            "stats_tags": [{"regex": "\\.zone(\\.(([^\\.]+)\\.))", "tag_name": "from_zone"}],
        },
    })
}

/// The listener `http` of the Gateway `eg`, as Envoy Gateway translates it with this policy: a filter that is disabled
/// for the listener and enabled for its routes, `config` as JSON in a string. Here the routes are in the listener and
/// the filter's code is in a file; with Envoy Gateway, Envoy fetches both from it.
fn gateway_listener(policy: &Value) -> Value {
    let metadata = &policy["metadata"];
    let [namespace, name] = [&metadata["namespace"], &metadata["name"]].map(|it| it.as_str().expect("text"));
    let [wasm] = &policy["spec"]["wasm"].as_array().expect("a list")[..] else { panic!("one filter") };
    let id = format!("envoyextensionpolicy/{namespace}/{name}/wasm/0");
    let filter = format!("envoy.filters.http.wasm/{id}");
    let config = json!({
        "name": wasm["name"],
        "root_id": wasm["rootID"],
        "configuration": string_value(&wasm["config"].to_string()),
        "vm_config": {
            "vm_id": id,
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": "{folder}/dynamic_rate_limiter.wasm"}},
            "environment_variables": {"host_env_keys": wasm["env"]["hostKeys"]},
        },
    });
    let route = json!({
        "match": {"prefix": "/"},
        "route": {"cluster": "httproute/default/backend/rule/0"},
        "typed_per_filter_config": {
            &filter: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}},
        },
    });
    let kind = "envoy.extensions.filters.http.wasm.v3.Wasm";
    let mut limiter = extension(&filter, kind, json!({"config": config}));
    limiter["disabled"] = json!(true);
    let kind = "envoy.extensions.filters.http.router.v3.Router";
    let router = extension("envoy.filters.http.router", kind, json!({"suppress_envoy_headers": true}));
    let manager = json!({
        "stat_prefix": "http-10080",
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "http_filters": [limiter, router],
        "route_config": {"name": "default/eg/http", "virtual_hosts": [
            {"name": "default/eg/http/*", "domains": ["*"], "routes": [route]},
        ]},
    });
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = extension("envoy.filters.network.http_connection_manager", kind, manager);
    json!({
        "name": "default/eg/http",
        "address": tcp("127.0.0.1", 0),
        "default_filter_chain": {"name": "default/eg/http", "filters": [manager]},
        "max_connections_to_accept_per_socket_event": 1,
        "per_connection_buffer_limit_bytes": 32768,
    })
}

/// Applies one operation at its `path`, or at `path` below the only match of `jsonPath`.
#[track_caller]
fn apply(document: &mut Value, operation: &Value) {
    let mut operation = operation.clone();
    if let Some(query) = operation.as_object_mut().expect("an operation").remove("jsonPath") {
        let query = JsonPath::parse(query.as_str().expect("text")).expect("a JSON path");
        let found = query.query_located(document);
        let place = found.exactly_one().expect("exactly one match").location().to_json_pointer();
        let below = operation["path"].as_str().expect("a path").to_owned();
        operation["path"] = json!(format!("{place}{below}"));
    }
    let operation: PatchOperation = serde_json::from_value(operation).expect("an operation of RFC 6902");
    json_patch::patch(document, &[operation]).expect("applied");
}
