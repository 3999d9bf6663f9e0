//! Clients that keep their connections and send one request after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use e2e::client::{Connection, Request, Response};
use e2e::wait;

/// Where the shipped files publish the service.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// How long the service may take to answer after a start.
const START: Duration = Duration::from_secs(30);

/// A request and what became of it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) sent: Instant,
    pub(crate) done: Instant,
    /// The status, or why there was none.
    pub(crate) answer: Result<u16, String>,
}

impl Exchange {
    /// Answered, by the upstream or by the limiter on purpose.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.answer, Ok(200 | 429))
    }
}

/// Some clients, until they are stopped.
pub(crate) struct Clients {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Exchange>>>,
}

impl Clients {
    /// Each sends this request, waits for the answer, and pauses.
    pub(crate) fn start(count: usize, pause: Duration, request: &Request) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (is_over, request) = (Arc::clone(&is_over), request.clone());
            thread::spawn(move || drive(&request, pause, &is_over))
        };
        Self { threads: (0..count).map(client).collect(), is_over }
    }

    /// Stops them, each after the answer that it waits for; gives what all have seen.
    pub(crate) fn stop(self) -> Vec<Exchange> {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    }
}

fn drive(request: &Request, pause: Duration, is_over: &AtomicBool) -> Vec<Exchange> {
    let mut connection = None;
    let mut exchanges = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let answer = connection.take().map_or_else(|| Connection::try_connect(SERVICE, None), Ok).and_then(
            |mut open: Connection| {
                let response = open.try_send(request)?;
                if !closes(&response) {
                    connection = Some(open);
                }
                Ok(response.status)
            },
        );
        let answer = answer.map_err(|error| error.to_string());
        exchanges.push(Exchange { sent, done: Instant::now(), answer });
        thread::sleep(pause);
    }
    exchanges
}

fn closes(response: &Response) -> bool {
    let closes = |(name, value): &(String, Vec<u8>)| {
        name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case(b"close")
    };
    response.headers.iter().any(closes)
}

/// Asserts that every request was served; gives how many there were.
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
    assert!(exchanges.len() > 50, "{} requests are no load", exchanges.len());
    exchanges.len()
}

/// The first answer that the service gives, however long it takes to start.
#[track_caller]
pub(crate) fn first_answer(request: &Request) -> Response {
    wait::until_within(START, "the service answers", || try_ask(request))
}

/// One request on a connection of its own.
#[track_caller]
pub(crate) fn ask(request: &Request) -> Response {
    Connection::open(SERVICE).send(request)
}

fn try_ask(request: &Request) -> Option<Response> {
    Connection::try_connect(SERVICE, None).ok()?.try_send(request).ok()
}

/// Waits until `GET /health` says this of Redis.
#[track_caller]
pub(crate) fn await_redis(state: &str) {
    wait::until_within(START, &format!("Redis is {state}"), || {
        let response = try_ask(&Request::get("/health"))?;
        (response.status == 200 && response.json()["redis"] == state).then_some(())
    });
}
