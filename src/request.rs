//! A request, as far as anybody here looks at one.

/// Names a request that has to wait, until it is answered.
pub type Ticket = u32;

/// When a request came in, and what to call it if it has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Names it among those that wait.
    pub ticket: Ticket,
    /// The store's clock when its headers came in, in microseconds.
    pub at_us: u64,
}

/// A request, as bytes. Every call costs a call into the host.
pub trait Request {
    /// The first value of a header; `:path` and `:method` are headers too.
    fn header(&self, name: &str) -> Option<Vec<u8>>;
    /// The client address that Envoy trusts.
    fn source_address(&self) -> Option<Vec<u8>>;
}
