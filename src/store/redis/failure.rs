//! Why Redis gave no answer, in the few kinds that operators can act on.

use crate::metrics;

/// A kind of failure; each has a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No reply in time.
    Timeout,
    /// The connection was refused or lost.
    Disconnected,
    /// What came was no reply to what was asked.
    Protocol,
    /// As many questions are on their way as may be.
    QueueFull,
    /// Redis is still loading its data.
    Loading,
    /// A replica was asked.
    ReadOnly,
    /// `maxmemory` is reached.
    OutOfMemory,
    /// The credentials are missing, wrong, or may not do this.
    Auth,
    /// Another node of a cluster keeps the key, or none does.
    Moved,
    /// Any other error reply.
    Error,
}

impl Reason {
    /// How many kinds there are.
    pub const COUNT: usize = Reason::Error as usize + 1;

    /// The kind of an error reply, by its first word.
    pub fn of_error(reply: &[u8]) -> Self {
        // What Envoy's `redis_proxy` says when it finds nobody to pass a command on to.
        if reply == b"upstream failure" || reply == b"no upstream host" {
            return Reason::Disconnected;
        }
        match reply.split(|byte| *byte == b' ').next().unwrap_or_default() {
            b"LOADING" => Reason::Loading,
            b"READONLY" => Reason::ReadOnly,
            b"OOM" => Reason::OutOfMemory,
            b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => Reason::Auth,
            b"MOVED" | b"ASK" | b"TRYAGAIN" | b"CROSSSLOT" | b"CLUSTERDOWN" => Reason::Moved,
            _ => Reason::Error,
        }
    }

    /// The counter that it adds to.
    pub fn counter(self) -> &'static str {
        match self {
            Reason::Timeout => metrics::STORE_TIMEOUT,
            Reason::Disconnected => metrics::STORE_DISCONNECTED,
            Reason::Protocol => metrics::STORE_PROTOCOL,
            Reason::QueueFull => metrics::STORE_QUEUE_FULL,
            Reason::Loading => metrics::STORE_LOADING,
            Reason::ReadOnly => metrics::STORE_READONLY,
            Reason::OutOfMemory => metrics::STORE_OOM,
            Reason::Auth => metrics::STORE_AUTH,
            Reason::Moved => metrics::STORE_MOVED,
            Reason::Error => metrics::STORE_ERROR,
        }
    }
}

/// How much of Redis an error reply speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The key that was asked for.
    Key,
    /// The part of a cluster that keeps the key.
    Shard,
    /// All of it.
    Whole,
}

impl Scope {
    /// The scope of an error reply.
    pub fn of_error(reply: &[u8]) -> Self {
        match Reason::of_error(reply) {
            _ if reply.starts_with(b"WRONGTYPE") => Scope::Key,
            Reason::Moved | Reason::Disconnected => Scope::Shard,
            _ => Scope::Whole,
        }
    }
}
