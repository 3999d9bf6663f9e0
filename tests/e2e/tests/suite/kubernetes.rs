//! `deploy/kubernetes`: valid by Kubernetes' schemas, every reference resolves, and its container's command works. No
//! kubelet runs: the test writes files as kubelet does.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::schemas::check_kubernetes;
use e2e::client::{Connection, Request};
use e2e::envoy::{Envoy, filter_wasm};
use e2e::redis::Redis;
use serde_json::{Value, json};

use crate::drain;
use crate::manifests::{
    assert_health_is_set, assert_labels, assert_limits, environment, manifest, object, redis, upstream,
};
use crate::production::{on_this_machine, shipped};
use crate::shipped::{assert_no_warning, document, launch};
use crate::support::{ONE_PER_HOUR, await_that, tier};

const FILES: [&str; 2] = ["config.yaml", "rate-limiter.yaml"];
const NAME: &str = "rate-limiter";

fn documents() -> Vec<Value> {
    FILES.iter().flat_map(|file| manifest(&format!("deploy/kubernetes/{file}"), &[])).collect()
}

#[test]
fn the_manifests_are_valid_by_kubernetes_schemas() {
    let documents = documents();
    assert_eq!(documents.len(), 6);
    assert_eq!(check_kubernetes(&documents), Ok(()));
    let mut broken = object(&documents, "Deployment", NAME).clone();
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = json!({});
    assert!(check_kubernetes(&[broken.clone()]).is_err_and(|error| error.contains("readynessProbe")));
    broken["kind"] = json!("Deplyment");
    assert!(check_kubernetes(&[broken]).is_err());
}

#[test]
fn every_reference_resolves() {
    let documents = documents();
    let deployment = object(&documents, "Deployment", NAME);
    let pod = &deployment["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    let container = container(&documents);
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &object(&documents, "Service", NAME)["spec"]["selector"],
        &object(&documents, "PodDisruptionBudget", NAME)["spec"]["selector"]["matchLabels"],
        &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    let scaled = &object(&documents, "HorizontalPodAutoscaler", NAME)["spec"]["scaleTargetRef"];
    assert_eq!(*scaled, json!({"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": NAME}));
    // The autoscaler's utilization is relative to this request.
    assert!(container["resources"]["requests"]["cpu"].is_string());

    let volumes = pod["spec"]["volumes"].as_array().expect("volumes");
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("a volume");
        if let Some(config) = volume["configMap"]["name"].as_str() {
            object(&documents, "ConfigMap", config);
        }
        assert!(mount.get("subPath").is_none(), "kubelet never renews a subPath");
    }
    assert_eq!(volumes.len(), 3);

    // The documents are the same as in the other shipped configurations.
    let data = &object(&documents, "ConfigMap", "rate-limiter-documents")["data"];
    for name in ["tiers.json", "api_keys.json"] {
        assert_eq!(data[name].as_str(), Some(shipped(&format!("config/{name}")).as_str()), "{name}");
    }
    let dockerfile = shipped("Dockerfile");
    assert!(dockerfile.contains("WORKDIR /rate-limiter\n"));
    assert!(dockerfile.contains("COPY --from=filter /dynamic_rate_limiter.wasm target/\n"));
}

#[test]
fn the_pod_has_only_the_rights_that_it_needs() {
    let documents = documents();
    let pod = &object(&documents, "Deployment", NAME)["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let rights = &container(&documents)["securityContext"];
    assert_eq!(
        *rights,
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        })
    );
}

#[test]
fn the_container_limits_requests_reloads_documents_and_answers_probes() {
    let documents = documents();
    let (redis, upstream) = (redis(), upstream());
    let (envoy, place) = start(&documents, &redis, upstream.address());
    let service = envoy.listener("service");
    assert_limits(service, &redis);
    assert_health_is_set(service, &redis);
    assert_labels(&envoy);

    let container = container(&documents);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], "metrics", "{probe}");
        let path = get["path"].as_str().expect("a path");
        assert_eq!(Connection::open(envoy.listener("metrics")).send(&Request::get(path)).status, 200);
    }

    let mut tiers = document("tiers.json");
    tiers["free"] = tier(777, ONE_PER_HOUR);
    as_kubelet(&place.join("documents"), 2, &[("tiers.json", &tiers.to_string())]);
    await_that("the ConfigMap's new limit", || {
        Connection::open(service).send(&Request::get("/test")).limit() == 777
    });
    assert_eq!(Connection::open(service).send(&Request::get("/test").key("pro")).tier(), "pro");
}

#[test]
fn pre_stop_drains_without_losing_a_request() {
    let documents = documents();
    let (redis, upstream) = (redis(), drain::slow_upstream());
    let pod = &object(&documents, "Deployment", NAME)["spec"]["template"]["spec"];
    drain::assert_pre_stop_drains(pod, "service", || start(&documents, &redis, upstream.address()).0);
}

fn container(documents: &[Value]) -> &Value {
    let containers = &object(documents, "Deployment", NAME)["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().map(Vec::len), Some(1));
    &containers[0]
}

/// Starts the command of the Deployment's container, with its volumes in the returned folder.
#[track_caller]
fn start(documents: &[Value], redis: &Redis, upstream: SocketAddr) -> (Envoy, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path().to_owned();
    let container = container(documents);
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        fs::create_dir(folder.join(mount["name"].as_str().expect("a name"))).expect("a folder");
    }
    let envoy_config = &object(documents, "ConfigMap", "rate-limiter-envoy")["data"]["envoy.yaml"];
    let bootstrap = adapted(envoy_config.as_str().expect("text"), container, &folder, redis, upstream);
    as_kubelet(&folder.join("envoy"), 1, &[("envoy.yaml", &bootstrap)]);
    let data = &object(documents, "ConfigMap", "rate-limiter-documents")["data"];
    let files = data.as_object().expect("files");
    let files: Vec<_> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str().expect("text"))).collect();
    as_kubelet(&folder.join("documents"), 1, &files);

    assert_eq!(container["command"], json!(["envoy"]));
    let words = container["args"].as_array().expect("words").iter();
    let arguments: Vec<_> =
        words.map(|word| in_folder(word.as_str().expect("text"), container, &folder)).collect();
    let env = environment(container);
    let envoy = launch(dir, &arguments, &env);
    assert_no_warning(&envoy);
    (envoy, folder)
}

/// The bootstrap with the addresses and folders of this machine.
#[track_caller]
fn adapted(text: &str, container: &Value, folder: &Path, redis: &Redis, upstream: SocketAddr) -> String {
    let wasm = filter_wasm().display().to_string();
    let text = text.replace("/rate-limiter/target/dynamic_rate_limiter.wasm", &wasm);
    let text = in_folder(&on_this_machine(&text, redis, upstream), container, folder);
    for outside in ["/etc/", "/run/rate-limiter", "/rate-limiter/"] {
        assert!(!text.replace(&wasm, "").contains(outside), "a path without a mount: {outside}");
    }
    text
}

/// Replaces every mount path by a folder with the volume's name.
fn in_folder(text: &str, container: &Value, folder: &Path) -> String {
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    mounts.iter().fold(text.to_owned(), |text, mount| {
        let place = format!("{}/", mount["mountPath"].as_str().expect("a path"));
        let here = folder.join(mount["name"].as_str().expect("a name"));
        text.replace(&place, &format!("{}/", here.display())).replace(
            &format!("{{path: {}}}", place.trim_end_matches('/')),
            &format!("{{path: {}}}", here.display()),
        )
    })
}

/// Writes files as kubelet writes a ConfigMap: into a new folder, and then renames a link to it over the old link.
fn as_kubelet(volume: &Path, version: u32, files: &[(&str, &str)]) {
    let next = format!("..version_{version}");
    fs::create_dir(volume.join(&next)).expect("a folder");
    if version > 1 {
        for file in fs::read_dir(volume.join("..data")).expect("a folder") {
            let file = file.expect("a file");
            fs::copy(file.path(), volume.join(&next).join(file.file_name())).expect("copied");
        }
    }
    for (name, text) in files {
        fs::write(volume.join(&next).join(name), text).expect("written");
        if version == 1 {
            symlink(format!("..data/{name}"), volume.join(name)).expect("a link");
        }
    }
    symlink(&next, volume.join("..data_tmp")).expect("a link");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("renamed");
}
