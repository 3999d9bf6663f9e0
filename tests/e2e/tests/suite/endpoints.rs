//! The endpoints that the filter answers itself: each row of the table in spec section 6.

use std::time::{Duration, Instant};

use e2e::client::{Request, Response};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::sha256_hex;
use e2e::upstream::{Answer, Upstream};
use e2e::wait::unix_now;
use serde_json::{Value, json};

use crate::support::{TOKEN, assert_headers_complete, health, statuses, switch, switch_request, two_tiers};

fn start() -> Envoy {
    Setup::new().config(&two_tiers(5, 7)).start()
}

/// A `POST` with the right token and this body.
fn post(body: impl Into<Vec<u8>>) -> Request {
    Request::post("/system/health", body).header("X-Admin-Token", TOKEN)
}

/// Takes `timestamp` out of a reply's JSON, checks that it is now, in milliseconds; gives the rest.
#[track_caller]
fn without_timestamp(reply: &Response, asked_at: f64) -> Value {
    let mut json = reply.json();
    let timestamp = json
        .as_object_mut()
        .and_then(|fields| fields.remove("timestamp"))
        .and_then(|timestamp| timestamp.as_f64())
        .expect("a timestamp");
    let now = unix_now();
    assert!((asked_at - 0.001..=now + 0.001).contains(&timestamp), "{asked_at} <= {timestamp} <= {now}");
    let millis = timestamp * 1_000.0;
    assert!((millis - millis.round()).abs() < 0.01, "{timestamp} in milliseconds");
    json
}

#[track_caller]
fn assert_own_answer(reply: &Response, status: u16) {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.one("content-type"), "application/json");
    for name in ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-tier"] {
        assert!(!reply.has(name), "{name} in {reply:#?}");
    }
}

#[test]
fn get_health_tells_how_the_filter_is() {
    let envoy = start();
    for health in ["NORMAL", "DEGRADED"] {
        switch(&envoy, health);
        let reply = envoy.send(&Request::get("/health"));
        assert_own_answer(&reply, 200);
        assert_eq!(reply.json(), json!({"status": "healthy", "redis": "not_configured", "health": health}));
    }
}

#[test]
fn get_system_health_tells_the_health() {
    let envoy = start();
    for health in ["NORMAL", "DEGRADED"] {
        switch(&envoy, health);
        let asked_at = unix_now();
        let reply = envoy.send(&Request::get("/system/health"));
        assert_own_answer(&reply, 200);
        assert_eq!(without_timestamp(&reply, asked_at), json!({"health": health}));
    }
}

#[test]
fn post_system_health_with_the_token_switches() {
    let envoy = start();
    for (from, to) in
        [("NORMAL", "DEGRADED"), ("DEGRADED", "DEGRADED"), ("DEGRADED", "NORMAL"), ("NORMAL", "NORMAL")]
    {
        let asked_at = unix_now();
        let reply = envoy.send(&switch_request(to));
        assert_own_answer(&reply, 200);
        assert_eq!(
            without_timestamp(&reply, asked_at),
            json!({
                "message": "System health updated successfully",
                "previous_status": from,
                "new_status": to,
            })
        );
        assert_eq!(health(&envoy), to);
    }
}

#[test]
fn a_body_may_come_in_chunks_with_any_white_space_and_up_to_one_kib() {
    let envoy = start();
    let body = br#"{ "status" : "DEGRADED" }"#;
    let by_byte = body.iter().map(|byte| vec![*byte]).collect();
    let request = Request::new("POST", "/system/health").header("X-Admin-Token", TOKEN).chunks(by_byte);
    assert_eq!(envoy.send(&request).status, 200);
    assert_eq!(health(&envoy), "DEGRADED");

    let padded = format!("{:1$}", r#"{"status":"NORMAL"}"#, 1_024);
    assert_eq!(envoy.send(&post(padded)).status, 200);
    assert_eq!(health(&envoy), "NORMAL");
}

#[test]
fn every_wrong_token_gets_the_same_403() {
    let with_token = start();
    let without_token = Setup::new().start();
    let body = r#"{"status":"DEGRADED"}"#;
    let request = |token: Option<&[u8]>| {
        let request = Request::post("/system/health", body);
        match token {
            Some(token) => request.header("X-Admin-Token", token),
            None => request,
        }
    };
    // Four attempts each: a fifth and sixth are another test's subject.
    let hash = sha256_hex(TOKEN);
    let replies = [
        with_token.send(&request(None)),
        with_token.send(&request(Some(b"c4nary-wrong"))),
        with_token.send(&request(Some(hash.as_bytes()))),
        with_token.send(&request(Some(b"\xff\xfe"))),
        without_token.send(&request(None)),
        without_token.send(&request(Some(b""))),
        without_token.send(&request(Some(b"c4nary-wrong"))),
    ];
    for reply in &replies {
        assert_own_answer(reply, 403);
        assert_eq!(reply.text(), r#"{"detail":"Invalid admin token"}"#);
        let names = |reply: &Response| -> Vec<String> {
            reply.headers.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(reply), names(&replies[0]), "nothing tells the cases apart");
    }
    assert_eq!(health(&with_token), "NORMAL");
    assert_eq!(health(&without_token), "NORMAL");
}

#[test]
fn a_wrong_token_is_refused_before_the_body_is_looked_at() {
    let envoy = start();
    for (head, what) in [
        ("content-length: 500\r\n", "a body that never comes"),
        ("content-length: 5000000\r\n", "a body too large"),
        ("transfer-encoding: chunked\r\n", "chunks that never come"),
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
fn a_body_that_says_nothing_usable_is_a_400_and_changes_nothing() {
    let envoy = start();
    switch(&envoy, "DEGRADED");
    let deep = "[".repeat(1_000);
    let bodies: [&[u8]; 19] = [
        b"",
        b" ",
        b"{",
        b"NORMAL",
        b"null",
        b"[]",
        b"{}",
        br#""NORMAL""#,
        br#"["NORMAL"]"#,
        br#"{"status":null}"#,
        br#"{"status":1}"#,
        br#"{"status":["NORMAL"]}"#,
        br#"{"status":""}"#,
        br#"{"status":"normal"}"#,
        br#"{"status":"HEALTHY"}"#,
        br#"{"health":"NORMAL"}"#,
        br#"{"status":"NORMAL"} trailing"#,
        b"{\"status\":\"NORMAL\xff\"}",
        deep.as_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let reply = envoy.send(&post(body));
        assert_eq!(reply.status, 400, "{shown:?}: {}", reply.text());
        assert_own_answer(&reply, 400);
        let detail = reply.json()["detail"].as_str().map(str::len);
        assert!(detail.is_some_and(|length| length > 5), "{shown:?} is told why");
        assert_eq!(health(&envoy), "DEGRADED", "{shown:?}");
    }
    assert_eq!(
        envoy.send(&Request::new("POST", "/system/health").header("X-Admin-Token", TOKEN)).status,
        400,
        "no body at all"
    );
}

#[test]
fn a_body_over_one_kib_is_a_413_and_changes_nothing() {
    let envoy = start();
    for length in [1_025, 5_000, 5_000_000] {
        let mut body = br#"{"status":"DEGRADED"}"#.to_vec();
        body.resize(length, b' ');
        let in_chunks = Request::new("POST", "/system/health")
            .header("X-Admin-Token", TOKEN)
            .chunks(body.chunks(500).map(<[u8]>::to_vec).collect());
        for request in [post(body.clone()), in_chunks] {
            let reply = envoy.send(&request);
            assert_eq!(reply.status, 413, "{length} bytes: {}", reply.text());
            assert_eq!(health(&envoy), "NORMAL", "{length} bytes");
        }
    }
}

#[test]
fn another_method_is_a_405_that_says_which_are_allowed() {
    let upstream = Upstream::start(|_| Answer::ok("upstream"));
    let envoy = Setup::new().config(&two_tiers(5, 7)).upstream(upstream.address()).start();
    for (path, wrong, allowed) in [
        ("/health", vec!["POST", "PUT", "DELETE", "PATCH"], vec!["GET"]),
        ("/system/health", vec!["PUT", "DELETE", "PATCH"], vec!["GET", "POST"]),
    ] {
        for method in wrong {
            let request = Request::new(method, path).header("X-Admin-Token", TOKEN);
            let reply = envoy.send(&request);
            assert_eq!(reply.status, 405, "{method} {path}");
            let allow = reply.one("allow");
            let told: Vec<_> = allow.split(',').map(str::trim).collect();
            for method in &allowed {
                assert!(told.contains(method), "{method} {path}: {allow}");
            }
            assert!(!told.contains(&method), "{method}: {allow}");
        }
    }
    assert_eq!(upstream.targets(), [""; 0]);
}

#[test]
fn endpoints_cost_nothing_and_answer_a_caller_who_is_refused() {
    let envoy = start();
    for _ in 0..20 {
        assert_eq!(envoy.send(&Request::get("/health")).status, 200);
        assert_eq!(envoy.send(&Request::get("/system/health")).status, 200);
        switch(&envoy, "NORMAL");
    }
    assert_eq!(statuses(&envoy, &Request::get("/"), 6), [200, 200, 200, 200, 200, 429]);
    assert_eq!(envoy.send(&Request::get("/health")).status, 200);
    assert_eq!(envoy.send(&Request::get("/system/health")).status, 200);
    switch(&envoy, "DEGRADED");
}

#[test]
fn paths_can_be_moved_and_turned_off() {
    let upstream = Upstream::start(|_| Answer::ok("upstream"));
    let mut config = two_tiers(50, 7);
    config["admin"]["health_path"] = json!("/-/alive");
    config["admin"]["system_health_path"] = json!("/-/load");
    let moved = Setup::new().config(&config).upstream(upstream.address()).start();
    assert_eq!(moved.send(&Request::get("/-/alive")).json()["status"], "healthy");
    assert_eq!(moved.send(&Request::get("/-/load")).json()["health"], "NORMAL");
    for path in ["/health", "/system/health"] {
        assert_eq!(moved.send(&Request::get(path)).text(), "upstream", "{path}");
    }

    config["admin"]["health_path"] = Value::Null;
    config["admin"]["system_health_path"] = Value::Null;
    let off = Setup::new().config(&config).upstream(upstream.address()).start();
    for (path, remaining) in [("/health", 49), ("/system/health", 48)] {
        let reply = off.send(&Request::get(path));
        assert_eq!((reply.text().as_str(), reply.remaining()), ("upstream", remaining));
    }
    let post = switch_request("DEGRADED");
    assert_eq!(off.send(&post).one("x-system-health"), "NORMAL");
    assert_eq!(off.send(&Request::get("/")).one("x-system-health"), "NORMAL");
}

#[test]
fn a_slow_or_broken_admin_body_holds_up_nobody() {
    let envoy = start();
    let head = format!(
        "POST /system/health HTTP/1.1\r\nhost: e2e\r\nx-admin-token: {TOKEN}\r\ncontent-length: 21\r\n\r\n"
    );
    let mut slow: Vec<_> = (0..20).map(|_| envoy.connect()).collect();
    for connection in &mut slow {
        connection.write(head.as_bytes()).expect("written");
        connection.write(br#"{"status":"#).expect("written");
    }
    let began = Instant::now();
    switch(&envoy, "DEGRADED");
    switch(&envoy, "NORMAL");
    assert_eq!(envoy.send(&Request::get("/")).status, 200);
    assert!(began.elapsed() < Duration::from_secs(5));

    let mut patient = slow.pop().expect("twenty were opened");
    for connection in slow {
        connection.reset();
    }
    assert_eq!(health(&envoy), "NORMAL", "half a body switches nothing");
    patient.write(br#""DEGRADED"}"#).expect("written");
    assert_eq!(patient.read("POST").expect("an answer").status, 200);
    assert_eq!(health(&envoy), "DEGRADED");
}

fn start_with_trailers() -> Envoy {
    let trailers = json!({"http_protocol_options": {"enable_trailers": true}});
    Setup::new().config(&two_tiers(5, 7)).hcm(&trailers).start()
}

#[test]
fn a_body_may_end_with_trailers() {
    let envoy = start_with_trailers();
    let request = format!(
        "POST /system/health HTTP/1.1\r\nhost: e2e\r\nx-admin-token: {TOKEN}\r\n\
         transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         15\r\n{{\"status\":\"DEGRADED\"}}\r\n0\r\nx-sum: 1\r\n\r\n"
    );
    let mut connection = envoy.connect();
    connection.write(request.as_bytes()).expect("written");
    let reply = connection.read("POST").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(health(&envoy), "DEGRADED");
}

#[test]
fn a_request_that_ends_with_trailers_is_answered_with_every_header() {
    let envoy = start_with_trailers();
    let request = "POST / HTTP/1.1\r\nhost: e2e\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                   2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n";
    let mut connection = envoy.connect();
    connection.write(request.as_bytes()).expect("written");
    let reply = connection.read("POST").expect("an answer");
    assert_headers_complete(&reply, "free", 5, "NORMAL");
}

#[test]
fn a_body_that_never_ends_is_a_408_and_changes_nothing() {
    let envoy = start();
    let mut connection = envoy.connect();
    let head = format!(
        "POST /system/health HTTP/1.1\r\nhost: e2e\r\nx-admin-token: {TOKEN}\r\ncontent-length: 21\r\n\r\n"
    );
    connection.write(head.as_bytes()).expect("written");
    connection.write(br#"{"status":"DEGRADED""#).expect("written");
    let reply = connection.read("POST").expect("an answer");
    assert_own_answer(&reply, 408);
    // Envoy may have closed by now; what counts is that the end of the body comes too late.
    let _ = connection.write(b"}");
    assert_eq!(health(&envoy), "NORMAL");
    assert_eq!(envoy.send(&switch_request("DEGRADED")).status, 200);
}

#[test]
fn where_envoy_passes_no_bodies_the_answer_says_what_is_missing() {
    let envoy = Setup::new().config(&two_tiers(5, 7)).without_bodies().start();
    let reply = envoy.send(&switch_request("DEGRADED"));
    assert_own_answer(&reply, 408);
    assert!(reply.text().contains("allow_on_headers_stop_iteration"), "{}", reply.text());
    assert_eq!(health(&envoy), "NORMAL");
    assert_eq!(envoy.send(&Request::get("/")).status, 200);
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let envoy = start();
    let mut connection = envoy.connect();
    for path in ["/health", "/system/health"] {
        let reply = connection.send(&Request::new("HEAD", path));
        assert_own_answer(&reply, 200);
        assert_eq!(reply.text(), "");
    }
    assert_eq!(connection.send(&Request::get("/health")).status, 200, "the connection goes on");
}

#[test]
fn a_client_that_waits_for_permission_to_send_its_body_gets_it() {
    let envoy = start();
    let mut connection = envoy.connect();
    let head = format!(
        "POST /system/health HTTP/1.1\r\nhost: e2e\r\nx-admin-token: {TOKEN}\r\n\
         expect: 100-continue\r\ncontent-length: 21\r\n\r\n"
    );
    connection.write(head.as_bytes()).expect("written");
    connection.write(br#"{"status":"DEGRADED"}"#).expect("written");
    assert_eq!(connection.read("POST").expect("an answer").status, 200);
    assert_eq!(health(&envoy), "DEGRADED");
}
