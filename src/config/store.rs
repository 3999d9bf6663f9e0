//! Where buckets are kept: `store`.

use super::{MAX_BUCKETS, non_empty};
use crate::credentials::Credentials;
use crate::json::{Field, Fields};

const DEFAULT_MAX_BUCKETS: u32 = 65_536;
const DEFAULT_TIMEOUT_MS: u32 = 20;
const MAX_TIMEOUT_MS: u32 = 10_000;
const MAX_PREFIX_BYTES: usize = 64;
/// So that its length takes one byte in the message that names it to Envoy.
const MAX_CLUSTER_BYTES: usize = 120;

/// Where buckets are kept.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) max_buckets: u32,
    pub(super) redis: Option<RedisSettings>,
}

/// How to reach Redis, and what holds without it.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// The Envoy cluster that leads to it through the bridge.
    pub cluster: String,
    /// How long a request waits for it, in milliseconds: 1 to 10,000.
    pub timeout_ms: u32,
    /// What decides when it does not.
    pub on_failure: OnFailure,
    /// What the names of buckets begin with.
    pub key_prefix: String,
    /// Sent with `AUTH`; from the environment alone.
    pub credentials: Credentials,
}

/// What decides about a request when Redis does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// This Envoy's own bucket in shared data.
    Local,
    /// It passes.
    Allow,
    /// It is rejected with 503.
    Deny,
}

impl OnFailure {
    const ALL: [OnFailure; 3] = [OnFailure::Local, OnFailure::Allow, OnFailure::Deny];

    /// The name that the configuration and the metrics use.
    pub fn name(self) -> &'static str {
        match self {
            OnFailure::Local => "local",
            OnFailure::Allow => "allow",
            OnFailure::Deny => "deny",
        }
    }
}

pub(super) fn parse_store(field: Option<Field>, credentials: Credentials) -> Result<Store, String> {
    let Some(field) = field else {
        return Ok(Store { max_buckets: DEFAULT_MAX_BUCKETS, redis: None });
    };
    let all = ["kind", "max_buckets", "cluster", "timeout_ms", "on_failure", "key_prefix"];
    let kind = field.fields(&all).and_then(|fields| kind(&fields));
    match kind? {
        Kind::SharedData => {
            let fields = field.fields(&["kind", "max_buckets"])?;
            Ok(Store { max_buckets: max_buckets(&fields)?, redis: None })
        }
        Kind::Redis => {
            let fields = field.fields(&all)?;
            let redis = redis(&fields, credentials)?;
            Ok(Store { max_buckets: max_buckets(&fields)?, redis: Some(redis) })
        }
    }
}

enum Kind {
    SharedData,
    Redis,
}

fn kind(fields: &Fields) -> Result<Kind, String> {
    let Some(field) = fields.get("kind") else {
        return Ok(Kind::SharedData);
    };
    match field.as_text() {
        Some("shared_data") => Ok(Kind::SharedData),
        Some("redis") => Ok(Kind::Redis),
        _ => Err(field.wanted("\"shared_data\" or \"redis\"")),
    }
}

fn max_buckets(fields: &Fields) -> Result<u32, String> {
    fields.get("max_buckets").map_or(Ok(DEFAULT_MAX_BUCKETS), |field| field.whole(1, MAX_BUCKETS))
}

fn redis(fields: &Fields, credentials: Credentials) -> Result<RedisSettings, String> {
    let wanted = "the name of an Envoy cluster in at most 120 bytes";
    let field = fields.need("cluster", wanted)?;
    let cluster = non_empty(&field, wanted)?;
    if cluster.len() > MAX_CLUSTER_BYTES {
        return Err(field.wanted(wanted));
    }
    Ok(RedisSettings {
        cluster: cluster.to_owned(),
        timeout_ms: match fields.get("timeout_ms") {
            Some(field) => field.whole(1, MAX_TIMEOUT_MS)?,
            None => DEFAULT_TIMEOUT_MS,
        },
        on_failure: match fields.get("on_failure") {
            Some(field) => {
                let named = |policy: &OnFailure| field.as_text() == Some(policy.name());
                let policy = OnFailure::ALL.into_iter().find(named);
                policy.ok_or_else(|| field.wanted("\"local\", \"allow\" or \"deny\""))?
            }
            None => OnFailure::Local,
        },
        key_prefix: match fields.get("key_prefix") {
            Some(field) => key_prefix(&field)?.to_owned(),
            None => "rate_limit:".to_owned(),
        },
        credentials,
    })
}

fn key_prefix<'a>(field: &Field<'a>) -> Result<&'a str, String> {
    let text = field.text()?;
    let fits = (1..=MAX_PREFIX_BYTES).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(field.wanted("1 to 64 printable ASCII characters without a space"))
    }
}
