//! An HTTP/1.1 server in the test's own process. The test chooses its responses; it records the requests.

use std::io::{self, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::http1::{self, BodyLength};
use crate::lock;

/// One received request.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    /// The request target, byte for byte.
    pub target: String,
    /// The headers in the order received.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// How to answer a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status, headers, body.
    Respond(u16, Vec<(String, String)>, Vec<u8>),
    /// An answer after this delay.
    Late(Duration, Box<Answer>),
    /// A TCP reset instead of a response.
    Reset,
    /// A TCP reset in the middle of a `200` response's body.
    BreakOff,
    /// An event stream with one event, open until the client disconnects.
    Stream,
    /// A WebSocket without a frame, open until the client disconnects.
    WebSocket,
}

impl Answer {
    /// `200` with this body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::Respond(200, Vec::new(), body.into())
    }

    /// A response with an empty body.
    pub fn with(status: u16, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::Respond(status, headers, Vec::new())
    }
}

/// A server that listens until the process ends.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Upstream {
    /// Starts a server that answers each request as `script` returns.
    pub fn start(script: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port to listen on");
        let address = listener.local_addr().expect("a bound listener");
        let received = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(script);
        let log = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&script);
                let log = Arc::clone(&log);
                // A broken connection is no error here: the test checks what was received and what the client saw.
                thread::spawn(move || {
                    let _ = serve(stream, &*script, &log);
                });
            }
        });
        Self { address, received }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests received so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.received).clone()
    }

    /// The targets of all requests received so far.
    pub fn targets(&self) -> Vec<String> {
        lock(&self.received).iter().map(|r| r.target.clone()).collect()
    }
}

/// An address that refuses connections. A port that was free a moment ago may be that of another test's upstream now, so
/// it is one that the system gives to no listener.
pub fn refusing() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1).into()
}

fn serve(
    stream: TcpStream,
    script: &dyn Fn(&Received) -> Answer,
    log: &Mutex<Vec<Received>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let answer = script(&request);
        lock(log).push(request);
        let (delay, answer) = match answer {
            Answer::Late(delay, answer) => (delay, *answer),
            answer => (Duration::ZERO, answer),
        };
        thread::sleep(delay);
        match answer {
            Answer::Respond(status, headers, body) => {
                respond(reader.get_mut(), status, &headers, &body)?;
            }
            Answer::Stream | Answer::WebSocket => {
                let stream: &[u8] = match answer {
                    Answer::WebSocket => {
                        b"HTTP/1.1 101 Scripted\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                    }
                    _ => b"HTTP/1.1 200 Scripted\r\ncontent-type: text/event-stream\r\n\r\ndata: first\n\n",
                };
                reader.get_mut().write_all(stream)?;
                // Ends when the connection does.
                return io::copy(&mut reader, &mut io::sink()).map(drop);
            }
            Answer::Reset | Answer::BreakOff | Answer::Late(..) => {
                if matches!(answer, Answer::BreakOff) {
                    reader.get_mut().write_all(b"HTTP/1.1 200 Scripted\r\ncontent-length: 100\r\n\r\n{")?;
                    // Long enough for Envoy to read the headers before the reset.
                    thread::sleep(Duration::from_millis(200));
                }
                let socket = socket2::Socket::from(reader.into_inner());
                return socket.set_linger(Some(Duration::ZERO));
            }
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Received>> {
    let Some(head) = http1::read_head(reader)? else {
        return Ok(None);
    };
    let mut headers = [httparse::EMPTY_HEADER; http1::MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&head).map_err(|error| io::Error::other(format!("no HTTP request: {error}")))?;
    let method = request.method.unwrap_or_default().to_owned();
    let target = request.path.unwrap_or_default().to_owned();
    let headers = http1::owned_headers(request.headers);
    let length = http1::body_length(&headers, BodyLength::Known(0));
    let body = http1::read_body(reader, length)?;
    Ok(Some(Received { method, target, headers, body }))
}

fn respond(stream: &mut TcpStream, status: u16, headers: &[(String, String)], body: &[u8]) -> io::Result<()> {
    let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in headers {
        bytes += &format!("{name}: {value}\r\n");
    }
    bytes += &format!("content-length: {}\r\n\r\n", body.len());
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}
