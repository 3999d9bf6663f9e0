//! HTTP/1.1 and HTTP/2, with and without bodies.

use e2e::client::Request;
use e2e::http2;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};

use crate::support::{assert_headers_complete, two_tiers};

const FIVE_MB: usize = 5_000_000;

/// Bytes with a period that fits no buffer size, so that a lost or doubled part is detected.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

fn chunked(body: &[u8]) -> Vec<Vec<u8>> {
    body.chunks(7_001).map(<[u8]>::to_vec).collect()
}

#[test]
fn every_stream_of_an_http2_connection_is_counted() {
    let envoy = Setup::new().config(&two_tiers(30, 7)).start();
    let replies = http2::send_all(envoy.address(), &vec![Request::get("/"); 90]);
    let mut remaining = Vec::new();
    for reply in &replies {
        assert_headers_complete(reply, "free", 30, "NORMAL");
        match reply.status {
            200 => remaining.push(reply.remaining()),
            429 => assert_eq!(reply.text(), "Too Many Requests"),
            status => panic!("status {status}"),
        }
    }
    remaining.sort_unstable();
    assert_eq!(remaining, (0..30).collect::<Vec<_>>(), "each token once");
}

#[test]
fn bodies_pass_through_in_both_directions() {
    let upstream = Upstream::start(|request| Answer::ok(request.body.clone()));
    let envoy = Setup::new().config(&two_tiers(20, 7)).upstream(upstream.address()).start();
    let mut connection = envoy.connect();
    let mut expected = 20;
    for length in [0, 1, 100_000, FIVE_MB] {
        let body = pattern(length);
        let sized = Request::post("/", body.clone());
        let in_chunks = Request::new("POST", "/").chunks(chunked(&body));
        for request in [sized, in_chunks] {
            let reply = connection.send(&request);
            expected -= 1;
            assert_eq!(reply.status, 200);
            assert!(reply.body == body, "{length} bytes were changed");
            assert_eq!(reply.remaining(), expected, "one request, one token");
        }
    }
    let body = pattern(FIVE_MB);
    let reply = http2::send(envoy.address(), &Request::post("/", body.clone()));
    assert!(reply.body == body, "changed over HTTP/2");
    assert_eq!(reply.remaining(), expected - 1);
}

#[test]
fn a_refused_upload_is_answered_with_429() {
    let upstream = Upstream::start(|request| Answer::ok(request.body.clone()));
    let envoy = Setup::new().config(&two_tiers(1, 7)).upstream(upstream.address()).start();
    envoy.send(&Request::get("/"));
    let body = pattern(FIVE_MB);
    for request in [Request::post("/", body.clone()), Request::new("POST", "/").chunks(chunked(&body))] {
        let reply = envoy.send(&request);
        assert_eq!(reply.status, 429);
        assert_headers_complete(&reply, "free", 1, "NORMAL");
    }
    assert_eq!(upstream.targets().len(), 1);
}
