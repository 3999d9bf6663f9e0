//! What the limiter reads of a request.

use crate::time::StoreTime;

/// Names a request of one worker from its arrival to its end.
pub type RequestId = u32;

/// Which request is decided, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionStart {
    /// Names it while it waits for Redis.
    pub id: RequestId,
    /// When it is charged, or changes health: later than its arrival, if it has waited before.
    pub at: StoreTime,
}

/// A request, as bytes. Every call costs a call into the host.
pub trait Request {
    /// The first value of a header; `:path` and `:method` are headers too.
    fn header(&self, name: &str) -> Option<Vec<u8>>;
    /// The client address that Envoy trusts.
    fn source_address(&self) -> Option<Vec<u8>>;
}
