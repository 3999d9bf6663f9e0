//! Why a command failed, in the few kinds that operators can act on.

/// A kind of failure; each is counted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    Timeout,
    /// The connection was refused or lost.
    Disconnected,
    /// The bytes received were no reply to the command.
    Protocol,
    /// As many commands wait as may.
    QueueFull,
    /// Redis is still loading its data.
    Loading,
    /// It is a replica.
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

impl FailureKind {
    pub const COUNT: usize = FailureKind::Error as usize + 1;

    /// The kind of an error reply, by its first word. `proxy_errors` are the replies by which a proxy on the way says
    /// that it reaches no node.
    pub fn of_error(reply: &[u8], proxy_errors: &[&[u8]]) -> Self {
        if proxy_errors.contains(&reply) {
            return FailureKind::Disconnected;
        }
        match reply.split(|byte| *byte == b' ').next().unwrap_or_default() {
            b"LOADING" => FailureKind::Loading,
            b"READONLY" | b"MASTERDOWN" => FailureKind::ReadOnly,
            b"OOM" => FailureKind::OutOfMemory,
            b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => FailureKind::Auth,
            b"MOVED" | b"ASK" | b"TRYAGAIN" | b"CROSSSLOT" | b"CLUSTERDOWN" => FailureKind::Moved,
            _ => FailureKind::Error,
        }
    }
}

/// How much of Redis an error reply speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The key of the command.
    Key,
    /// The part of a cluster that keeps the key.
    Shard,
    /// The node that replied: a part of a cluster, or all there is.
    Node,
    Whole,
}

impl Scope {
    /// The scope of an error reply of this kind.
    pub fn of_error(reply: &[u8], reason: FailureKind) -> Self {
        match reason {
            _ if reply.starts_with(b"WRONGTYPE") => Scope::Key,
            FailureKind::Moved | FailureKind::Disconnected => Scope::Shard,
            // The credentials are those of all nodes, and a stream to a replica leads to no other node.
            FailureKind::Auth | FailureKind::ReadOnly => Scope::Whole,
            _ => Scope::Node,
        }
    }
}
