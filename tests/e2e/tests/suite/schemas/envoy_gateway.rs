//! The fields of Envoy Gateway's CRDs (v1.9) that `deploy/envoy-gateway` uses, as the CRDs define them; any other field
//! is a mistake. They are written here because no package registry has the CRDs.

use serde_json::{Map, Value, json};

/// Placeholders in a shape. Any other text in a shape is the only valid one.
const TEXT: &str = "<text>";
const NAME: &str = "<name of 1 to 253 bytes>";
const INTEGER: &str = "<integer>";
const ANYTHING: &str = "<anything>";

/// The shape of a spec. An object has exactly these fields, of which those with a `?` may be missing; `{}` is any
/// object. A list has at least one element, and each has the shape of the one here.
pub(crate) fn spec(kind: &str) -> Option<Value> {
    let target = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": NAME});
    // An operation of RFC 6902, at `path`, or at `path` below what `jsonPath` finds.
    let operation = json!({"op": "add", "jsonPath?": TEXT, "path": TEXT, "value": ANYTHING});
    match kind {
        "EnvoyExtensionPolicy" => Some(json!({
            "targetRefs": [target],
            "wasm": [{
                "name": TEXT,
                "rootID": TEXT,
                "code": {"type": "Image", "image": {"url": TEXT}},
                // It reaches the filter as JSON text.
                "config": {},
                "env": {"hostKeys": [TEXT]},
            }],
        })),
        "EnvoyPatchPolicy" => Some(json!({
            "targetRef": target,
            "type": "JSONPatch",
            // The test that applies the patches accepts only two types.
            "jsonPatches": [{"type": TEXT, "name": TEXT, "operation": operation}],
        })),
        "EnvoyProxy" => Some(json!({
            "bootstrap": {"type": "JSONPatch", "jsonPatches": [operation]},
            // The objects in it are Kubernetes' own; another test checks them against Kubernetes' schemas.
            "provider": {"type": "Kubernetes", "kubernetes": {"envoyDeployment": {
                "replicas": INTEGER,
                "initContainers": [{}],
                "container": {"env": [{}], "volumeMounts": [{}]},
                "pod": {"volumes": [{}]},
            }}},
        })),
        _ => None,
    }
}

/// Checks that a value has this shape. `place` is where it is.
pub(crate) fn check(value: &Value, shape: &Value, place: &str) -> Result<(), String> {
    let fits = match (value, shape) {
        (Value::Object(found), Value::Object(fields)) if !fields.is_empty() => {
            return check_fields(found, fields, place);
        }
        (Value::Array(items), Value::Array(shapes)) if !items.is_empty() => {
            return items.iter().try_for_each(|item| check(item, &shapes[0], place));
        }
        (_, Value::String(shape)) => match shape.as_str() {
            ANYTHING => true,
            TEXT => value.is_string(),
            NAME => value.as_str().is_some_and(|name| (1..=253).contains(&name.len())),
            INTEGER => value.is_i64(),
            text => value == text,
        },
        (value, shape) => value.is_object() && shape.is_object(),
    };
    if fits { Ok(()) } else { Err(format!("{place} is {value}, not {shape}")) }
}

fn check_fields(found: &Map<String, Value>, fields: &Map<String, Value>, place: &str) -> Result<(), String> {
    for (name, shape) in fields {
        let (name, is_optional) = name.strip_suffix('?').map_or((name.as_str(), false), |name| (name, true));
        match found.get(name) {
            Some(value) => check(value, shape, &format!("{place}.{name}"))?,
            None if is_optional => {}
            None => return Err(format!("{place} has no {name}")),
        }
    }
    let is_known = |name: &str| fields.contains_key(name) || fields.contains_key(&format!("{name}?"));
    match found.keys().find(|name| !is_known(name)) {
        Some(unknown) => Err(format!("unknown: {place}.{unknown}")),
        None => Ok(()),
    }
}
