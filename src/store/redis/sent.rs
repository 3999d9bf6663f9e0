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
    /// On the session's clock.
    pub since_us: u64,
    pub timeout_us: u64,
}

/// Who asks.
#[derive(Debug)]
pub(super) enum Asker<T> {
    /// Somebody waits for it.
    Waiting(T),
    /// Somebody did.
    Gone,
    /// The session itself.
    Session,
}
