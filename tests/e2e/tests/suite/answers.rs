//! The headers of spec section 5, on every kind of response.

use e2e::client::Request;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream, refusing};
use scenarios::answers::OURS;
use serde_json::json;
use std::time::Duration;

use crate::support::two_tiers;

#[test]
fn after_a_head_request_the_connection_stays_open() {
    let envoy = Setup::new().config(&two_tiers(1, 7)).start();
    let mut connection = envoy.connect();
    let statuses = ["/", "/", "/health", "/system/health"].map(|path| {
        let reply = connection.send(&Request::new("HEAD", path));
        assert_eq!(reply.text(), "", "{path}");
        assert_eq!(connection.send(&Request::get("/")).text(), "Too Many Requests");
        reply.status
    });
    assert_eq!(statuses, [200, 429, 200, 200]);
}

/// Failures behind the filter: the path that causes each, and the status that the client receives.
const FAILURES: [(&str, u16); 7] = [
    ("/500", 500),
    ("/503", 503),
    ("/404", 404),
    ("/reset", 503),
    ("/slow", 504),
    ("/refused", 503),
    ("/no-route", 404),
];

#[test]
fn every_failure_behind_the_filter_is_answered_with_every_header_and_costs_a_token() {
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/500" => Answer::with(500, &[]),
        "/503" => Answer::with(503, &[("retry-after", "120")]),
        "/404" => Answer::with(404, &[]),
        "/slow" => Answer::Late(Duration::from_secs(2), Box::new(Answer::ok("late"))),
        _ => Answer::Reset,
    });
    let mut routes = vec![json!({"match": {"path": "/refused"}, "route": {"cluster": "refusing"}})];
    for (path, _) in FAILURES.iter().filter(|(path, _)| !["/refused", "/no-route"].contains(path)) {
        routes.push(json!({"match": {"path": path}, "route": {"cluster": "upstream", "timeout": "0.3s"}}));
    }
    let envoy = Setup::new()
        .config(&two_tiers(7, 7))
        .upstream(upstream.address())
        .cluster("refusing", refusing())
        .routes(&json!(routes))
        .start();
    let mut connection = envoy.connect();
    for (spent, (path, status)) in FAILURES.into_iter().enumerate() {
        let reply = connection.send(&Request::get(path));
        assert_eq!(reply.status, status, "{path}");
        assert_eq!(reply.remaining(), 6 - spent as u64, "{path}");
        for name in OURS {
            assert_eq!(reply.all(name).len(), 1, "{name} on {path}");
        }
        let retry_after: &[&str] = if path == "/503" { &["120"] } else { &[] };
        assert_eq!(reply.all("retry-after"), retry_after, "{path}: as the upstream sent it");
    }
    for (path, _) in FAILURES {
        assert_eq!(connection.send(&Request::get(path)).status, 429, "{path}");
    }
}
