//! A request, as far as anybody here looks at one.

/// A request, as bytes. Every call costs a call into the host.
pub trait Request {
    /// The first value of a header; `:path` and `:method` are headers too.
    fn header(&self, name: &str) -> Option<Vec<u8>>;
    /// The client address that Envoy trusts.
    fn source_address(&self) -> Option<Vec<u8>>;
}
