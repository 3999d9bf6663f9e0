//! Shared by several subjects: configurations and checks of responses.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::sha256_hex;
use loadgen::upstream::{Shape, Upstream};
use serde_json::Value;

pub(crate) use scenarios::support::{ONE_PER_HOUR, TOKEN, assert_headers_complete, set_health_request, tier};

/// The tiers of the scenarios. The token's hash is registered as a secret.
pub(crate) fn two_tiers(free: u64, pro: u64) -> Value {
    sha256_hex(TOKEN);
    scenarios::support::two_tiers(free, pro)
}

/// An upstream with limited capacity.
pub(crate) fn limited_upstream(shape: Shape) -> Upstream {
    Upstream::start(shape, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("an upstream")
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
