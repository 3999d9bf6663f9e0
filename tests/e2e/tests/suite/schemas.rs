//! Validates the shipped Kubernetes manifests. Unknown fields are errors here, though a cluster accepts them.

use std::fs;
use std::process::Command;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kcr_extensions_istio_io::v1alpha1::wasmplugins::WasmPluginSpec;
use kcr_networking_istio_io::v1alpha3::envoyfilters::EnvoyFilterSpec;
use serde_json::Value;

use e2e::envoy::from_env;
use e2e::shipped_files::{run, yaml_documents};

mod envoy_gateway;

/// The oldest and the newest Kubernetes version whose schemas must accept the manifests.
const KUBERNETES: [&str; 2] = ["1.28", "1.37"];

#[track_caller]
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("written");
    yaml_documents(file.path())
}

/// Checks objects of Kubernetes against Kubernetes' own schemas (OpenAPI, strict, of several versions). One run of the
/// validator reads all of them, because it takes seconds to start.
pub(crate) fn check_kubernetes(objects: &[Value]) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files: Vec<_> = (0..objects.len()).map(|index| dir.path().join(format!("{index}.json"))).collect();
    for (file, object) in files.iter().zip(objects) {
        fs::write(file, object.to_string()).expect("written");
    }
    for version in KUBERNETES {
        let mut validate = Command::new(from_env("KUBERNETES_VALIDATE"));
        let (success, output) =
            run(validate.args(["--strict", "--kubernetes-version", version]).args(&files));
        // For an unknown kind it only prints a warning.
        if !success || output.matches(" passed for ").count() != objects.len() {
            return Err(output);
        }
    }
    Ok(())
}

/// Checks an object of Istio against types generated from Istio's CRDs.
pub(crate) fn check_istio(object: &Value) -> Result<(), String> {
    let spec = &object["spec"];
    check_envelope(object)?;
    match (text(&object["apiVersion"]), text(&object["kind"])) {
        ("extensions.istio.io/v1alpha1", "WasmPlugin") => strictly::<WasmPluginSpec>(spec),
        ("networking.istio.io/v1alpha3", "EnvoyFilter") => strictly::<EnvoyFilterSpec>(spec),
        (version, kind) => Err(format!("no type for {version} {kind}")),
    }
}

/// Checks an object of Envoy Gateway against our own shapes.
pub(crate) fn check_envoy_gateway(object: &Value) -> Result<(), String> {
    check_envelope(object)?;
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let shape = envoy_gateway::spec(kind).filter(|_| version == "gateway.envoyproxy.io/v1alpha1");
    let shape = shape.ok_or_else(|| format!("no shape for {version} {kind}"))?;
    envoy_gateway::check(&object["spec"], &shape, "spec")
}

/// Checks the fields around the spec.
fn check_envelope(object: &Value) -> Result<(), String> {
    let fields = object.as_object().ok_or("no object")?;
    if let Some(other) =
        fields.keys().find(|name| !["apiVersion", "kind", "metadata", "spec"].contains(&name.as_str()))
    {
        return Err(format!("unknown: {other}"));
    }
    strictly::<ObjectMeta>(&object["metadata"])
}

/// Deserializes `value` as a `T`; unknown fields are errors.
fn strictly<T: serde::de::DeserializeOwned>(value: &Value) -> Result<(), String> {
    let mut unknown = Vec::new();
    let read: Result<T, _> = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if unknown.is_empty() => Ok(()),
        Ok(_) => Err(format!("unknown: {}", unknown.join(", "))),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
