//! Clients that disconnect, stall or send invalid requests do not affect others: spec section 9.

use std::time::Duration;

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use e2e::{http2, load};
use serde_json::json;

use crate::support::two_tiers;

/// Enough requests over enough connections that every worker answers some.
#[track_caller]
fn assert_serves(envoy: &Envoy) {
    let counts = load::burst(envoy.address(), 10, 100, &Request::get("/fine"));
    assert_eq!(load::count(&counts, 200), 1_000, "{counts:?}");
    assert_eq!(envoy.send(&Request::get("/fine")).tier(), "free", "the filter is active");
}

#[test]
fn clients_that_disconnect_at_any_point_do_not_affect_others() {
    let upstream = Upstream::start(|request| {
        let answer = Answer::ok("upstream");
        if request.target == "/late" {
            Answer::Late(Duration::from_millis(300), Box::new(answer))
        } else {
            answer
        }
    });
    let envoy = Setup::new().config(&two_tiers(5_000, 7)).upstream(upstream.address()).start();
    let half_a_body = Request::post("/late", vec![b'x'; 1_000]).encode();
    let beginnings = [
        b"GET / HT".to_vec(),
        b"GET / HTTP/1.1\r\nhost: e2e\r\nx-api-k".to_vec(),
        Request::get("/late").encode(),
        half_a_body[..half_a_body.len() - 500].to_vec(),
        Request::get("/late").encode().repeat(20),
    ];
    for beginning in &beginnings {
        for _ in 0..10 {
            let mut connection = envoy.connect();
            connection.write(beginning).expect("written");
            connection.reset();
        }
    }
    assert_serves(&envoy);
}

#[test]
fn requests_without_a_path_and_upgrades_are_answered() {
    let envoy = Setup::new().config(&two_tiers(5_000, 7)).start();
    let websocket = Request::get("/")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13");
    let connect = Request::new("CONNECT", "e2e:80");
    let odd = [connect.clone(), Request::new("OPTIONS", "*"), websocket, Request::new("BREW", "/")];
    let statuses = odd.map(|request| envoy.send(&request).status);
    // All are answers of Envoy: no route for the first two, no upgrades configured, and a method that it does not know.
    assert_eq!(statuses, [404, 404, 403, 400]);
    assert_eq!(http2::send(envoy.address(), &connect).status, 404);
    assert_serves(&envoy);
}

#[test]
fn tunnels_are_limited_like_any_other_request() {
    let upstream = Upstream::start(|_| Answer::ok("never sent"));
    let envoy = Setup::new()
        .config(&two_tiers(1, 7))
        .hcm(&json!({"upgrade_configs": [{"upgrade_type": "CONNECT"}]}))
        .cluster("upstream", upstream.address())
        .routes(&json!([
            {
                "match": {"connect_matcher": {}},
                "route": {
                    "cluster": "upstream",
                    "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                },
            },
            {"match": {"prefix": "/"}, "direct_response": {"status": 200}},
        ]))
        .start();
    assert_eq!(envoy.send(&Request::get("/")).status, 200);
    // A CONNECT has no path, but it has a caller, whose bucket is empty.
    assert_eq!(envoy.send(&Request::new("CONNECT", "e2e:80")).status, 429);
    assert_eq!(envoy.send(&Request::get("/")).status, 429);
}
