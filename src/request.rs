//! What the limiter reads of a request.

use crate::time::StoreTime;

/// Names a request of one worker from its arrival to its end.
pub type RequestId = u32;

/// When a request came in, and what to call it if it has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStart {
    /// Names it among those that wait.
    pub id: RequestId,
    /// When its headers came in.
    pub at: StoreTime,
}

/// A request, as bytes. Every call costs a call into the host.
pub trait Request {
    /// The first value of a header; `:path` and `:method` are headers too.
    fn header(&self, name: &str) -> Option<Vec<u8>>;
    /// The client address that Envoy trusts.
    fn source_address(&self) -> Option<Vec<u8>>;
}
