//! Kubernetes manifests that we ship: read, and checked against the schemas of what they are made for. Unknown fields
//! are errors everywhere, which they are not to a cluster.

use std::fs;
use std::path::Path;
use std::process::Command;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kcr_extensions_istio_io::v1alpha1::wasmplugins::WasmPluginSpec;
use kcr_networking_istio_io::v1alpha3::envoyfilters::EnvoyFilterSpec;
use serde_json::Value;

use e2e::envoy::from_env;
use e2e::shipped_files::{python, run};

/// The oldest and the newest Kubernetes whose schemas must take what we ship.
const KUBERNETES: [&str; 2] = ["1.28", "1.37"];

/// Reads all documents of a standard YAML text from standard input and writes a JSON list.
const TO_JSON: &str = "import json, ruamel.yaml, sys\n\
    print(json.dumps(list(ruamel.yaml.YAML(typ='safe', pure=True).load_all(sys.stdin))))";

/// The documents of a YAML text.
#[track_caller]
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("written");
    let input = fs::File::open(file.path()).expect("just written");
    let (success, said) = run(Command::new(python()).args(["-c", TO_JSON]).stdin(input));
    assert!(success, "{said}\n{text}");
    serde_json::from_str(&said).expect("Python writes JSON")
}

/// Checks an object of Kubernetes' own against Kubernetes' own schemas (OpenAPI, strict, of several versions).
pub(crate) fn check_kubernetes(object: &Value) -> Result<(), String> {
    for version in KUBERNETES {
        let (success, said) = with_file(object, |file| {
            run(Command::new(from_env("KUBERNETES_VALIDATE"))
                .args(["--strict", "--kubernetes-version", version])
                .arg(file))
        });
        // It only warns of a kind that it does not know.
        if !success || !said.contains("passed") {
            return Err(said);
        }
    }
    Ok(())
}

/// Checks an object of Istio's against types that were generated from Istio's CRDs.
pub(crate) fn check_istio(object: &Value) -> Result<(), String> {
    let spec = &object["spec"];
    check_envelope(object)?;
    match (text(&object["apiVersion"]), text(&object["kind"])) {
        ("extensions.istio.io/v1alpha1", "WasmPlugin") => strictly::<WasmPluginSpec>(spec),
        ("networking.istio.io/v1alpha3", "EnvoyFilter") => strictly::<EnvoyFilterSpec>(spec),
        (version, kind) => Err(format!("no type for {version} {kind}")),
    }
}

/// Checks an object of Envoy Gateway's against a schema of our own that knows the fields that we use: no package
/// registry carries Envoy Gateway's CRDs.
pub(crate) fn check_envoy_gateway(object: &Value) -> Result<(), String> {
    check_envelope(object)?;
    let schema = format!("schemas/envoy-gateway/{}.json", text(&object["kind"]));
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join(schema);
    let (success, said) = with_file(object, |file| {
        run(Command::new(from_env("CHECK_JSONSCHEMA")).arg("--schemafile").arg(schema).arg(file))
    });
    if success { Ok(()) } else { Err(said) }
}

/// What is around every spec.
fn check_envelope(object: &Value) -> Result<(), String> {
    let fields = object.as_object().ok_or("no object")?;
    if let Some(other) =
        fields.keys().find(|name| !["apiVersion", "kind", "metadata", "spec"].contains(&name.as_str()))
    {
        return Err(format!("unknown: {other}"));
    }
    strictly::<ObjectMeta>(&object["metadata"])
}

/// Reads `value` as a `T` that has a place for every field.
fn strictly<T: serde::de::DeserializeOwned>(value: &Value) -> Result<(), String> {
    let mut unknown = Vec::new();
    let read: Result<T, _> = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if unknown.is_empty() => Ok(()),
        Ok(_) => Err(format!("unknown: {}", unknown.join(", "))),
    }
}

fn with_file<T>(object: &Value, check: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("object.json");
    fs::write(&file, object.to_string()).expect("written");
    check(&file)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
