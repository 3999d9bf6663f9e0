//! The replies that are still to come.

use std::time::Duration;

use super::command::{CommandId, Sent};
use super::reply_clock::ReplyTime;
use crate::time::StoreTime;

/// A command whose reply is still to come: it is on the wire, or in the outbox.
#[derive(Debug)]
pub(super) struct PendingReply {
    pub recipient: Recipient,
    /// What was sent, and may have to be sent again.
    pub sent: Sent,
    pub sequence: u32,
    pub wait: Wait,
}

/// Who the reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    /// The owner, for this command.
    Owner(CommandId),
    /// The owner, for this command, which is not sent again: its request has ended.
    Left(CommandId),
    /// The session itself.
    Session,
    /// Nothing any more: its time is over.
    Gone,
}

impl Recipient {
    /// The command whose owner gets the reply.
    pub fn command(self) -> Option<CommandId> {
        match self {
            Recipient::Owner(id) | Recipient::Left(id) => Some(id),
            Recipient::Session | Recipient::Gone => None,
        }
    }
}

/// How long a reply is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// When it began, on the reply clock and on the worker's.
    pub reply_time: ReplyTime,
    pub at: StoreTime,
    pub timeout: Duration,
}

impl Wait {
    /// Whether `timeout` is over on the worker's clock, and on the reply clock `timeout` or `request_timeout`, whichever
    /// is shorter: a busy worker counts one turn of the event loop for each check, and a whole second would take half a
    /// minute.
    pub fn is_over(&self, reply_time: ReplyTime, now: StoreTime, request_timeout: Duration) -> bool {
        reply_time.since(self.reply_time) >= self.timeout.min(request_timeout)
            && now.since(self.at) >= self.timeout
    }
}
