//! The plugin configurations in YAML files of Envoy, in Istio WasmPlugins and in Envoy Gateway EnvoyExtensionPolicies.

use serde_json::Value;

const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";

/// The other filter in the same module; it has no configuration.
const BRIDGE: &str = "redis_bridge";

type Configuration = Result<Vec<u8>, String>;

/// Every configuration of the rate limiter in a file, with the name of its filter.
pub(super) fn plugins(yaml: &[u8]) -> Result<Vec<(String, Configuration)>, String> {
    let text = std::str::from_utf8(yaml).map_err(|_| "not valid YAML: found bytes that are not UTF-8")?;
    // The parser's own message may show a part of the file, and with it a key.
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| match error.location() {
            Some(place) => format!("not valid YAML: at line {} column {}", place.line(), place.column()),
            None => "not valid YAML".to_owned(),
        })?;
    let mut found = Vec::new();
    documents.iter().for_each(|document| walk(document, &mut found));
    match found.is_empty() {
        true => Err("found no rate limiter in it, wanted a Wasm filter that has `rate_limiter` or `rate-limiter` in its \
                     name, root_id or code"
            .to_owned()),
        false => Ok(found),
    }
}

fn walk(value: &Value, found: &mut Vec<(String, Configuration)>) {
    if value["@type"] == WASM {
        envoy_filter(&value["config"], found);
    } else if value["kind"] == "WasmPlugin" {
        let spec = &value["spec"];
        control_plane(&value["metadata"]["name"], spec, &["url", "pluginName"], "pluginConfig", found);
    } else if value["kind"] == "EnvoyExtensionPolicy" {
        for wasm in value["spec"]["wasm"].as_array().into_iter().flatten() {
            control_plane(&wasm["name"], wasm, &["name", "rootID", "code"], "config", found);
        }
    } else {
        let list = value.as_array().into_iter().flatten();
        let members = value.as_object().into_iter().flat_map(|members| members.values());
        list.chain(members).for_each(|value| walk(value, found));
    }
}

fn envoy_filter(config: &Value, found: &mut Vec<(String, Configuration)>) {
    if config["root_id"] == BRIDGE || !is_ours(config, &["name", "root_id", "vm_config"]) {
        return;
    }
    let configuration = match (&config["configuration"]["@type"], &config["configuration"]["value"]) {
        (Value::Null, _) if config["configuration"].is_null() => Ok(Vec::new()),
        (kind, Value::String(text)) if kind == STRING => Ok(text.clone().into_bytes()),
        (kind, _) if kind == STRING => {
            Err("configuration: found no text in `value`, wanted the JSON as a string".to_owned())
        }
        _ => Err("configuration: found no google.protobuf.StringValue, wanted one: Envoy passes a Struct to the filter as \
                  protobuf bytes, which are rejected because they are not JSON"
            .to_owned()),
    };
    found.push((name_of(&config["name"]), configuration));
}

/// Control planes have the configuration as YAML, and pass it to the filter as JSON text.
fn control_plane(
    name: &Value,
    plugin: &Value,
    fields: &[&str],
    field: &str,
    found: &mut Vec<(String, Configuration)>,
) {
    if !is_ours(plugin, fields) {
        return;
    }
    let configuration = match &plugin[field] {
        Value::Null => Vec::new(),
        configuration => configuration.to_string().into_bytes(),
    };
    found.push((name_of(name), Ok(configuration)));
}

fn is_ours(config: &Value, fields: &[&str]) -> bool {
    let text: String = fields.iter().map(|field| config[*field].to_string()).collect();
    text.contains("rate_limiter") || text.contains("rate-limiter")
}

fn name_of(name: &Value) -> String {
    name.as_str().unwrap_or("without a name").to_owned()
}
