//! One JSON document: what kind it is, whether it is right, and what it says in short.

use std::fmt;

use dynamic_rate_limiter::config::{
    Config, Documents, Environment, KeyEntry, PluginConfig, parse_key_document, parse_tier_document,
};
use dynamic_rate_limiter::documents::MAX_DOCUMENT_BYTES;
use dynamic_rate_limiter::json::Document;
use dynamic_rate_limiter::tier::Tier;
use serde_json::{Map, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// The plugin's configuration, as in Envoy's `configuration`
    PluginConfig,
    /// A tier document
    Tiers,
    /// A key document
    ApiKeys,
    /// A YAML file with plugin configurations in it
    Yaml,
}

/// A document that is right by itself.
pub(super) enum Checked {
    PluginConfig(PluginConfig),
    Tiers(Vec<Tier>),
    /// With how many keys stand there as they are, and not as hashes.
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
    // What Envoy itself delivers has no such bound.
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

/// What a document is by its content. Where that does not tell, none is guessed: a key document that is taken for
/// something else would have its keys shown as fields that nobody knows.
fn kind_of(bytes: &[u8]) -> Result<Kind, String> {
    let hint = "say which with --as plugin, tiers or api-keys";
    if bytes.trim_ascii().is_empty() {
        return Err(format!("found nothing in it, wanted a configuration; if that is what you mean, {hint}"));
    }
    Document::parse(bytes)?;
    if !is_object(bytes) {
        return Ok(Kind::PluginConfig);
    }
    let members = members(bytes);
    let fields = plugin_fields();
    if !members.is_empty() && members.values().all(reads_as_tier) {
        Ok(Kind::Tiers)
    } else if members.is_empty() || members.keys().any(|name| fields.contains(name)) {
        Ok(Kind::PluginConfig)
    } else if members.values().any(reads_as_tier) {
        Ok(Kind::Tiers)
    } else if members.values().any(reads_as_key) {
        Ok(Kind::ApiKeys)
    } else {
        Err(format!("cannot tell whether this is a plugin configuration, tiers or keys; {hint}"))
    }
}

fn reads_as_tier(member: &Value) -> bool {
    ["base", "burst", "degraded", "unlimited"].iter().any(|field| member.get(field).is_some())
}

fn reads_as_key(member: &Value) -> bool {
    member.is_string() || ["tier", "id"].iter().any(|field| member.get(field).is_some())
}

/// The fields that a plugin configuration may have.
fn plugin_fields() -> Vec<String> {
    fields_beside(br#"{"?": 0}"#)
}

/// The fields that may stand where this plugin configuration has one that cannot be. They are asked of the filter, so
/// that a new one is known here from its first day: it says `found an unknown field "?", wanted one of tiers,
/// api_keys, …`.
pub(super) fn fields_beside(wrong: &[u8]) -> Vec<String> {
    let error = PluginConfig::parse(wrong, &Environment::default()).err().unwrap_or_default();
    let list = error.split_once("wanted one of ").map_or("", |(_, list)| list);
    list.split(", ").map(str::to_owned).collect()
}

/// The filter shows the name of a field that it does not know. Here it may be a key: a whole key document is easily
/// taken for a plugin configuration, by whoever names the file or by a key that is called like a field.
fn no_key_among_fields(bytes: &[u8]) -> Result<(), String> {
    let fields = plugin_fields();
    for (name, member) in members(bytes) {
        if !fields.contains(&name) && reads_as_key(&member) {
            let (length, wanted) = (name.len(), fields.join(", "));
            return Err(format!(
                "configuration: found an unknown field whose name has {length} bytes, wanted one of {wanted} (or is this a \
                 key document? then say --as api-keys)"
            ));
        }
    }
    Ok(())
}

/// The members of an object; of anything else, none.
fn members(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn is_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{")
}

/// In short, for who wants to see that it was read as it was meant.
impl fmt::Display for Checked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checked::PluginConfig(plugin) => plugin_in_short(plugin, formatter),
            Checked::Tiers(tiers) => {
                let names: Vec<&str> = tiers.iter().map(|tier| tier.name.as_str()).collect();
                write!(formatter, "{}: {}", counted(tiers.len(), "tier"), names.join(", "))
            }
            Checked::ApiKeys { entries, plain } => {
                let mut tiers: Vec<&str> = entries.iter().map(|entry| entry.tier.as_str()).collect();
                tiers.sort_unstable();
                tiers.dedup();
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

fn plugin_in_short(plugin: &PluginConfig, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let settings = &plugin.settings;
    let config = Config::new(plugin, &Documents::default()).map_err(|_| fmt::Error)?;
    write!(formatter, "plugin configuration: ")?;
    let from = |path: &Option<String>| path.as_deref().map(str::to_owned);
    let source = settings.config_source.as_ref();
    match source.and_then(|source| from(&source.tiers)) {
        Some(path) => write!(formatter, "tiers from {path}")?,
        None => write!(
            formatter,
            "{}, default {}",
            counted(config.tiers.len(), "tier"),
            config.default_tier.name
        )?,
    }
    match source.and_then(|source| from(&source.api_keys)) {
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
