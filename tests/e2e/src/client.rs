//! An HTTP/1.1 client that sends exactly the given bytes: unusual case, bytes that are not UTF-8, the same header
//! twice, half a body. It keeps every header of a response unchanged.

use std::io::{self, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::canary;
use crate::http1::{self, BodyLength, Headers};

/// Longer than anything that Envoy does here takes; a hang fails the test.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

pub use scenarios::{Body, Request, Response};

/// Fails the test where a secret is in a header or the body.
pub(crate) fn assert_no_secret(response: &Response) {
    let headers: Vec<_> =
        response.headers.iter().map(|(name, value)| [name.as_bytes(), value].concat()).collect();
    let places =
        [("a response's headers", headers.join(&b'\n')), ("a response's body", response.body.clone())];
    canary::assert_none(&canary::search(places));
}

#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    /// Whether responses may hold secrets: Envoy's admin endpoint shows configurations.
    may_hold_secrets: bool,
}

impl Connection {
    #[track_caller]
    pub fn open(to: SocketAddr) -> Self {
        Self::connect(to, None)
    }

    /// Connects from `127.0.0.<last>`. Linux lets a client use all of 127/8, so a test can have many IPv4 clients.
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

    /// Responses on this connection are not searched for secrets: Envoy's admin endpoint, or a response that repeats
    /// what the client has sent.
    pub fn may_hold_secrets(mut self) -> Self {
        self.may_hold_secrets = true;
        self
    }

    /// Connects; a refused connection is an error, not a panic.
    pub fn try_connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Self> {
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
    #[track_caller]
    pub fn send(&mut self, request: &Request) -> Response {
        match self.try_send(request) {
            Ok(response) => response,
            Err(error) => panic!("{} {}: {error}", request.method, request.target),
        }
    }

    /// Sends one request and reads its answer.
    pub fn try_send(&mut self, request: &Request) -> io::Result<Response> {
        let written = self.write(&request.encode());
        match self.read(&request.method) {
            Ok(response) => Ok(response),
            Err(error) => Err(written.err().unwrap_or(error)),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Reads the response to a request of this method, and skips `1xx` responses.
    pub fn read(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let (status, headers) = self.read_head()?;
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
                assert_no_secret(&response);
            }
            return Ok(response);
        }
    }

    /// Sends a request whose response lasts as long as this connection; reads the head of the response.
    #[track_caller]
    pub fn start_stream(&mut self, request: &Request) -> u16 {
        self.write(&request.encode()).expect("written");
        self.read_head().expect("a response head").0
    }

    fn read_head(&mut self) -> io::Result<(u16, Headers)> {
        let head = http1::read_head(&mut self.reader)?.ok_or(io::ErrorKind::ConnectionAborted)?;
        let mut headers = [httparse::EMPTY_HEADER; http1::MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&head).map_err(|error| io::Error::other(format!("no HTTP response: {error}")))?;
        let status = response.code.ok_or_else(|| io::Error::other("no status code"))?;
        Ok((status, http1::owned_headers(response.headers)))
    }

    /// How long a read may wait; the default is [`READ_TIMEOUT`].
    pub fn read_timeout(&mut self, limit: Duration) {
        self.reader.get_mut().set_read_timeout(Some(limit)).expect("a read timeout above zero");
    }

    /// The buffered reader, for a client that counts responses without keeping them.
    pub(crate) fn reader(&mut self) -> &mut BufReader<TcpStream> {
        &mut self.reader
    }

    /// Closes with a TCP reset instead of a clean end.
    pub fn reset(self) {
        let socket = Socket::from(self.reader.into_inner());
        socket.set_linger(Some(Duration::ZERO)).expect("an open socket");
    }
}
