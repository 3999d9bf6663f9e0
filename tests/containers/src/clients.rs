//! Clients on persistent connections that send one request after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use e2e::client::{Connection, Request, Response};
use e2e::load::{self, Exchange};
use e2e::wait;

/// Where the shipped files publish the service.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

/// How long the service may take to respond after a start.
const START: Duration = Duration::from_secs(30);

/// The upstream has responded, or the limiter has limited the caller.
pub(crate) fn is_served(exchange: &Exchange) -> bool {
    matches!(exchange.status(), 200 | 429)
}

/// Runs `work` while each client sends this request, waits for the response, and pauses. Returns all exchanges, too.
pub(crate) fn under_load<T>(
    clients: usize,
    pause: Duration,
    request: &Request,
    work: impl FnOnce() -> T,
) -> (T, Vec<Exchange>) {
    load::observe(&[SERVICE], clients, pause, |_, _| request.clone(), work)
}

/// Asserts that every request was served; returns their number.
#[track_caller]
pub(crate) fn assert_all_served(exchanges: &[Exchange]) -> usize {
    let lost: Vec<_> = exchanges.iter().filter(|exchange| !is_served(exchange)).collect();
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
