//! Buckets in Redis, shared by any number of Envoys.
//!
//! In reading order: [`resp`] (the protocol), [`script`] (the bucket's twin in Lua), [`failure`], [`command`],
//! [`breaker`], [`reply_clock`], `pending_reply`, [`queue`], [`outbox`] and [`session`] (the conversation and its
//! deadlines), [`deny_cache`] (which buckets are known to be empty), [`frame`] (gRPC's frames around it all). Nothing
//! here knows Envoy, tiers or headers. From outside come a limit, the unit of its tokens, the credentials and the
//! store's clock.

pub mod breaker;
pub mod command;
pub mod deny_cache;
pub mod failure;
pub mod frame;
pub mod outbox;
mod pending_reply;
pub mod queue;
pub mod reply_clock;
pub mod resp;
pub mod script;
pub mod session;

/// The key of the health that an operator has set for all Envoys of `namespace`.
pub fn health_key(namespace: &str) -> String {
    match namespace {
        "default" => "system:health:status".to_owned(),
        other => format!("system:health:{other}:status"),
    }
}

/// What the names of buckets of `namespace` begin with.
///
/// A `/` closes the namespace: no id holds one, and no namespace a `:`, so buckets of two namespaces never meet.
pub fn bucket_prefix(key_prefix: &str, namespace: &str) -> String {
    match namespace {
        "default" => key_prefix.to_owned(),
        other => format!("{key_prefix}{other}/"),
    }
}

/// The name of the bucket that probes take from. No id holds a `#`.
pub const PROBE_BUCKET: &str = "#probe";
