//! Clients on persistent connections that send one request after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::client::{Connection, Request, Response};
use e2e::wait;

/// Where the shipped files publish the service.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// How long the service may take to respond after a start.
const START: Duration = Duration::from_secs(30);

/// A request and its result.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) sent: Instant,
    pub(crate) done: Instant,
    /// The status, or the error of the connection.
    pub(crate) result: Result<u16, String>,
}

impl Exchange {
    /// The upstream has responded, or the limiter has limited the caller.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.result, Ok(200 | 429))
    }
}

/// Clients that send requests until [`Clients::stop`].
pub(crate) struct Clients {
    is_stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Exchange>>>,
}

impl Clients {
    /// Each sends this request, waits for the response, and pauses.
    pub(crate) fn start(count: usize, pause: Duration, request: &Request) -> Self {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (is_stopped, request) = (Arc::clone(&is_stopped), request.clone());
            thread::spawn(move || drive(&request, pause, &is_stopped))
        };
        Self { threads: (0..count).map(client).collect(), is_stopped }
    }

    /// Each client finishes its request; returns all exchanges.
    pub(crate) fn stop(self) -> Vec<Exchange> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    }
}

fn drive(request: &Request, pause: Duration, is_stopped: &AtomicBool) -> Vec<Exchange> {
    let mut connection = None;
    let mut exchanges = Vec::new();
    while !is_stopped.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let result = connection.take().map_or_else(|| Connection::try_connect(SERVICE, None), Ok).and_then(
            |mut open: Connection| {
                let response = open.try_send(request)?;
                if !response.closes_connection() {
                    connection = Some(open);
                }
                Ok(response.status)
            },
        );
        let result = result.map_err(|error| error.to_string());
        exchanges.push(Exchange { sent, done: Instant::now(), result });
        thread::sleep(pause);
    }
    exchanges
}

/// Asserts that every request was served; returns their number.
#[track_caller]
pub(crate) fn assert_all_served(exchanges: &[Exchange]) -> usize {
    let lost: Vec<_> = exchanges.iter().filter(|exchange| !exchange.is_served()).collect();
    assert!(
        lost.is_empty(),
        "{} of {} requests were lost: {:?}",
        lost.len(),
        exchanges.len(),
        &lost[..lost.len().min(5)]
    );
    assert!(exchanges.len() > 50, "only {} requests", exchanges.len());
    exchanges.len()
}

/// The first response after a start.
#[track_caller]
pub(crate) fn first_response(request: &Request) -> Response {
    wait::until_within(START, "the service responds", || try_send_once(request))
}

/// One request on a connection of its own.
#[track_caller]
pub(crate) fn send(request: &Request) -> Response {
    Connection::open(SERVICE).send(request)
}

fn try_send_once(request: &Request) -> Option<Response> {
    Connection::try_connect(SERVICE, None).ok()?.try_send(request).ok()
}

/// Waits until `GET /health` reports this state of Redis.
#[track_caller]
pub(crate) fn await_redis(state: &str) {
    wait::until_within(START, &format!("Redis is {state}"), || {
        let response = try_send_once(&Request::get("/health"))?;
        (response.status == 200 && response.json()["redis"] == state).then_some(())
    });
}
