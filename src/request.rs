//! What the limiter reads of a request.

use crate::time::StoreTime;

/// Names a request of one worker from its arrival to its end.
pub type RequestId = u32;

/// When the store is asked for a request, and what to call the request if it has to wait for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStart {
    /// Names it among those that wait.
    pub id: RequestId,
    /// When it is charged, or changes health: later than its headers came in, if it has waited before.
    pub at: StoreTime,
}

/// A request, as bytes. Every call costs a call into the host.
pub trait Request {
    /// The first value of a header; `:path` and `:method` are headers too.
    fn header(&self, name: &str) -> Option<Vec<u8>>;
    /// The client address that Envoy trusts.
    fn source_address(&self) -> Option<Vec<u8>>;
}
