//! One JSON document: its kind, its check, and its summary.

use std::collections::BTreeSet;
use std::fmt;

use dynamic_rate_limiter::config::{
    Config, Documents, Environment, KeyEntry, PluginConfig, parse_key_document, parse_tier_document,
};
use dynamic_rate_limiter::documents::MAX_DOCUMENT_BYTES;
use dynamic_rate_limiter::json::Json;
use dynamic_rate_limiter::tier::Tier;
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// The plugin configuration, as in Envoy's `configuration`
    #[value(name = "plugin")]
    PluginConfig,
    /// A tier document
    Tiers,
    /// A key document
    ApiKeys,
    /// A YAML file that contains plugin configurations
    Yaml,
}

pub(super) enum Checked {
    PluginConfig(PluginConfig),
    Tiers(Vec<Tier>),
    /// With the number of keys that are not hashed.
    ApiKeys {
        entries: Vec<KeyEntry>,
        plain: usize,
    },
}

/// Checks a document with the filter's own code; the error is the filter's own.
pub(super) fn check(bytes: &[u8], kind: Option<Kind>) -> Result<Checked, String> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    if let Ok(Value::String(text)) = serde_json::from_slice(bytes) {
        return Err(format!("found a string of {} bytes, wanted an object", text.len()));
    }
    let kind = kind.map_or_else(|| kind_of(bytes), Ok)?;
    // There is no such bound for configurations that Envoy itself delivers.
    if matches!(kind, Kind::Tiers | Kind::ApiKeys) && bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(format!("found {} bytes, wanted at most {MAX_DOCUMENT_BYTES}", bytes.len()));
    }
    match kind {
        Kind::PluginConfig | Kind::Yaml => {
            no_key_among_fields(bytes)?;
            PluginConfig::parse(bytes, &Environment::default()).map(Checked::PluginConfig)
        }
        Kind::Tiers => Ok(Checked::Tiers(parse_tier_document(bytes)?)),
        Kind::ApiKeys => {
            let entries = parse_key_document(bytes)?;
            let plain = members(bytes).keys().filter(|key| !key.starts_with("sha256:")).count();
            Ok(Checked::ApiKeys { entries, plain })
        }
    }
}

/// The kind of a document by its content. If it is ambiguous, there is no guess: the keys of a misinterpreted key
/// document would be shown as unknown fields.
fn kind_of(bytes: &[u8]) -> Result<Kind, String> {
    let hint = "say which with --as plugin, tiers or api-keys";
    if bytes.trim_ascii().is_empty() {
        return Err(format!("found an empty file, wanted a configuration; if that is intended, {hint}"));
    }
    Json::parse(bytes)?;
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Ok(Kind::PluginConfig);
    }
    let members = members(bytes);
    let fields = plugin_fields();
    if !members.is_empty() && members.values().all(looks_like_tier) {
        Ok(Kind::Tiers)
    } else if members.is_empty() || members.keys().any(|name| fields.contains(name)) {
        Ok(Kind::PluginConfig)
    } else if members.values().any(looks_like_tier) {
        Ok(Kind::Tiers)
    } else if members.values().any(looks_like_key) {
        Ok(Kind::ApiKeys)
    } else {
        Err(format!("cannot tell whether this is a plugin configuration, tiers or keys; {hint}"))
    }
}

fn looks_like_tier(member: &Value) -> bool {
    ["base", "burst", "degraded", "unlimited"].iter().any(|field| member.get(field).is_some())
}

fn looks_like_key(member: &Value) -> bool {
    member.is_string() || ["tier", "id"].iter().any(|field| member.get(field).is_some())
}

/// The fields that a plugin configuration may have.
fn plugin_fields() -> Vec<String> {
    fields_beside(br#"{"?": 0}"#)
}

/// The valid fields at the place of an unknown field in this plugin configuration. They are taken from the filter's
/// error message `found an unknown field "?", wanted one of tiers, api_keys, …`, so that the list is always complete.
pub(super) fn fields_beside(wrong: &[u8]) -> Vec<String> {
    let error = PluginConfig::parse(wrong, &Environment::default()).err().unwrap_or_default();
    let list = error.split_once("wanted one of ").map_or("", |(_, list)| list);
    list.split(", ").map(str::to_owned).collect()
}

/// The filter shows the name of an unknown field. Here it may be a key: a key document may be misinterpreted as a
/// plugin configuration, by a wrong option or because a key has the name of a field.
fn no_key_among_fields(bytes: &[u8]) -> Result<(), String> {
    let fields = plugin_fields();
    for (name, member) in members(bytes) {
        if !fields.contains(&name) && looks_like_key(&member) {
            let (length, wanted) = (name.len(), fields.join(", "));
            return Err(format!(
                "configuration: found an unknown field whose name has {length} bytes, wanted one of {wanted} (or is this a \
                 key document? then say --as api-keys)"
            ));
        }
    }
    Ok(())
}

fn members(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap_or_default()
}

/// A summary, with which a user can check that the document was read as intended.
impl fmt::Display for Checked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checked::PluginConfig(plugin) => plugin_summary(plugin, formatter),
            Checked::Tiers(tiers) => {
                let names: Vec<&str> = tiers.iter().map(|tier| tier.name.as_str()).collect();
                write!(formatter, "{}: {}", counted(tiers.len(), "tier"), names.join(", "))
            }
            Checked::ApiKeys { entries, plain } => {
                let tiers: BTreeSet<_> = entries.iter().map(|entry| &entry.tier).collect();
                let (keys, tiers) = (counted(entries.len(), "key"), counted(tiers.len(), "tier"));
                write!(formatter, "{keys} of {tiers}")?;
                match plain {
                    0 => Ok(()),
                    _ => write!(formatter, "; {plain} in the clear, which --hash turns into hashes"),
                }
            }
        }
    }
}

fn plugin_summary(plugin: &PluginConfig, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let settings = &plugin.settings;
    let config = Config::new(plugin, &Documents::default()).map_err(|_| fmt::Error)?;
    write!(formatter, "plugin configuration: ")?;
    let source = settings.config_source.as_ref();
    match source.and_then(|source| source.tiers.as_ref()) {
        Some(path) => write!(formatter, "tiers from {path}")?,
        None => {
            let (tiers, default) = (counted(config.tiers.len(), "tier"), &config.default_tier.name);
            write!(formatter, "{tiers}, default {default}")?;
        }
    }
    match source.and_then(|source| source.api_keys.as_ref()) {
        Some(path) => write!(formatter, "; keys from {path}")?,
        None => write!(formatter, "; {}", counted(config.keys(), "key"))?,
    }
    match &settings.redis {
        Some(redis) => write!(formatter, "; Redis by cluster {}", redis.cluster),
        None => write!(formatter, "; shared data"),
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
