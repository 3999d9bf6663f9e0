//! The plugin configurations in YAML files of Envoy, also in ConfigMaps, in Istio WasmPlugins and in Envoy Gateway
//! EnvoyExtensionPolicies.

use serde_json::Value;

const WASM: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";

/// The other filter in the same module; it has no configuration.
const BRIDGE: &str = "redis_bridge";

type Configuration = Result<Vec<u8>, String>;

/// Every configuration of the rate limiter in a file, with the name of its filter.
pub(super) fn plugins(yaml: &[u8]) -> Result<Vec<(String, Configuration)>, String> {
    let text = std::str::from_utf8(yaml).map_err(|_| "not valid YAML: found bytes that are not UTF-8")?;
    let mut found = Vec::new();
    documents(text)?.iter().for_each(|document| walk(document, &mut found));
    if found.is_empty() {
        return Err("found no rate limiter in it, wanted a Wasm filter that has `rate_limiter` or `rate-limiter` in its \
                    name, root_id or code"
            .to_owned());
    }
    Ok(found)
}

fn documents(yaml: &str) -> Result<Vec<Value>, String> {
    // The parser's own message may show a part of the file, and with it a key.
    serde_saphyr::from_multiple(yaml).map_err(|error| match error.location() {
        Some(place) => format!("not valid YAML: at line {} column {}", place.line(), place.column()),
        None => "not valid YAML".to_owned(),
    })
}

fn walk(value: &Value, found: &mut Vec<(String, Configuration)>) {
    if value["@type"] == WASM {
        found.extend(envoy_filter(&value["config"]));
    } else if value["kind"] == "WasmPlugin" {
        let (name, spec) = (&value["metadata"]["name"], &value["spec"]);
        found.extend(control_plane(name, spec, &["url", "pluginName"], "pluginConfig"));
    } else if value["kind"] == "EnvoyExtensionPolicy" {
        let list = value["spec"]["wasm"].as_array().into_iter().flatten();
        let plugin = |wasm: &Value| control_plane(&wasm["name"], wasm, &["name", "rootID", "code"], "config");
        found.extend(list.filter_map(plugin));
    } else if value["kind"] == "ConfigMap" {
        for (name, text) in value["data"].as_object().into_iter().flatten() {
            let is_configuration = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
            let Some(text) = text.as_str().filter(|_| is_configuration) else { continue };
            match documents(text) {
                Ok(documents) => documents.iter().for_each(|document| walk(document, found)),
                Err(error) => found.push((name.clone(), Err(error))),
            }
        }
    } else {
        let list = value.as_array().into_iter().flatten();
        let members = value.as_object().into_iter().flat_map(|members| members.values());
        list.chain(members).for_each(|value| walk(value, found));
    }
}

fn envoy_filter(config: &Value) -> Option<(String, Configuration)> {
    if config["root_id"] == BRIDGE || !is_ours(config, &["name", "root_id", "vm_config"]) {
        return None;
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
    Some((name_of(&config["name"]), configuration))
}

/// Control planes have the configuration as YAML, and pass it to the filter as JSON text.
fn control_plane(
    name: &Value,
    plugin: &Value,
    fields: &[&str],
    field: &str,
) -> Option<(String, Configuration)> {
    let configuration = Some(&plugin[field]).filter(|value| !value.is_null());
    let bytes = configuration.map_or_else(Vec::new, |value| value.to_string().into_bytes());
    is_ours(plugin, fields).then(|| (name_of(name), Ok(bytes)))
}

fn is_ours(config: &Value, fields: &[&str]) -> bool {
    let text: String = fields.iter().map(|field| config[*field].to_string()).collect();
    text.contains("rate_limiter") || text.contains("rate-limiter")
}

fn name_of(name: &Value) -> String {
    name.as_str().unwrap_or("without a name").to_owned()
}
