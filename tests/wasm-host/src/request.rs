//! Requests of clients, and their responses.

use crate::state::{Headers, header};

#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) source: Vec<u8>,
    pub(crate) cluster: Vec<u8>,
    pub(crate) upstream: (u32, Headers, Vec<u8>),
    pub(crate) is_echoed: bool,
    pub(crate) upstream_waits: bool,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        let headers = [(":method", method), (":path", path), (":authority", "api"), (":scheme", "http")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into())).to_vec();
        let upstream = (200, Headers::new(), b"hello".to_vec());
        Self {
            headers,
            body: Vec::new(),
            source: b"192.0.2.1:40000".to_vec(),
            cluster: b"upstream".to_vec(),
            upstream,
            is_echoed: false,
            upstream_waits: false,
        }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str, body: impl AsRef<[u8]>) -> Self {
        Self { body: body.as_ref().to_vec(), ..Self::new("POST", path) }
    }

    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub fn key(self, key: impl AsRef<[u8]>) -> Self {
        self.with("x-api-key", key)
    }

    /// From this address and port, in Envoy's notation.
    pub fn from(mut self, source: impl AsRef<[u8]>) -> Self {
        self.source = source.as_ref().to_vec();
        self
    }

    /// To the upstream cluster of this name.
    pub fn to_cluster(mut self, name: &str) -> Self {
        self.cluster = name.into();
        self
    }

    /// Sets the upstream's response, with a default body.
    pub fn answered(mut self, status: u32, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        self.upstream = (status, headers, b"hello".to_vec());
        self
    }

    /// Sets the upstream's response.
    pub fn answered_with(self, status: u32, headers: &[(&str, &str)], body: &str) -> Self {
        let mut request = self.answered(status, headers);
        request.upstream.2 = body.into();
        request
    }

    /// The upstream responds with these headers, the request's body or else `or_else`, and a `content-length`.
    pub fn echoed(self, headers: &[(&str, &str)], or_else: &str) -> Self {
        let mut request = self.answered(200, headers);
        request.upstream.2 = or_else.into();
        Self { is_echoed: true, ..request }
    }

    /// The upstream's response to this request.
    pub(crate) fn upstream_answer(&self, got: &Forwarded) -> (u32, Headers, Vec<u8>) {
        let (status, mut headers, mut body) = self.upstream.clone();
        if self.is_echoed {
            if !got.body.is_empty() {
                body.clone_from(&got.body);
            }
            headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
        }
        (status, headers, body)
    }

    /// The upstream does not answer before [`crate::World::upstream_answers`].
    pub fn upstream_waits(mut self) -> Self {
        self.upstream_waits = true;
        self
    }

    pub(crate) fn is_grpc(&self) -> bool {
        let kind = header(&self.headers, "content-type").unwrap_or_default();
        kind == b"application/grpc" || kind.starts_with(b"application/grpc+")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status; 0 if the stream was reset.
    pub status: u32,
    /// Without `:status`.
    pub headers: Headers,
    pub body: Vec<u8>,
    /// What the upstream received; `None` if the filter answered.
    pub upstream_got: Option<Forwarded>,
}

impl Response {
    /// A header's value; empty if it is missing.
    pub fn header(&self, name: &str) -> String {
        String::from_utf8_lossy(header(&self.headers, name).unwrap_or_default()).into_owned()
    }

    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<String> {
        let values = self.headers.iter().filter(|(known, _)| known == name);
        values.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// How often a header occurs.
    pub fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(known, _)| known == name).count()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    pub body: Vec<u8>,
    pub has_trailers: bool,
}
