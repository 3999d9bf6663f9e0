//! The endpoints that the filter serves itself: each row of the table in spec section 6.

use serde_json::{Value, json};

use crate::support::{TOKEN, post_to_system_health, set_health_request, sha256_hex, two_tiers};
use crate::{Gateway, Host, Request, Response, Setup};

/// Sends a request to `/system/health`, and checks that `timestamp` in the answer's JSON is the current time in
/// milliseconds; returns the rest.
#[track_caller]
fn send_and_check_timestamp(gateway: &mut dyn Gateway, request: &Request) -> Value {
    let sent_at = gateway.now();
    let reply = gateway.send(request);
    let now = gateway.now();
    assert_own_answer(&reply, 200);
    let mut json = reply.json();
    let timestamp = json.as_object_mut().and_then(|fields| fields.remove("timestamp"));
    let timestamp = timestamp.and_then(|timestamp| timestamp.as_f64()).expect("a timestamp");
    assert!((sent_at - 0.001..=now + 0.001).contains(&timestamp), "{sent_at} <= {timestamp} <= {now}");
    let millis = timestamp * 1_000.0;
    assert!((millis - millis.round()).abs() < 0.01, "{timestamp} in milliseconds");
    json
}

/// Checks that the filter itself has answered.
#[track_caller]
pub fn assert_own_answer(reply: &Response, status: u16) {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.one("content-type"), "application/json");
    for name in ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-tier"] {
        assert!(!reply.has(name), "{name} in {reply:#?}");
    }
}

pub fn get_health_reports_the_state_of_the_filter(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    for health in ["NORMAL", "DEGRADED"] {
        gateway.set_health(health);
        let reply = gateway.send(&Request::get("/health"));
        assert_own_answer(&reply, 200);
        assert_eq!(reply.json(), json!({"status": "healthy", "redis": "not_configured", "health": health}));
    }
}

pub fn get_system_health_reports_the_health(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    for health in ["NORMAL", "DEGRADED"] {
        gateway.set_health(health);
        let answer = send_and_check_timestamp(&mut *gateway, &Request::get("/system/health"));
        assert_eq!(answer, json!({"health": health}));
    }
}

pub fn post_system_health_with_the_token_sets_the_health(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    for (from, to) in
        [("NORMAL", "DEGRADED"), ("DEGRADED", "DEGRADED"), ("DEGRADED", "NORMAL"), ("NORMAL", "NORMAL")]
    {
        let answer = send_and_check_timestamp(&mut *gateway, &set_health_request(to));
        let message = "System health updated successfully";
        assert_eq!(answer, json!({"message": message, "previous_status": from, "new_status": to}));
        assert_eq!(gateway.health(), to);
    }
}

pub fn a_body_may_be_chunked_with_any_white_space_and_up_to_one_kib(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    let body = br#"{ "status" : "DEGRADED" }"#;
    let by_byte = body.iter().map(|byte| vec![*byte]).collect();
    assert_eq!(gateway.send(&post_to_system_health("").chunks(by_byte)).status, 200);
    assert_eq!(gateway.health(), "DEGRADED");

    let padded = format!("{:1$}", r#"{"status":"NORMAL"}"#, 1_024);
    assert_eq!(gateway.send(&post_to_system_health(padded)).status, 200);
    assert_eq!(gateway.health(), "NORMAL");
}

pub fn every_wrong_token_gets_the_same_403(host: &dyn Host) {
    let mut with_token = host.start(&Setup::new().config(&two_tiers(5, 7)));
    let mut without_token = host.start(&Setup::new());
    let request = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    let request_with = |token: &[u8]| request.clone().header("X-Admin-Token", token);
    // At most four attempts each, so that the login throttle does not refuse them.
    let hash = sha256_hex(TOKEN);
    let replies = [
        with_token.send(&request),
        with_token.send(&request_with(b"c4nary-wrong")),
        with_token.send(&request_with(hash.as_bytes())),
        with_token.send(&request_with(b"\xff\xfe")),
        without_token.send(&request),
        without_token.send(&request_with(b"")),
        without_token.send(&request_with(b"c4nary-wrong")),
    ];
    for reply in &replies {
        assert_own_answer(reply, 403);
        assert_eq!(reply.text(), r#"{"detail":"Invalid admin token"}"#);
        let names = |reply: &Response| reply.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(reply), names(&replies[0]), "the cases cannot be distinguished");
    }
    assert_eq!(with_token.health(), "NORMAL");
    assert_eq!(without_token.health(), "NORMAL");
}

pub fn an_invalid_body_is_a_400_and_changes_nothing(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    gateway.set_health("DEGRADED");
    let (no_json, unknown) = ("not valid JSON", "wanted \"NORMAL\" or \"DEGRADED\"");
    let deep = "[".repeat(1_000);
    let bodies: [(&[u8], &str); 20] = [
        (b"", no_json),
        (b" ", no_json),
        (b"{", no_json),
        (b"NORMAL", no_json),
        (b"null", "body: found"),
        (b"[]", "body: found a list, wanted an object"),
        (b"{}", "body.status: found nothing, wanted"),
        (br#""NORMAL""#, "body: found"),
        (br#"["NORMAL"]"#, "body: found a list"),
        (br#"{"status":null}"#, unknown),
        (br#"{"status":1}"#, unknown),
        (br#"{"status":["NORMAL"]}"#, unknown),
        (br#"{"status":""}"#, unknown),
        (br#"{"status":"normal"}"#, unknown),
        (br#"{"status":"HEALTHY"}"#, unknown),
        (br#"{"health":"NORMAL"}"#, "unknown field"),
        (br#"{"status":"NORMAL","x":1}"#, "unknown field"),
        (br#"{"status":"NORMAL"} trailing"#, no_json),
        (b"{\"status\":\"NORMAL\xff\"}", no_json),
        (deep.as_bytes(), no_json),
    ];
    for (body, reason) in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let reply = gateway.send(&post_to_system_health(body));
        assert_own_answer(&reply, 400);
        let detail = reply.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains(reason), "{shown:?}: {detail}");
        assert_eq!(gateway.health(), "DEGRADED", "{shown:?}");
    }
    let without_body = Request::new("POST", "/system/health").header("X-Admin-Token", TOKEN);
    assert_eq!(gateway.send(&without_body).status, 400, "no body at all");
}

pub fn a_body_over_one_kib_is_a_413_and_changes_nothing(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    for length in [1_025, 5_000, 5_000_000] {
        let mut body = br#"{"status":"DEGRADED"}"#.to_vec();
        body.resize(length, b' ');
        let chunks = body.chunks(500).map(<[u8]>::to_vec).collect();
        let in_chunks = post_to_system_health("").chunks(chunks);
        for request in [post_to_system_health(body.clone()), in_chunks] {
            let reply = gateway.send(&request);
            assert_eq!(reply.status, 413, "{length} bytes: {}", reply.text());
            assert_eq!(gateway.health(), "NORMAL", "{length} bytes");
        }
    }
}

pub fn another_method_is_a_405_with_the_allowed_methods(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    let wrong: [(&str, &[&str], &str); 2] = [
        ("/health", &["POST", "PUT", "DELETE", "PATCH"], "GET, HEAD"),
        ("/system/health", &["PUT", "DELETE", "PATCH"], "GET, HEAD, POST"),
    ];
    for (path, methods, allowed) in wrong {
        for method in methods {
            let request = Request::new(method, path).header("X-Admin-Token", TOKEN);
            let reply = gateway.send(&request);
            assert_eq!((reply.status, reply.one("allow").as_str()), (405, allowed), "{method} {path}");
        }
    }
    assert_eq!(gateway.upstream_targets(), [""; 0]);
}

pub fn endpoints_cost_no_tokens_and_answer_a_refused_caller(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    for _ in 0..20 {
        assert_eq!(gateway.send(&Request::get("/health")).status, 200);
        assert_eq!(gateway.send(&Request::get("/system/health")).status, 200);
        gateway.set_health("NORMAL");
    }
    assert_eq!(gateway.statuses(&Request::get("/"), 6), [200, 200, 200, 200, 200, 429]);
    assert_eq!(gateway.send(&Request::get("/health")).status, 200);
    assert_eq!(gateway.send(&Request::get("/system/health")).status, 200);
    gateway.set_health("DEGRADED");
}

pub fn paths_can_be_moved_and_turned_off(host: &dyn Host) {
    let mut config = two_tiers(50, 7);
    config["admin"]["health_path"] = json!("/-/alive");
    config["admin"]["system_health_path"] = json!("/-/load");
    let mut moved = host.start(&Setup::new().config(&config));
    assert_eq!(moved.send(&Request::get("/-/alive")).json()["status"], "healthy");
    assert_eq!(moved.send(&Request::get("/-/load")).json()["health"], "NORMAL");
    for path in ["/health", "/system/health"] {
        assert_eq!(moved.send(&Request::get(path)).text(), "ok", "{path}");
    }

    config["admin"]["health_path"] = Value::Null;
    config["admin"]["system_health_path"] = Value::Null;
    let mut off = host.start(&Setup::new().config(&config));
    for (path, remaining) in [("/health", 49), ("/system/health", 48)] {
        let reply = off.send(&Request::get(path));
        assert_eq!((reply.text().as_str(), reply.remaining()), ("ok", remaining));
    }
    let post = set_health_request("DEGRADED");
    assert_eq!(off.send(&post).one("x-system-health"), "NORMAL");
    assert_eq!(off.send(&Request::get("/")).one("x-system-health"), "NORMAL");
}

pub fn if_envoy_passes_no_bodies_the_response_names_the_missing_setting(host: &dyn Host) {
    let mut gateway = host.start(&Setup { passes_bodies: false, ..Setup::new().config(&two_tiers(5, 7)) });
    let reply = gateway.send(&set_health_request("DEGRADED"));
    assert_own_answer(&reply, 408);
    assert!(reply.text().contains("allow_on_headers_stop_iteration"), "{}", reply.text());
    gateway.await_metric("rate_limiter_admin_requests_total", &[("result", "invalid")], 1.0);
    assert_eq!(gateway.health(), "NORMAL");
    assert_eq!(gateway.send(&Request::get("/")).status, 200);
}

pub fn head_is_answered_like_get_without_a_body(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(5, 7)));
    for path in ["/health", "/system/health"] {
        let reply = gateway.send(&Request::new("HEAD", path));
        assert_own_answer(&reply, 200);
        assert_eq!(reply.text(), "");
        assert!(!reply.closes_connection(), "{reply:#?}");
    }
}
