//! What is on the wire.

use std::time::Duration;

use super::command::Expected;
use super::queue::CommandId;
use super::reply_clock::ChargedTime;
use crate::time::StoreTime;

/// A command whose reply is still to come.
#[derive(Debug)]
pub(super) struct Sent {
    pub recipient: Recipient,
    /// What was sent; the text is kept for `Take` alone, which may have to be sent again.
    pub expected: Expected,
    pub sequence: u32,
    pub wait: Wait,
}

/// Who the reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    /// The owner, for this command.
    Owner(CommandId),
    /// The session itself.
    Session,
    /// Nothing any more: its time is over.
    Gone,
}

/// How long a reply is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// When it began, on the session's clock and on the worker's.
    pub charged_at: ChargedTime,
    pub at: StoreTime,
    pub timeout: Duration,
}

impl Wait {
    /// Whether the time is over: `timeout` on the worker's clock, of which Redis was charged no less than a request
    /// may take. A busy worker charges one turn of the event loop for each check; to charge a whole second would take
    /// it half a minute.
    pub fn is_over(&self, charged: ChargedTime, now: StoreTime, request_timeout: Duration) -> bool {
        charged.since(self.charged_at) >= self.timeout.min(request_timeout)
            && now.since(self.at) >= self.timeout
    }
}
