//! Configuration: JSON in, checked values out; every error names its field.
//!
//! Two stages. [`PluginConfig`] is what Envoy delivered, checked by itself. [`Config`] is what the limiter runs on:
//! the plugin's settings joined with tiers and keys, which come from the plugin configuration or from fetched
//! documents. A `Config` cannot be wrong: every key has its tier, every limit is in range.

mod health;
mod keys;
mod store;
mod tiers;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use crate::credentials::Credentials;
use crate::identity::{KeyHash, Network};
use crate::json::{Field, Fields, Json};
use crate::shown::{listed, quoted};
use crate::tier::Tier;

pub use health::HealthThresholds;
pub use keys::{
    KEY_DOCUMENT, KeyEntry, KeySummary, KnownCaller, MAX_ID_BYTES, NamedTier, parse_api_keys,
    parse_key_document, parse_key_members,
};
pub use store::{OnFailure, RedisSettings};
pub use tiers::{
    MAX_TIERS, TIER_DOCUMENT, built_in_tiers, check_count, parse_tier_document, parse_tier_members,
    parse_tiers,
};

/// Longest name of a tier or namespace, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Most buckets that the address table may hold; at 24 bytes a bucket and some overhead, about 700 MiB.
const MAX_BUCKETS: u32 = 1 << 24;
/// Most exempt paths: each is compared on every request.
const MAX_EXEMPT_PATHS: usize = 64;

/// Longest admin token that is compared, in bytes. Hashing a longer one would only cost time.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// Variables that Envoy hands in with `vm_config.environment_variables`; they win over the JSON. An empty one
/// counts as absent.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `ADMIN_TOKEN`: the token itself, not its hash.
    pub admin_token: Option<Vec<u8>>,
    /// `DEFAULT_TIER`.
    pub default_tier: Option<Vec<u8>>,
    /// `CONFIG_TTL`, in seconds.
    pub config_ttl: Option<Vec<u8>>,
    /// `REDIS_USERNAME` and `REDIS_PASSWORD`.
    pub redis: Credentials,
}

/// Where tiers and keys are re-read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSource {
    /// The Envoy cluster that serves the documents.
    pub cluster: String,
    pub tiers: Option<String>,
    pub api_keys: Option<String>,
    /// How often to read them, in seconds: 1 to 86,400.
    pub ttl_seconds: u32,
}

/// The endpoints that the filter answers itself.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Hash of the token that changes health; without one, it cannot be changed.
    pub token: Option<KeyHash>,
    /// Path of the health check; `None` disables it.
    pub health_path: Option<String>,
    /// Path that shows and changes health; `None` disables it.
    pub system_health_path: Option<String>,
}

/// Which groups of response headers are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// `X-RateLimit-*`.
    pub rate_limit: bool,
    /// `X-System-Health`.
    pub system_health: bool,
    /// `X-Processing-Time`.
    pub processing_time: bool,
    /// `RateLimit` and `RateLimit-Policy` of the IETF draft.
    pub ietf: bool,
}

/// A path that is not limited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExemptPath {
    /// This path alone.
    Exact(String),
    /// Every path that starts so.
    Prefix(String),
}

impl ExemptPath {
    /// Whether `path`, without its query string, is exempt by this entry.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            ExemptPath::Exact(exact) => path == exact.as_bytes(),
            ExemptPath::Prefix(prefix) => path.starts_with(prefix.as_bytes()),
        }
    }
}

/// What does not change with the documents.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config_source: Option<ConfigSource>,
    pub admin: Admin,
    pub headers: Headers,
    /// Most buckets kept for callers without a known key.
    pub max_buckets: u32,
    /// The Redis that keeps the buckets; without one, they are in shared data.
    pub redis: Option<RedisSettings>,
    /// The bounds that health is measured against; without them only operators set it.
    pub health_thresholds: Option<HealthThresholds>,
    /// How many bits of an IPv6 address name a caller: 1 to 128.
    pub ipv6_prefix: u8,
    /// Keeps two limiters in one Envoy apart.
    pub namespace: String,
    pub exempt_paths: Vec<ExemptPath>,
    /// Whether CORS preflights are not limited.
    pub exempt_preflight: bool,
}

/// A checked plugin configuration.
#[derive(Clone, Debug)]
pub struct PluginConfig {
    pub settings: Rc<Settings>,
    tiers: Option<Vec<Tier>>,
    api_keys: Vec<KeyEntry>,
    default_tier: DefaultTier,
}

/// The name of the default tier, not yet looked up, and the field that it stands in.
#[derive(Clone, Debug)]
struct DefaultTier {
    name: String,
    field: &'static str,
}

impl PluginConfig {
    /// Reads a plugin configuration; no bytes at all stand for `{}`.
    pub fn parse(bytes: &[u8], environment: &Environment) -> Result<Self, String> {
        let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
        let json = Json::parse(bytes)?;
        let fields = json.root("").fields(&[
            "tiers",
            "api_keys",
            "default_tier",
            "config_source",
            "admin",
            "store",
            "headers",
            "health",
            "ipv6_prefix",
            "namespace",
            "exempt_paths",
            "exempt_preflight",
        ])?;
        let plugin = Self {
            tiers: fields.get("tiers").map(|field| parse_tiers(&field)).transpose()?,
            api_keys: fields.get("api_keys").map_or(Ok(Vec::new()), |field| parse_api_keys(&field))?,
            default_tier: default_tier(&fields, environment)?,
            settings: Rc::new(settings(&fields, environment)?),
        };
        Config::new(&plugin, &Documents::default())?;
        Ok(plugin)
    }

    /// A hash of what documents have to fit: the names of the tiers, of the default tier and of the keys' tiers.
    pub fn tier_names_hash(&self) -> u64 {
        let tiers: Vec<&str> = self.tiers.iter().flatten().map(|tier| tier.name.as_str()).collect();
        let key_tiers: Vec<&str> = self.api_keys.iter().map(|entry| entry.tier.as_str()).collect();
        let mut hasher = DefaultHasher::new();
        (&self.default_tier.name, tiers, key_tiers).hash(&mut hasher);
        hasher.finish()
    }

    /// Whether tiers will come from a document, so that names of tiers cannot be checked before it is there.
    fn awaits_tiers(&self) -> bool {
        let source = self.settings.config_source.as_ref();
        source.is_some_and(|source| source.tiers.is_some())
    }
}

/// Documents that were fetched; they replace what the plugin configuration says.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    pub tiers: Option<Vec<Tier>>,
    /// What the key document says about tiers. Its keys are looked up where they are published.
    pub keys: Option<KeySummary>,
}

/// What the limiter runs on.
#[derive(Clone, Debug)]
pub struct Config {
    pub settings: Rc<Settings>,
    /// Every tier, in the document's order.
    pub tiers: Vec<Rc<Tier>>,
    /// The tier of callers without a known key.
    pub default_tier: Rc<Tier>,
    /// The tiers that the fetched key document names, in its order.
    pub key_tiers: Vec<Rc<Tier>>,
    /// The keys of the plugin configuration, where no others were fetched.
    callers: HashMap<KeyHash, Rc<KnownCaller>>,
    keys: usize,
}

impl Config {
    /// Joins a plugin configuration with fetched documents.
    ///
    /// Fails where a key or `default_tier` names a tier that does not exist. While the tier document is still
    /// awaited there is nothing to check the names against: an unknown one then means the default tier, and an
    /// unknown default the least important tier.
    pub fn new(plugin: &PluginConfig, documents: &Documents) -> Result<Self, String> {
        Self::join(plugin, documents, plugin.awaits_tiers() && documents.tiers.is_none())
    }

    /// Joins them as far as the names of tiers fit: an unknown one means the default tier, and an unknown default the
    /// least important tier.
    pub fn new_lenient(plugin: &PluginConfig, documents: &Documents) -> Result<Self, String> {
        Self::join(plugin, documents, true)
    }

    /// The tier's priority; for its `min_share` of callers that of the most important tier.
    pub fn priority(&self, tier: &Tier, order: u64) -> u8 {
        let highest = self.tiers.iter().map(|tier| tier.priority).max();
        highest.filter(|_| tier.is_in_min_share(order)).unwrap_or(tier.priority)
    }

    fn join(plugin: &PluginConfig, documents: &Documents, lenient: bool) -> Result<Self, String> {
        let fetched = documents.tiers.clone().or_else(|| plugin.tiers.clone());
        let tiers: Vec<Rc<Tier>> = fetched.unwrap_or_else(built_in_tiers).into_iter().map(Rc::new).collect();
        let by_name: HashMap<&str, &Rc<Tier>> = tiers.iter().map(|tier| (tier.name.as_str(), tier)).collect();
        let known = || listed(tiers.iter().map(|tier| tier.name.as_str()));

        let DefaultTier { name, field } = &plugin.default_tier;
        let least_important = || tiers.iter().min_by_key(|tier| tier.priority).filter(|_| lenient);
        let default_tier =
            by_name.get(name.as_str()).copied().or_else(least_important).ok_or_else(|| {
                format!("{field}: found {}, wanted one of the tiers {}", quoted(name), known())
            })?;
        let named =
            |name: &str| by_name.get(name).copied().or_else(|| lenient.then_some(default_tier)).cloned();
        let find = |tier: &NamedTier| named(&tier.name).ok_or_else(|| tier.unknown(&known()));

        let mut key_tiers = Vec::new();
        let mut callers = HashMap::new();
        let keys = match &documents.keys {
            Some(summary) => {
                key_tiers = summary.tiers.iter().map(find).collect::<Result<_, _>>()?;
                summary.keys as usize
            }
            None => {
                for entry in &plugin.api_keys {
                    let tier = find(&NamedTier { name: entry.tier.clone(), number: entry.number })?;
                    let caller = KnownCaller::new(tier, entry.bucket(), &plugin.settings.namespace);
                    callers.insert(entry.key, Rc::new(caller));
                }
                callers.len()
            }
        };
        let default_tier = default_tier.clone();
        Ok(Self { settings: plugin.settings.clone(), tiers, default_tier, key_tiers, callers, keys })
    }

    /// The caller whose key this is, where the plugin configuration has it.
    pub fn caller(&self, key: KeyHash) -> Option<Rc<KnownCaller>> {
        self.callers.get(&key).cloned()
    }

    /// How many keys are known.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// The network that a client address is counted as.
    pub fn network(&self, source_address: &[u8]) -> Network {
        Network::of_source(source_address, self.settings.ipv6_prefix)
    }
}

fn default_tier(fields: &Fields, environment: &Environment) -> Result<DefaultTier, String> {
    let configured = fields.get("default_tier").map_or(Ok("free"), |field| field.text())?;
    if let Some(name) = &environment.default_tier {
        let name = std::str::from_utf8(name).map_err(|_| {
            "DEFAULT_TIER: found bytes that are not UTF-8, wanted the name of a tier".to_owned()
        })?;
        return Ok(DefaultTier { name: name.to_owned(), field: "DEFAULT_TIER" });
    }
    Ok(DefaultTier { name: configured.to_owned(), field: "default_tier" })
}

fn settings(fields: &Fields, environment: &Environment) -> Result<Settings, String> {
    let store = store::parse_store(fields.get("store"), environment.redis.clone())?;
    Ok(Settings {
        config_source: fields
            .get("config_source")
            .map(|field| config_source(&field, environment))
            .transpose()?,
        admin: admin(fields.get("admin").map(Field::secret), environment)?,
        headers: headers(fields.get("headers"))?,
        max_buckets: store.max_buckets,
        redis: store.redis,
        health_thresholds: health::parse_health(fields.get("health"))?,
        ipv6_prefix: match fields.get("ipv6_prefix") {
            Some(field) => u8::try_from(field.whole(1, 128)?).unwrap_or(128),
            None => 64,
        },
        namespace: match fields.get("namespace") {
            Some(field) => name(&field)?.to_owned(),
            None => "default".to_owned(),
        },
        exempt_paths: fields.get("exempt_paths").map_or(Ok(Vec::new()), |field| exempt_paths(&field))?,
        exempt_preflight: flag(fields, "exempt_preflight", false)?,
    })
}

fn config_source(field: &Field, environment: &Environment) -> Result<ConfigSource, String> {
    let fields = field.fields(&["cluster", "tiers", "api_keys", "ttl_seconds"])?;
    let cluster = fields.need("cluster", "the name of an Envoy cluster")?;
    let ttl_seconds = fields.get("ttl_seconds").map_or(Ok(20), |field| field.whole(1, 86_400))?;
    let source = ConfigSource {
        cluster: non_empty(&cluster, "the name of an Envoy cluster")?.to_owned(),
        tiers: optional_path(&fields, "tiers", None)?,
        api_keys: optional_path(&fields, "api_keys", None)?,
        ttl_seconds: environment.config_ttl.as_deref().map_or(Ok(ttl_seconds), config_ttl)?,
    };
    if source.tiers.is_none() && source.api_keys.is_none() {
        return Err(field.wanted("a path in tiers, in api_keys or in both"));
    }
    Ok(source)
}

fn config_ttl(value: &[u8]) -> Result<u32, String> {
    let text = String::from_utf8_lossy(value);
    let seconds = text.trim().parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.ok_or_else(|| {
        let found = quoted(&text);
        format!("CONFIG_TTL: found {found}, wanted a whole number of seconds from 1 to 86400")
    })
}

fn admin(field: Option<Field>, environment: &Environment) -> Result<Admin, String> {
    let mut token = None;
    let mut health_path = Some("/health".to_owned());
    let mut system_health_path = Some("/system/health".to_owned());
    if let Some(field) = field {
        let fields = field.fields(&["token_sha256", "health_path", "system_health_path"])?;
        if let Some(field) = fields.get("token_sha256").filter(|field| !field.is_null()) {
            let digits = field.as_text().and_then(KeyHash::from_hex);
            token =
                Some(digits.ok_or_else(|| field.wanted("the SHA-256 of a token in 64 hexadecimal digits"))?);
        }
        health_path = optional_path(&fields, "health_path", health_path)?;
        system_health_path = optional_path(&fields, "system_health_path", system_health_path)?;
        if health_path.is_some() && health_path == system_health_path {
            return Err(field.error("one path for both endpoints", "two"));
        }
    }
    if let Some(plain) = &environment.admin_token {
        let is_trimmed = plain.trim_ascii().len() == plain.len();
        if !is_trimmed || plain.iter().any(u8::is_ascii_control) || plain.len() > MAX_TOKEN_BYTES {
            return Err(format!(
                "ADMIN_TOKEN: found a control character, a space at an end, or too many bytes, wanted at most \
                 {MAX_TOKEN_BYTES} bytes without these"
            ));
        }
        token = Some(KeyHash::of(plain));
    }
    Ok(Admin { token, health_path, system_health_path })
}

fn headers(field: Option<Field>) -> Result<Headers, String> {
    let mut headers = Headers { rate_limit: true, system_health: true, processing_time: true, ietf: false };
    if let Some(field) = field {
        let fields = field.fields(&["rate_limit", "system_health", "processing_time", "ietf"])?;
        headers = Headers {
            rate_limit: flag(&fields, "rate_limit", headers.rate_limit)?,
            system_health: flag(&fields, "system_health", headers.system_health)?,
            processing_time: flag(&fields, "processing_time", headers.processing_time)?,
            ietf: flag(&fields, "ietf", headers.ietf)?,
        };
    }
    Ok(headers)
}

fn exempt_paths(field: &Field) -> Result<Vec<ExemptPath>, String> {
    let elements = field.elements()?;
    if elements.len() > MAX_EXEMPT_PATHS {
        let found = format_args!("{} paths", elements.len());
        return Err(field.error(found, format_args!("at most {MAX_EXEMPT_PATHS}")));
    }
    let exempt_path = |element: &Field| {
        let path = path(element)?;
        Ok(match path.strip_suffix('*') {
            Some(prefix) => ExemptPath::Prefix(prefix.to_owned()),
            None => ExemptPath::Exact(path.to_owned()),
        })
    };
    elements.iter().map(exempt_path).collect()
}

fn flag(fields: &Fields, name: &str, default: bool) -> Result<bool, String> {
    fields.get(name).map_or(Ok(default), |field| field.bool())
}

/// A path where the member is there, nothing where it is `null`, `default` where it is absent.
fn optional_path(fields: &Fields, name: &str, default: Option<String>) -> Result<Option<String>, String> {
    match fields.get(name) {
        None => Ok(default),
        Some(field) if field.is_null() => Ok(None),
        Some(field) => path(&field).map(|path| Some(path.to_owned())),
    }
}

fn path<'a>(field: &Field<'a>) -> Result<&'a str, String> {
    let text = field.text()?;
    if text.starts_with('/') && !text.contains(['?', '#']) && text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        Ok(text)
    } else {
        Err(field.wanted("a path that starts with / and has no query string"))
    }
}

fn non_empty<'a>(field: &Field<'a>, wanted: &str) -> Result<&'a str, String> {
    field.as_text().filter(|text| !text.is_empty()).ok_or_else(|| field.wanted(wanted))
}

/// A name that is safe in headers, metrics and shared-data keys alike.
fn name<'a>(field: &Field<'a>) -> Result<&'a str, String> {
    let text = field.text()?;
    if is_name(text) { Ok(text) } else { Err(field.wanted(NAME_WANTED)) }
}

const NAME_WANTED: &str = "1 to 64 letters, digits, - or _";

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}
