//! The headers of spec section 5, on every kind of response.

use e2e::client::{Request, Response};
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream, refusing};
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::{
    ONE_PER_HOUR, assert_headers_complete, assert_processing_time, statuses, switch, tier, two_tiers,
};

/// The headers of section 5, `Retry-After` apart.
const OURS: [&str; 6] = [
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-tier",
    "x-system-health",
    "x-processing-time",
];

#[test]
fn an_admitted_request_is_answered_with_every_header() {
    let upstream = Upstream::start(|_| Answer::ok("from upstream"));
    let envoy = Setup::new().config(&two_tiers(3, 7)).upstream(upstream.address()).start();
    for remaining in [2, 1, 0] {
        let reply = envoy.send(&Request::get("/"));
        assert_eq!((reply.status, reply.text().as_str()), (200, "from upstream"));
        assert_headers_complete(&reply, "free", 3, "NORMAL");
        assert_eq!(reply.remaining(), remaining);
    }
}

#[test]
fn a_refused_request_is_answered_with_every_header_and_never_reaches_the_upstream() {
    let upstream = Upstream::start(|_| Answer::ok("from upstream"));
    let envoy = Setup::new().config(&two_tiers(2, 7)).upstream(upstream.address()).start();
    assert_eq!(statuses(&envoy, &Request::get("/"), 2), [200, 200]);
    for request in [Request::get("/"), Request::post("/", "body"), Request::get("/").key("?")] {
        let reply = envoy.send(&request);
        assert_eq!(reply.status, 429);
        assert_headers_complete(&reply, "free", 2, "NORMAL");
        assert_eq!(reply.one("content-type"), "text/plain");
        assert_eq!(reply.text(), "Too Many Requests");
    }
    assert_eq!(upstream.targets(), ["/", "/"]);
}

#[test]
fn a_refused_head_request_has_no_body_and_the_connection_goes_on() {
    let envoy = Setup::new().config(&two_tiers(1, 7)).start();
    let mut connection = envoy.connect();
    assert_eq!(connection.send(&Request::new("HEAD", "/")).status, 200);
    for _ in 0..3 {
        let reply = connection.send(&Request::new("HEAD", "/"));
        assert_eq!(reply.status, 429);
        assert_headers_complete(&reply, "free", 1, "NORMAL");
    }
    assert_eq!(connection.send(&Request::get("/")).text(), "Too Many Requests");
}

/// Every way in which something behind the filter fails: the path that leads to it, the status
/// that the client sees.
const FAILURES: [(&str, u16); 7] = [
    ("/500", 500),
    ("/503", 503),
    ("/404", 404),
    ("/reset", 503),
    ("/slow", 504),
    ("/refused", 503),
    ("/no-route", 404),
];

fn failing_setup(config: &Value) -> (Upstream, Setup) {
    let upstream = Upstream::start(|request| match request.target.as_str() {
        "/500" => Answer::with(500, &[]),
        "/503" => Answer::with(503, &[("retry-after", "120")]),
        "/404" => Answer::with(404, &[]),
        "/slow" => Answer::Late(Duration::from_secs(2), Box::new(Answer::ok("late"))),
        _ => Answer::Reset,
    });
    let to_upstream =
        |path: &str| json!({"match": {"path": path}, "route": {"cluster": "upstream", "timeout": "0.3s"}});
    let setup =
        Setup::new().config(config).upstream(upstream.address()).cluster("nobody", refusing()).routes(
            &json!([
                to_upstream("/500"),
                to_upstream("/503"),
                to_upstream("/404"),
                to_upstream("/reset"),
                to_upstream("/slow"),
                {"match": {"path": "/refused"}, "route": {"cluster": "nobody"}},
            ]),
        );
    (upstream, setup)
}

#[test]
fn every_failure_behind_the_filter_is_answered_with_every_header_and_costs_a_token() {
    let (_upstream, setup) = failing_setup(&two_tiers(7, 7));
    let envoy = setup.start();
    let mut connection = envoy.connect();
    for (spent, (path, status)) in FAILURES.into_iter().enumerate() {
        let reply = connection.send(&Request::get(path));
        assert_eq!(reply.status, status, "{path}");
        assert_eq!(reply.remaining(), 6 - spent as u64, "{path}");
        for name in OURS {
            assert_eq!(reply.all(name).len(), 1, "{name} on {path}");
        }
        let retry_after: &[&str] = if path == "/503" { &["120"] } else { &[] };
        assert_eq!(reply.all("retry-after"), retry_after, "{path}: the upstream's own");
    }
    for (path, _) in FAILURES {
        assert_eq!(connection.send(&Request::get(path)).status, 429, "{path}");
    }
}

/// What an upstream may say that is ours to say: each header twice and in odd case.
fn impostor() -> Vec<(String, String)> {
    OURS.iter()
        .flat_map(|name| {
            [(name.to_ascii_uppercase(), "999".to_owned()), ((*name).to_owned(), "upstream".to_owned())]
        })
        .collect()
}

fn impostor_upstream() -> Upstream {
    Upstream::start(|request| {
        let status = if request.target == "/500" { 500 } else { 200 };
        Answer::Respond(status, impostor(), b"body".to_vec())
    })
}

#[test]
fn the_upstreams_own_copies_are_replaced() {
    let upstream = impostor_upstream();
    let envoy = Setup::new().config(&two_tiers(9, 7)).upstream(upstream.address()).start();
    for (path, status, remaining) in [("/", 200, 8), ("/500", 500, 7)] {
        let reply = envoy.send(&Request::get(path));
        assert_eq!(reply.status, status);
        assert_headers_complete(&reply, "free", 9, "NORMAL");
        assert_eq!(reply.remaining(), remaining);
        assert_eq!(reply.text(), "body");
    }
}

#[test]
fn processing_time_runs_from_request_headers_to_response_headers() {
    let upstream =
        Upstream::start(|_| Answer::Late(Duration::from_millis(200), Box::new(Answer::ok("late"))));
    let envoy = Setup::new().config(&two_tiers(1, 7)).upstream(upstream.address()).start();
    let waited = assert_processing_time(&envoy.send(&Request::get("/")));
    assert!((0.19..5.0).contains(&waited), "{waited}");
    let refused = envoy.send(&Request::get("/"));
    assert_eq!(refused.status, 429);
    assert!(assert_processing_time(&refused) < 0.19);
}

#[test]
fn header_groups_can_be_turned_off() {
    let groups: [(&str, &[&str]); 3] =
        [("rate_limit", &OURS[..4]), ("system_health", &OURS[4..5]), ("processing_time", &OURS[5..])];
    for (group, gone) in groups {
        let mut config = two_tiers(1, 7);
        config["headers"] = json!({ group: false });
        let envoy = Setup::new().config(&config).start();
        for status in [200, 429] {
            let reply = envoy.send(&Request::get("/"));
            assert_eq!(reply.status, status);
            for name in OURS {
                let expected = usize::from(!gone.contains(&name));
                assert_eq!(reply.all(name).len(), expected, "{name} with {group} off");
            }
            assert_eq!(reply.has("retry-after"), status == 429, "{group} off");
        }
    }
}

#[test]
fn ietf_fields_are_there_when_asked_for() {
    let mut config = two_tiers(4, 7);
    config["tiers"]["free"] = tier(4, 0.5);
    assert!(!has_ietf_fields(&Setup::new().config(&config).start().send(&Request::get("/"))));

    config["headers"] = json!({"ietf": true});
    let envoy = Setup::new().config(&config).start();
    let mut replies: Vec<Response> = Vec::new();
    while replies.last().is_none_or(|reply| reply.status == 200) {
        replies.push(envoy.send(&Request::get("/")));
    }
    for reply in &replies {
        assert_eq!(reply.one("ratelimit-policy"), r#""free";q=4;w=8"#);
        let fields = reply.one("ratelimit");
        let (policy, parameters) = fields.split_once(';').expect("parameters");
        assert_eq!(policy, r#""free""#);
        let (remaining, reset) = parameters.split_once(';').expect("two parameters");
        assert_eq!(remaining, format!("r={}", reply.remaining()));
        let seconds = reset.strip_prefix("t=").and_then(|t| t.parse::<u64>().ok());
        let seconds = seconds.expect("t in whole seconds");
        assert!((1..=8).contains(&seconds), "{fields}");
    }
    let refused = replies.last().expect("one was refused");
    let retry_after = refused.number("retry-after");
    assert!(refused.one("ratelimit").ends_with(&format!("t={retry_after}")));
}

fn has_ietf_fields(reply: &Response) -> bool {
    reply.has("ratelimit") || reply.has("ratelimit-policy")
}

#[test]
fn the_health_header_and_the_limit_follow_a_switch() {
    let mut config = two_tiers(5, 7);
    config["tiers"]["free"] = json!({
        "base": {"capacity": 5, "refill_rate": ONE_PER_HOUR},
        "burst": {"capacity": 10},
        "degraded": {"capacity": 2},
        "ttl": 3600,
    });
    let envoy = Setup::new().config(&config).start();
    assert_headers_complete(&envoy.send(&Request::get("/")), "free", 10, "NORMAL");
    switch(&envoy, "DEGRADED");
    assert_headers_complete(&envoy.send(&Request::get("/")), "free", 2, "DEGRADED");
    assert_headers_complete(&envoy.send(&Request::get("/")), "free", 2, "DEGRADED");
    let refused = envoy.send(&Request::get("/"));
    assert_eq!(refused.status, 429);
    assert_headers_complete(&refused, "free", 2, "DEGRADED");
}
