//! The fields of Envoy Gateway's CRDs (v1.9) that `deploy/envoy-gateway` uses, as the CRDs define them; any other field
//! is a mistake. They are written here because no package registry has the CRDs.
#![expect(dead_code, reason = "reading them is the check")]

use serde::Deserialize;
use serde_json::{Map, Value};

type Object = Map<String, Value>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvoyExtensionPolicySpec {
    target_refs: NonEmpty<TargetRef>,
    wasm: [Wasm; 1],
}

#[derive(Deserialize)]
struct Wasm {
    name: String,
    #[serde(rename = "rootID")]
    root_id: String,
    code: Code,
    /// Anything; it reaches the filter as JSON text.
    config: Object,
    env: Env,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Code {
    Image { image: Image },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Env {
    host_keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvoyPatchPolicySpec {
    target_ref: TargetRef,
    r#type: PatchType,
    json_patches: NonEmpty<ResourcePatch>,
}

#[derive(Deserialize)]
struct ResourcePatch {
    r#type: ResourceType,
    name: String,
    operation: Operation,
}

#[derive(Deserialize)]
enum ResourceType {
    #[serde(rename = "type.googleapis.com/envoy.config.listener.v3.Listener")]
    Listener,
    #[serde(rename = "type.googleapis.com/envoy.config.cluster.v3.Cluster")]
    Cluster,
}

#[derive(Deserialize)]
pub(crate) struct EnvoyProxySpec {
    bootstrap: Bootstrap,
    provider: Provider,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bootstrap {
    r#type: PatchType,
    json_patches: NonEmpty<Operation>,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Provider {
    Kubernetes { kubernetes: Kubernetes },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kubernetes {
    envoy_deployment: EnvoyDeployment,
}

/// The objects in it are Kubernetes' own; another test checks them against Kubernetes' schemas.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EnvoyDeployment {
    replicas: i32,
    init_containers: Vec<Object>,
    container: Container,
    pod: Pod,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Container {
    env: Vec<Object>,
    volume_mounts: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    volumes: Vec<Object>,
}

#[derive(Deserialize)]
enum PatchType {
    #[serde(rename = "JSONPatch")]
    JsonPatch,
}

/// An operation of RFC 6902, at `path`, or at `path` below what `jsonPath` finds.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Operation {
    Add { json_path: Option<String>, path: String, value: Value },
}

#[derive(Deserialize)]
struct TargetRef {
    group: Group,
    kind: TargetKind,
    name: Name,
}

#[derive(Deserialize)]
enum Group {
    #[serde(rename = "gateway.networking.k8s.io")]
    Gateway,
}

#[derive(Deserialize)]
enum TargetKind {
    Gateway,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if (1..=253).contains(&name.len()) { Ok(Self(name)) } else { Err("a name has 1 to 253 bytes") }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Vec<T>")]
struct NonEmpty<T>(Vec<T>);

impl<T> TryFrom<Vec<T>> for NonEmpty<T> {
    type Error = &'static str;

    fn try_from(items: Vec<T>) -> Result<Self, Self::Error> {
        if items.is_empty() { Err("an empty list") } else { Ok(Self(items)) }
    }
}
