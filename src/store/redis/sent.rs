//! What is on the wire.

use super::command::Expected;

/// A command whose reply is still to come.
#[derive(Debug)]
pub(super) struct Sent<T> {
    pub asker: Asker<T>,
    /// What was asked; the text is kept for `Take` alone, which may have to be sent again.
    pub question: Expected,
    pub sequence: u32,
    pub wait: Wait,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// When it began, on the session's clock and on the worker's.
    pub charged_us: u64,
    pub at_us: u64,
    pub timeout_us: u64,
}

impl Wait {
    /// Whether it is over. What has longer than a request, which has `request_us`, has that on the worker's clock, and no
    /// more turns of the event loop than a request: those of a whole second would take a busy worker half a minute.
    pub fn is_over(&self, charged_us: u64, now_us: u64, request_us: u64) -> bool {
        charged_us.saturating_sub(self.charged_us) >= self.timeout_us.min(request_us)
            && now_us.saturating_sub(self.at_us) >= self.timeout_us
    }
}

/// Who asks.
#[derive(Debug)]
pub(super) enum Asker<T> {
    /// A request waits for it.
    Waiting(T),
    /// A request did.
    Gone,
    /// The session itself.
    Session,
}
