//! The headers of spec section 5, on every kind of response.

use std::time::Duration;

use serde_json::json;

use crate::support::{ONE_PER_HOUR, assert_headers_complete, assert_processing_time, tier, two_tiers};
use crate::{Answer, Host, Request, Response, Setup};

/// The headers of section 5, except for `Retry-After`.
pub const OURS: [&str; 6] = [
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-tier",
    "x-system-health",
    "x-processing-time",
];

/// How late a response may be on a busy machine.
const SLACK_SECONDS: f64 = 0.9;

pub fn an_admitted_request_is_answered_with_every_header(host: &dyn Host) {
    let mut gateway =
        host.start(&Setup::new().config(&two_tiers(3, 7)).answer("/", Answer::ok("from upstream")));
    for remaining in [2, 1, 0] {
        let reply = gateway.send(&Request::get("/"));
        assert_eq!((reply.status, reply.text().as_str()), (200, "from upstream"));
        assert_headers_complete(&reply, "free", 3, "NORMAL");
        assert_eq!(reply.remaining(), remaining);
    }
}

pub fn a_refused_request_is_answered_with_every_header_and_not_sent_to_the_upstream(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(2, 7)));
    assert_eq!(gateway.statuses(&Request::get("/"), 2), [200, 200]);
    for request in [Request::get("/"), Request::post("/", "body"), Request::get("/").key("?")] {
        let reply = gateway.send(&request);
        assert_eq!(reply.status, 429);
        assert_headers_complete(&reply, "free", 2, "NORMAL");
        assert_eq!(reply.one("content-type"), "text/plain");
        assert_eq!(reply.text(), "Too Many Requests");
    }
    assert_eq!(gateway.upstream_targets(), ["/", "/"]);
}

pub fn a_refused_head_request_has_no_body(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&two_tiers(1, 7)));
    assert_eq!(gateway.send(&Request::new("HEAD", "/")).status, 200);
    for _ in 0..3 {
        let reply = gateway.send(&Request::new("HEAD", "/"));
        assert_eq!((reply.status, reply.text().as_str()), (429, ""));
        assert_headers_complete(&reply, "free", 1, "NORMAL");
    }
    assert_eq!(gateway.send(&Request::get("/")).text(), "Too Many Requests");
}

/// An upstream response with all headers of the filter, each twice and in unusual case.
fn with_our_headers(status: u16) -> Answer {
    let twice = |name: &&str| {
        [(name.to_ascii_uppercase(), "999".to_owned()), ((*name).to_owned(), "upstream".to_owned())]
    };
    let headers = OURS.iter().flat_map(twice).collect();
    Answer { status, headers, ..Answer::ok("body") }
}

pub fn the_upstreams_copies_of_headers_are_replaced(host: &dyn Host) {
    let setup = Setup::new().config(&two_tiers(9, 7));
    let mut gateway =
        host.start(&setup.answer("/", with_our_headers(200)).answer("/500", with_our_headers(500)));
    for (path, status, remaining) in [("/", 200, 8), ("/500", 500, 7)] {
        let reply = gateway.send(&Request::get(path));
        assert_eq!(reply.status, status);
        assert_headers_complete(&reply, "free", 9, "NORMAL");
        assert_eq!(reply.remaining(), remaining);
        assert_eq!(reply.text(), "body");
    }
}

pub fn processing_time_runs_from_request_headers_to_response_headers(host: &dyn Host) {
    let late = Answer { after: Duration::from_millis(200), ..Answer::ok("late") };
    let mut gateway = host.start(&Setup::new().config(&two_tiers(1, 7)).answer("/", late));
    let waited = assert_processing_time(&gateway.send(&Request::get("/")));
    assert!((0.19..5.0).contains(&waited), "{waited}");
    let refused = gateway.send(&Request::get("/"));
    assert_eq!(refused.status, 429);
    assert!(assert_processing_time(&refused) < 0.19);
}

pub fn retry_after_and_reset_on_a_refusal_are_when_the_next_request_is_admitted(host: &dyn Host) {
    let request = Request::get("/");
    // Whole seconds between tokens, less than one, and a fraction to round up.
    for (refill_rate, seconds) in [(0.5, 2), (4.0, 1), (0.4, 3)] {
        let mut gateway = host.start(&Setup::new().config(&json!({"tiers": {"free": tier(3, refill_rate)}})));
        let mut replies = std::iter::repeat_with(|| gateway.send(&request));
        let refused = replies.find(|reply| reply.status == 429).expect("the bucket becomes empty");
        assert_eq!(refused.number("retry-after"), seconds, "{refill_rate}/s");
        let until_reset = refused.number("x-ratelimit-reset") as f64 - gateway.now();
        assert!((until_reset - seconds as f64).abs() < 1.0 + SLACK_SECONDS, "in {until_reset} s");
        if refill_rate < 1.0 {
            assert_eq!(gateway.send(&request).status, 429, "{refill_rate}/s");
        }
        gateway.advance(Duration::from_secs(seconds));
        assert_eq!(gateway.send(&request).status, 200, "{refill_rate}/s");
    }
}

pub fn reset_on_an_admission_is_when_the_bucket_is_full_again(host: &dyn Host) {
    let mut gateway = host.start(&Setup::new().config(&json!({"tiers": {"free": tier(10, 0.5)}})));
    for spent in 1..=3 {
        // Two seconds for each token, less what the earlier ones have refilled.
        let full_at = gateway.now() + f64::from(spent) * 2.0;
        let off = gateway.send(&Request::get("/")).number("x-ratelimit-reset") as f64 - full_at;
        assert!((-SLACK_SECONDS..=1.0 + SLACK_SECONDS).contains(&off), "{off} s off");
    }
}

pub fn header_groups_can_be_turned_off(host: &dyn Host) {
    let groups: [(&str, &[&str]); 3] =
        [("rate_limit", &OURS[..4]), ("system_health", &OURS[4..5]), ("processing_time", &OURS[5..])];
    for (group, disabled) in groups {
        let mut config = two_tiers(1, 7);
        config["headers"] = json!({ group: false, "ietf": true });
        let mut gateway = host.start(&Setup::new().config(&config));
        for status in [200, 429] {
            let reply = gateway.send(&Request::get("/"));
            assert_eq!(reply.status, status);
            for name in OURS {
                let expected = usize::from(!disabled.contains(&name));
                assert_eq!(reply.all(name).len(), expected, "{name} with {group} off");
            }
            assert_eq!(reply.has("retry-after"), status == 429, "{group} off");
            assert!(has_ietf_fields(&reply), "{group} off");
        }
    }
}

pub fn ietf_fields_are_sent_if_configured(host: &dyn Host) {
    let mut config = two_tiers(4, 7);
    config["tiers"]["free"] = tier(4, 0.6);
    assert!(!has_ietf_fields(&host.start(&Setup::new().config(&config)).send(&Request::get("/"))));

    config["headers"] = json!({"ietf": true});
    let mut gateway = host.start(&Setup::new().config(&config));
    let mut replies: Vec<Response> = Vec::new();
    while replies.last().is_none_or(|reply| reply.status == 200) {
        replies.push(gateway.send(&Request::get("/")));
    }
    for reply in &replies {
        assert_eq!(reply.one("ratelimit-policy"), r#""free";q=4;w=7"#);
        let fields = reply.one("ratelimit");
        let (policy, parameters) = fields.split_once(';').expect("parameters");
        assert_eq!(policy, r#""free""#);
        let (remaining, reset) = parameters.split_once(';').expect("two parameters");
        assert_eq!(remaining, format!("r={}", reply.remaining()));
        let seconds = reset.strip_prefix("t=").and_then(|t| t.parse::<u64>().ok());
        let seconds = seconds.expect("t in whole seconds");
        assert!((1..=7).contains(&seconds), "{fields}");
    }
    let refused = replies.last().expect("one was refused");
    let retry_after = refused.number("retry-after");
    assert!(refused.one("ratelimit").ends_with(&format!("t={retry_after}")));
}

fn has_ietf_fields(reply: &Response) -> bool {
    reply.has("ratelimit") || reply.has("ratelimit-policy")
}

pub fn the_health_header_and_the_limit_follow_a_change_of_health(host: &dyn Host) {
    let mut config = two_tiers(5, 7);
    config["tiers"]["free"] = json!({
        "base": {"capacity": 5, "refill_rate": ONE_PER_HOUR},
        "burst": {"capacity": 10},
        "degraded": {"capacity": 2},
        "ttl": 3600,
    });
    let mut gateway = host.start(&Setup::new().config(&config));
    assert_headers_complete(&gateway.send(&Request::get("/")), "free", 10, "NORMAL");
    gateway.set_health("DEGRADED");
    assert_headers_complete(&gateway.send(&Request::get("/")), "free", 2, "DEGRADED");
    assert_headers_complete(&gateway.send(&Request::get("/")), "free", 2, "DEGRADED");
    let refused = gateway.send(&Request::get("/"));
    assert_eq!(refused.status, 429);
    assert_headers_complete(&refused, "free", 2, "DEGRADED");
}
