//! The endpoints that the filter serves itself: each row of the table in spec section 6.

use std::time::{Duration, Instant};

use e2e::client::{Connection, Request, Response};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use scenarios::endpoints::assert_own_answer;
use serde_json::json;

use crate::support::{TOKEN, assert_headers_complete, health, set_health, set_health_request, two_tiers};

fn start() -> Envoy {
    Setup::new().config(&two_tiers(5, 7)).start()
}

/// The head of a request to set the health, with the token, up to its last header.
fn head(last_header: &str) -> String {
    format!("POST /system/health HTTP/1.1\r\nhost: e2e\r\nx-admin-token: {TOKEN}\r\n{last_header}\r\n\r\n")
}

/// Sends these parts of a request with a body; returns the answer and the connection.
#[track_caller]
fn exchange(envoy: &Envoy, parts: &[&str]) -> (Response, Connection) {
    let mut connection = envoy.connect();
    for part in parts {
        connection.write(part.as_bytes()).expect("written");
    }
    (connection.read("POST").expect("an answer"), connection)
}

#[test]
fn a_wrong_token_is_refused_before_the_body_is_read() {
    let envoy = start();
    for (head, what) in [
        ("content-length: 500\r\n", "a body that is never sent"),
        ("content-length: 5000000\r\n", "a body too large"),
        ("transfer-encoding: chunked\r\n", "chunks that are never sent"),
    ] {
        let mut connection = envoy.connect();
        connection.read_timeout(Duration::from_secs(5));
        let request =
            format!("POST /system/health HTTP/1.1\r\nhost: e2e\r\nx-admin-token: wrong\r\n{head}\r\n");
        connection.write(request.as_bytes()).expect("written");
        match connection.read("POST") {
            Ok(reply) => assert_own_answer(&reply, 403),
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

#[test]
fn a_slow_or_aborted_admin_body_does_not_block_other_requests() {
    let envoy = start();
    let head = head("content-length: 21");
    let mut slow: Vec<_> = (0..20).map(|_| envoy.connect()).collect();
    for connection in &mut slow {
        connection.write(head.as_bytes()).expect("written");
        connection.write(br#"{"status":"#).expect("written");
    }
    let began = Instant::now();
    set_health(&envoy, "DEGRADED");
    set_health(&envoy, "NORMAL");
    assert_eq!(envoy.send(&Request::get("/")).status, 200);
    assert!(began.elapsed() < Duration::from_secs(5));

    let mut open = slow.pop().expect("twenty were opened");
    for connection in slow {
        connection.reset();
    }
    assert_eq!(health(&envoy), "NORMAL", "half a body changes nothing");
    open.write(br#""DEGRADED"}"#).expect("written");
    assert_eq!(open.read("POST").expect("an answer").status, 200);
    assert_eq!(health(&envoy), "DEGRADED");
}

fn start_with_trailers() -> Envoy {
    let trailers = json!({"http_protocol_options": {"enable_trailers": true}});
    Setup::new().config(&two_tiers(5, 7)).hcm(&trailers).start()
}

#[test]
fn a_body_may_arrive_in_parts_and_end_with_trailers() {
    let envoy = start_with_trailers();
    let head = head("transfer-encoding: chunked\r\ntrailer: x-sum");
    let parts = [&*head, "b\r\n{\"status\":\"\r\n", "a\r\nDEGRADED\"}\r\n", "0\r\nx-sum: 1\r\n\r\n"];
    let (reply, _) = exchange(&envoy, &parts);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(health(&envoy), "DEGRADED");
}

#[test]
fn a_request_that_ends_with_trailers_is_answered_with_every_header() {
    let envoy = start_with_trailers();
    let request = "POST / HTTP/1.1\r\nhost: e2e\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                   2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n";
    let (reply, _) = exchange(&envoy, &[request]);
    assert_headers_complete(&reply, "free", 5, "NORMAL");
}

#[test]
fn a_body_that_never_ends_is_a_408_and_changes_nothing() {
    let envoy = start();
    let (reply, mut connection) = exchange(&envoy, &[&head("content-length: 21"), r#"{"status":"DEGRADED""#]);
    assert_own_answer(&reply, 408);
    // Envoy may have closed the connection by now; the end of the body must be ignored.
    let _ = connection.write(b"}");
    assert_eq!(health(&envoy), "NORMAL");
    assert_eq!(envoy.send(&set_health_request("DEGRADED")).status, 200);
}

#[test]
fn a_request_with_expect_100_continue_is_answered() {
    let envoy = start();
    let head = head("expect: 100-continue\r\ncontent-length: 21");
    let (reply, _) = exchange(&envoy, &[&head, r#"{"status":"DEGRADED"}"#]);
    assert_eq!(reply.status, 200);
    assert_eq!(health(&envoy), "DEGRADED");
}
