//! A request as a client sends it, byte for byte, and a response as a client receives it.

use std::fmt;

use serde_json::Value;

/// What a failing test shows of a body.
const SHOWN_BYTES: usize = 200;

/// One request. The `host` header is added; every other header is the test's.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// The request target, byte for byte.
    pub target: String,
    /// Names and values in the order sent.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Body,
    /// The client's address, if not the default; only with [`crate::Setup::addresses`].
    pub from: Option<String>,
}

/// A request's body.
#[derive(Clone, Debug)]
pub enum Body {
    None,
    /// With a `content-length`.
    Sized(Vec<u8>),
    /// In these chunks, without a `content-length`.
    Chunked(Vec<Vec<u8>>),
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Body::None,
            from: None,
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `POST` with a `content-length`.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    /// Adds a header; the same name may be added several times.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Adds `X-API-Key`.
    pub fn key(self, key: impl AsRef<[u8]>) -> Self {
        self.header("X-API-Key", key)
    }

    /// Adds `X-Forwarded-For`.
    pub fn forwarded_for(self, addresses: &str) -> Self {
        self.header("X-Forwarded-For", addresses)
    }

    /// From this address; only with [`crate::Setup::addresses`].
    pub fn from(mut self, address: &str) -> Self {
        self.from = Some(address.to_owned());
        self
    }

    /// Sends `body` with a `content-length`.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Body::Sized(body.into());
        self
    }

    /// Sends the body in these chunks, without a `content-length`.
    pub fn chunks(mut self, chunks: Vec<Vec<u8>>) -> Self {
        self.body = Body::Chunked(chunks);
        self
    }

    /// The request in HTTP/1.1.
    pub fn encode(&self) -> Vec<u8> {
        let (framing, body) = match &self.body {
            Body::None => (String::new(), Vec::new()),
            Body::Sized(body) => (format!("content-length: {}\r\n", body.len()), body.clone()),
            Body::Chunked(chunks) => {
                let encode =
                    |chunk: &Vec<u8>| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
                let chunks: Vec<u8> = chunks.iter().flat_map(encode).collect();
                ("transfer-encoding: chunked\r\n".to_owned(), [&chunks[..], b"0\r\n\r\n"].concat())
            }
        };
        let start = format!("{} {} HTTP/1.1\r\nhost: e2e\r\n{framing}", self.method, self.target);
        let mut bytes = start.into_bytes();
        for (name, value) in &self.headers {
            bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend(body);
        bytes
    }
}

/// One response; trailers of HTTP/2 are appended to the headers.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    /// Names and values in the order received.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// As text, for the messages of failing tests.
impl fmt::Debug for Response {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
        formatter
            .debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &headers)
            .field("body", &text(&self.body[..self.body.len().min(SHOWN_BYTES)]))
            .finish()
    }
}

impl Response {
    /// Every value of this header.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    #[track_caller]
    pub fn one(&self, name: &str) -> String {
        let mut values = self.all(name);
        assert_eq!(values.len(), 1, "{name} exactly once in {self:#?}");
        values.remove(0)
    }

    /// The header's only value as a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.one(name);
        match value.parse() {
            Ok(number) => number,
            Err(error) => panic!("{name}: {value:?} is not a whole number: {error}"),
        }
    }

    #[track_caller]
    pub fn limit(&self) -> u64 {
        self.number("x-ratelimit-limit")
    }

    #[track_caller]
    pub fn remaining(&self) -> u64 {
        self.number("x-ratelimit-remaining")
    }

    #[track_caller]
    pub fn tier(&self) -> String {
        self.one("x-ratelimit-tier")
    }

    /// Whether the server closes the connection after this response.
    pub fn closes_connection(&self) -> bool {
        self.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("no JSON ({error}) in {:?}", self.text()),
        }
    }
}
