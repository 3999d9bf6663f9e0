//! An HTTP/1.1 client that says exactly what it is told to: odd case, bytes that are not UTF-8,
//! the same header twice, half a body. It keeps every header of an answer as it came.

use std::fmt;
use std::io::{self, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::canary;
use crate::http1::{self, BodyLength, Headers};

/// Long enough for anything Envoy does here; a hang is a failure, not a wait.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// What a failing test shows of a body.
const SHOWN_BYTES: usize = 200;

/// One request. The `host` header is added; every other header is the test's.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    Sized(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

impl Request {
    /// A request with any method and any request target.
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: Body::None }
    }

    /// `GET`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `POST` with a `content-length`.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    /// Adds a header; the same name may be added again and goes out again.
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

    /// The bytes that go on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\nhost: e2e\r\n", self.method, self.target);
        match &self.body {
            Body::None => {}
            Body::Sized(body) => bytes += &format!("content-length: {}\r\n", body.len()),
            Body::Chunked(_) => bytes += "transfer-encoding: chunked\r\n",
        }
        let mut bytes = bytes.into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        match &self.body {
            Body::None => {}
            Body::Sized(body) => bytes.extend_from_slice(body),
            Body::Chunked(chunks) => {
                for chunk in chunks {
                    bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
        }
        bytes
    }
}

/// One answer, trailers included among the headers where HTTP/2 brought some.
#[derive(Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names and values in the order they came.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, chunks joined.
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
    /// Fails the test where a secret is in a header or the body.
    pub(crate) fn assert_no_secret(&self) {
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| [name.as_bytes(), value].concat()).collect();
        let places =
            [("a response's headers", headers.join(&b'\n')), ("a response's body", self.body.clone())];
        canary::assert_none(&canary::search(places));
    }

    /// Every value of this header.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect()
    }

    /// Whether the header is there at all.
    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// The header's only value.
    ///
    /// # Panics
    ///
    /// When it is missing or there more than once.
    #[track_caller]
    pub fn one(&self, name: &str) -> String {
        let mut values = self.all(name);
        assert_eq!(values.len(), 1, "{name} exactly once in {self:#?}");
        values.remove(0)
    }

    /// The header's only value as a number.
    ///
    /// # Panics
    ///
    /// When it is missing, doubled or not a whole number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.one(name);
        match value.parse() {
            Ok(number) => number,
            Err(error) => panic!("{name}: {value:?} is no whole number: {error}"),
        }
    }

    /// `X-RateLimit-Limit`.
    #[track_caller]
    pub fn limit(&self) -> u64 {
        self.number("x-ratelimit-limit")
    }

    /// `X-RateLimit-Remaining`.
    #[track_caller]
    pub fn remaining(&self) -> u64 {
        self.number("x-ratelimit-remaining")
    }

    /// `X-RateLimit-Tier`.
    #[track_caller]
    pub fn tier(&self) -> String {
        self.one("x-ratelimit-tier")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is not.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("no JSON ({error}) in {:?}", self.text()),
        }
    }
}

/// One kept-alive connection.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    /// Whether what comes may hold secrets: Envoy's admin endpoint shows configurations.
    may_hold_secrets: bool,
}

impl Connection {
    /// Connects from whatever address the system chooses.
    ///
    /// # Panics
    ///
    /// When the connection is refused.
    #[track_caller]
    pub fn open(to: SocketAddr) -> Self {
        Self::connect(to, None)
    }

    /// Connects from `127.0.0.<last>`: Linux lets a client use all of 127/8, so a test has
    /// as many IPv4 clients as it likes.
    ///
    /// # Panics
    ///
    /// When the connection is refused.
    #[track_caller]
    pub fn open_from(last: u8, to: SocketAddr) -> Self {
        Self::connect(to, Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))))
    }

    #[track_caller]
    fn connect(to: SocketAddr, from: Option<IpAddr>) -> Self {
        match Self::try_connect(to, from) {
            Ok(connection) => connection,
            Err(error) => panic!("connecting to {to}: {error}"),
        }
    }

    /// What comes on this connection is not searched: Envoy's admin endpoint, or an answer that repeats to a client
    /// what that has said.
    pub fn may_hold_secrets(mut self) -> Self {
        self.may_hold_secrets = true;
        self
    }

    /// Connects, where a refusal is an answer too.
    pub(crate) fn try_connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect(&to.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        socket.set_write_timeout(Some(READ_TIMEOUT))?;
        Ok(Self { reader: BufReader::with_capacity(64 * 1024, socket.into()), may_hold_secrets: false })
    }

    /// Sends one request and reads its answer.
    ///
    /// # Panics
    ///
    /// When there is no complete answer in time.
    #[track_caller]
    pub fn send(&mut self, request: &Request) -> Response {
        match self.try_send(request) {
            Ok(response) => response,
            Err(error) => panic!("{} {}: {error}", request.method, request.target),
        }
    }

    /// Sends one request and reads its answer.
    ///
    /// # Errors
    ///
    /// When there is no complete answer in time. A request that the server stops reading, because
    /// it has already answered, is no error.
    pub fn try_send(&mut self, request: &Request) -> io::Result<Response> {
        let written = self.write(&request.encode());
        match self.read(&request.method) {
            Ok(response) => Ok(response),
            Err(error) => Err(written.err().unwrap_or(error)),
        }
    }

    /// Puts these bytes on the wire as they are.
    ///
    /// # Errors
    ///
    /// When the peer has closed or takes nothing.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads the answer to a request of this method, passing over `1xx` answers.
    ///
    /// # Errors
    ///
    /// When the peer closes, stays silent or says what is no HTTP.
    pub fn read(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let head = http1::read_head(&mut self.reader)?.ok_or(io::ErrorKind::ConnectionAborted)?;
            let (status, headers) = parse_response_head(&head)?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let bodyless = method == "HEAD" || status == 204 || status == 304 || status == 101;
            let length = if bodyless {
                BodyLength::Known(0)
            } else {
                http1::body_length(&headers, BodyLength::UntilClose)
            };
            let body = http1::read_body(&mut self.reader, length)?;
            let response = Response { status, headers, body };
            if !self.may_hold_secrets {
                response.assert_no_secret();
            }
            return Ok(response);
        }
    }

    /// How long a read may wait; twenty seconds unless told.
    ///
    /// # Panics
    ///
    /// When `limit` is zero.
    pub fn read_timeout(&mut self, limit: Duration) {
        self.reader.get_mut().set_read_timeout(Some(limit)).expect("a read timeout above zero");
    }

    /// The buffered reader, for a client that counts answers without keeping them.
    pub(crate) fn reader(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.reader
    }

    /// Closes with a TCP reset instead of a clean end.
    ///
    /// # Panics
    ///
    /// When the socket takes no options any more.
    pub fn reset(self) {
        let socket = Socket::from(self.reader.into_inner());
        socket.set_linger(Some(Duration::ZERO)).expect("an open socket");
    }
}

fn parse_response_head(head: &[u8]) -> io::Result<(u16, Headers)> {
    let mut headers = [httparse::EMPTY_HEADER; http1::MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(head).map_err(|error| io::Error::other(format!("no HTTP response: {error}")))?;
    let status = response.code.ok_or_else(|| io::Error::other("no status code"))?;
    Ok((status, http1::owned_headers(response.headers)))
}
