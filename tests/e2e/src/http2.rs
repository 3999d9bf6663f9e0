//! HTTP/2 with prior knowledge, and the parts of gRPC that a rate limiter handles.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::client::{Body, Request, Response, assert_no_secret};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// For the whole exchange; a hang fails the test.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends all requests as concurrent streams of one connection; the responses are in the same order. Trailers are
/// appended to a response's headers.
#[track_caller]
pub fn send_all(to: SocketAddr, requests: &[Request]) -> Vec<Response> {
    run(&runtime(), to, exchange(to, requests))
}

/// [`send_all`] on each of `connections` connections at the same time; `work` runs meanwhile.
#[track_caller]
pub fn send_on_each(
    to: SocketAddr,
    connections: usize,
    requests: &[Request],
    work: impl FnOnce(),
) -> Vec<Response> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..connections).map(|_| scope.spawn(|| send_all(to, requests))).collect();
        work();
        running.into_iter().flat_map(|thread| thread.join().expect("answers")).collect()
    })
}

#[track_caller]
pub fn send(to: SocketAddr, request: &Request) -> Response {
    send_all(to, std::slice::from_ref(request)).remove(0)
}

/// Opens `copies` streams of this request on one connection, none of them finished, and waits for their response
/// headers. Then runs `work` while they are open. Returns their statuses and the result of `work`.
#[track_caller]
pub fn with_streams<T>(
    to: SocketAddr,
    request: &Request,
    copies: usize,
    work: impl FnOnce() -> T,
) -> (Vec<u16>, T) {
    let runtime = runtime();
    let (streams, _connection) = run(&runtime, to, open_streams(to, request, copies));
    (streams.iter().map(|(_, response)| response.status().as_u16()).collect(), work())
}

/// A gRPC call: the path is `/<service>/<method>`, the message is empty.
pub fn grpc_call(path: &str) -> Request {
    Request::post(path, [0_u8; 5]).header("content-type", "application/grpc").header("te", "trailers")
}

/// The path of a call of [`grpc_server`] that lasts until its client disconnects.
pub const GRPC_STREAM: &str = "/demo.Greeter/Watch";

/// Starts a gRPC server that answers every call with an empty message and `grpc-status: 0`; returns its address.
pub fn grpc_server() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .expect("a port to listen on");
    let address = listener.local_addr().expect("a bound listener");
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener that does not block");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_grpc(stream));
            }
        });
    });
    address
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[track_caller]
fn run<T>(runtime: &Runtime, to: SocketAddr, exchange: impl Future<Output = Result<T, Failure>>) -> T {
    let result = runtime.block_on(async { tokio::time::timeout(TIMEOUT, exchange).await? });
    match result {
        Ok(value) => value,
        Err(error) => panic!("HTTP/2 to {to}: {error}"),
    }
}

async fn connect(to: SocketAddr) -> Result<SendRequest<Bytes>, Failure> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(to).await?).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(to: SocketAddr, requests: &[Request]) -> Result<Vec<Response>, Failure> {
    let mut sender = connect(to).await?;
    let mut pending = Vec::with_capacity(requests.len());
    for request in requests {
        sender = sender.ready().await?;
        let body = match &request.body {
            Body::None => Bytes::new(),
            Body::Sized(body) => Bytes::copy_from_slice(body),
            Body::Chunked(chunks) => Bytes::from(chunks.concat()),
        };
        let (response, mut stream) = sender.send_request(head(request)?, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        pending.push(response);
    }
    let mut responses = Vec::with_capacity(pending.len());
    for response in pending {
        responses.push(collect(response.await?).await?);
    }
    Ok(responses)
}

/// The request stream and the response of an open stream.
type Open = (h2::SendStream<Bytes>, http::Response<h2::RecvStream>);

async fn open_streams(
    to: SocketAddr,
    request: &Request,
    copies: usize,
) -> Result<(Vec<Open>, SendRequest<Bytes>), Failure> {
    let mut sender = connect(to).await?;
    let mut open = Vec::with_capacity(copies);
    for _ in 0..copies {
        sender = sender.ready().await?;
        let (response, stream) = sender.send_request(head(request)?, false)?;
        open.push((stream, response.await?));
    }
    Ok((open, sender))
}

fn head(request: &Request) -> Result<http::Request<()>, Failure> {
    let uri = if request.method == "CONNECT" {
        request.target.clone()
    } else {
        format!("http://e2e{}", request.target)
    };
    let mut head = http::Request::builder()
        .version(http::Version::HTTP_2)
        .method(request.method.as_str())
        .uri(uri)
        .body(())?;
    for (name, value) in &request.headers {
        head.headers_mut()
            .append(http::HeaderName::from_bytes(name.as_bytes())?, http::HeaderValue::from_bytes(value)?);
    }
    Ok(head)
}

async fn collect(response: http::Response<h2::RecvStream>) -> Result<Response, Failure> {
    let status = response.status().as_u16();
    let mut headers = owned(response.headers());
    let mut stream = response.into_body();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    if let Some(trailers) = stream.trailers().await? {
        headers.extend(owned(&trailers));
    }
    let response = Response { status, headers, body };
    assert_no_secret(&response);
    Ok(response)
}

fn owned(headers: &http::HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

async fn serve_grpc(stream: TcpStream) -> Result<(), Failure> {
    let mut connection = h2::server::handshake(stream).await?;
    let mut streams = Vec::new();
    while let Some(call) = connection.accept().await {
        let (call, mut respond) = call?;
        let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
        let mut stream = respond.send_response(head, false)?;
        stream.send_data(Bytes::from_static(&[0; 5]), false)?;
        if call.uri().path() == GRPC_STREAM {
            streams.push((call, stream));
            continue;
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        stream.send_trailers(trailers)?;
    }
    Ok(())
}
