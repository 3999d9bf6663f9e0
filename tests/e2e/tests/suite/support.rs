//! What several subjects share: configurations in short, and what a complete answer looks like.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::sha256_hex;
use loadgen::upstream::{Shape, Upstream};
use serde_json::Value;

pub(crate) use scenarios::support::{ONE_PER_HOUR, TOKEN, assert_headers_complete, switch_request, tier};

/// The same tiers as the scenarios have; the token's hash is looked for as the token is.
pub(crate) fn two_tiers(free: u64, pro: u64) -> Value {
    sha256_hex(TOKEN);
    scenarios::support::two_tiers(free, pro)
}

/// An upstream that can do so much and no more.
pub(crate) fn limited_upstream(shape: Shape) -> Upstream {
    Upstream::start(shape, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("an upstream")
}

#[track_caller]
pub(crate) fn switch(envoy: &Envoy, status: &str) {
    let reply = envoy.send(&switch_request(status));
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// The health that `GET /system/health` tells.
#[track_caller]
pub(crate) fn health(envoy: &Envoy) -> String {
    let reply = envoy.send(&Request::get("/system/health"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["health"].as_str().expect("health is text").to_owned()
}

/// Sends `requests` copies one after the other on one connection; gives the statuses.
#[track_caller]
pub(crate) fn statuses(envoy: &Envoy, request: &Request, requests: usize) -> Vec<u16> {
    let mut connection = envoy.connect();
    (0..requests).map(|_| connection.send(request).status).collect()
}
