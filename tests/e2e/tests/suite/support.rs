//! Shared by several subjects: configurations and checks of responses.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::{sha256_hex, wait};
use loadgen::upstream::{Shape, Upstream};
use serde_json::{Value, json};
use serde_json_path::JsonPath;

pub(crate) use scenarios::support::{ONE_PER_HOUR, TOKEN, assert_headers_complete, set_health_request, tier};

/// The tiers of the scenarios. The token's hash is registered as a secret.
pub(crate) fn two_tiers(free: u64, pro: u64) -> Value {
    sha256_hex(TOKEN);
    scenarios::support::two_tiers(free, pro)
}

/// A route to a cluster.
pub(crate) fn route(prefix: &str, cluster: &str, timeout: &str) -> Value {
    json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": timeout}})
}

/// An upstream with limited capacity.
pub(crate) fn limited_upstream(shape: Shape) -> Upstream {
    Upstream::start(shape, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("an upstream")
}

/// A request to set the health, with this token.
pub(crate) fn set_health_with_token(status: &str, token: &str) -> Request {
    Request::post("/system/health", json!({"status": status}).to_string()).header("X-Admin-Token", token)
}

#[track_caller]
pub(crate) fn set_health(envoy: &Envoy, status: &str) {
    let reply = envoy.send(&set_health_request(status));
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// The health that `GET /system/health` reports.
#[track_caller]
pub(crate) fn health(envoy: &Envoy) -> String {
    let reply = envoy.send(&Request::get("/system/health"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["health"].as_str().expect("health is text").to_owned()
}

/// What a JSON path finds. It finds nothing where a field is missing, so a test must check how much was found.
#[track_caller]
pub(crate) fn find<'a>(path: &str, within: &'a Value) -> Vec<&'a Value> {
    JsonPath::parse(path).expect("a JSON path").query(within).all()
}

/// Waits until the condition is true.
#[track_caller]
pub(crate) fn await_that(what: &str, condition: impl FnMut() -> bool) {
    await_that_within(wait::SOON, what, condition);
}

#[track_caller]
pub(crate) fn await_that_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait::until_within(limit, what, || condition().then_some(()));
}

/// Sends `requests` copies one after the other on one connection; returns the statuses.
#[track_caller]
pub(crate) fn statuses(envoy: &Envoy, request: &Request, requests: usize) -> Vec<u16> {
    let mut connection = envoy.connect();
    (0..requests).map(|_| connection.send(request).status).collect()
}

/// Runs `test` for all cases at the same time, because it mostly waits.
pub(crate) fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let test = &test;
            scope.spawn(move || test(case));
        }
    });
}
