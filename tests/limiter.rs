//! The limiter: limits, response headers, changes of health, and metrics.

mod common;

use std::time::Duration;

use common::{ARRIVAL, FakeData, FakeRequest, SECOND, TOKEN, answer, limiter, seen};
use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::bucket::Outcome;
use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::headers::{HeaderValues, write_headers};
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::metrics::{CLUSTER_LIMIT, MAX_TIER_SERIES, Metrics, Sample};
use dynamic_rate_limiter::overload::ClusterReport;
use dynamic_rate_limiter::store::SharedData;
use dynamic_rate_limiter::time::{StoreTime, UnixTime, WallClock};

fn headers(limiter: &Limiter, answer: &HeaderValues, processing_us: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let groups = limiter.config().settings.headers;
    write_headers(
        answer,
        groups,
        limiter.wall_clock(),
        Duration::from_micros(processing_us),
        |name, value| {
            lines.push(format!("{name}: {}", String::from_utf8_lossy(value)));
        },
    );
    lines
}

fn reply(limiter: &mut Limiter, data: &FakeData, request: &FakeRequest) -> (u32, String) {
    match limiter.decide(request, data, ARRIVAL) {
        Decision::Replied(reply) => (reply.status, reply.body),
        other => panic!("not replied: {other:?}"),
    }
}

fn set_health(limiter: &mut Limiter, data: &FakeData, body: &[u8]) -> (u32, String) {
    let request = FakeRequest::post("/system/health").with("x-admin-token", TOKEN);
    match limiter.decide(&request, data, ARRIVAL) {
        Decision::AwaitsBody(pending) => {
            let Decision::Replied(reply) = limiter.change_health(&pending, body, data, ARRIVAL) else {
                panic!("it waits for a Redis that it does not have");
            };
            (reply.status, reply.body)
        }
        other => panic!("the token was not accepted: {other:?}"),
    }
}

#[test]
fn a_known_key_has_its_own_bucket_and_each_address_has_one() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, r#"{"api_keys": {"pro": "pro", "other": "pro", "e": "enterprise"}}"#);
    let mut seen = |request: FakeRequest| seen(&mut limiter, &data, &request);
    let get = || FakeRequest::get("/");
    assert_eq!(seen(get().with("x-api-key", "pro")), ("pro".to_owned(), Some(24)));
    assert_eq!(seen(get().with("x-api-key", "pro").from("198.51.100.9:1")), ("pro".to_owned(), Some(23)));
    assert_eq!(seen(get().with("x-api-key", "other")), ("pro".to_owned(), Some(24)));
    assert_eq!(seen(get().with("x-api-key", "e")), ("enterprise".to_owned(), Some(49)));

    let strange: [&[u8]; 6] = [b"", b"unknown", b"PRO", b"pro ", b"\xff\x00\x80", &[b'k'; 10_000]];
    assert_eq!(seen(get()), ("free".to_owned(), Some(9)));
    for (count, key) in (1..).zip(strange) {
        assert_eq!(seen(get().with("x-api-key", key)), ("free".to_owned(), Some(9 - count)), "{key:?}");
    }
    let two = get().with("x-api-key", "unknown").with("x-api-key", "pro");
    assert_eq!(seen(two), ("free".to_owned(), Some(2)), "the first value counts");
    assert_eq!(seen(get().from("192.0.2.2:1")), ("free".to_owned(), Some(9)));
    assert_eq!(seen(get().from("[::ffff:192.0.2.2]:1")), ("free".to_owned(), Some(8)));
    assert_eq!(seen(get().from("[2001:db8::1]:1")), ("free".to_owned(), Some(9)));
    assert_eq!(seen(get().from("[2001:db8::2]:1")), ("free".to_owned(), Some(8)));
    assert_eq!(seen(get().from("[2001:db8:0:1::2]:1")), ("free".to_owned(), Some(9)));
}

#[test]
fn no_key_and_no_address_names_a_record() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, r#"{"api_keys": {"canary-key": "pro"}}"#);
    for key in ["canary-key", "unknown-canary"] {
        limiter.decide(&FakeRequest::get("/").with("x-api-key", key).from("203.0.113.77:5"), &data, ARRIVAL);
    }
    for key in data.keys() {
        assert!(key.starts_with("rate_limiter/default/"), "{key}");
        assert!(!key.contains("canary") && !key.contains("203.0.113"), "{key}");
    }
}

#[test]
fn a_limited_request_costs_a_read_and_a_write_and_a_refusal_no_write() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(
        &data,
        r#"{"default_tier": "t", "tiers": {"t": {"base": {"capacity": 1, "refill_rate": 1}}}}"#,
    );
    data.take_calls();
    limiter.decide(&FakeRequest::get("/"), &data, ARRIVAL);
    assert_eq!(data.take_calls(), (1, 1));
    limiter.decide(&FakeRequest::get("/"), &data, ARRIVAL);
    assert_eq!(data.take_calls(), (1, 0));
    data.lose_announcements();
    limiter.decide(&FakeRequest::get("/"), &data, ARRIVAL);
    assert_eq!(data.take_calls(), (2, 0), "one more read if Envoy keeps no count of changes");
}

#[test]
fn headers_report_limit_remaining_and_reset() {
    let data = FakeData::at(5_250_000);
    let mut limiter = limiter(&data, r#"{"api_keys": {"pro": "pro"}}"#);
    let (unix, now) = (UnixTime::from_micros(1_700_000_000_000_000), StoreTime::from_micros(5_000_000));
    limiter.set_wall_clock(WallClock::new(unix, now));
    let pro = FakeRequest::get("/").with("x-api-key", "pro");
    let first = answer(&mut limiter, &data, &pro);
    assert_eq!(
        headers(&limiter, &first, 23_449),
        [
            "x-ratelimit-limit: 25",
            "x-ratelimit-remaining: 24",
            // A quarter of a second after a full second, and half a second until the bucket is full.
            "x-ratelimit-reset: 1700000001",
            "x-ratelimit-tier: pro",
            "x-system-health: NORMAL",
            "x-processing-time: 0.0234s",
        ]
    );
    for _ in 0..24 {
        answer(&mut limiter, &data, &pro);
    }
    let refused = answer(&mut limiter, &data, &pro);
    assert_eq!(
        headers(&limiter, &refused, 12_345_678),
        [
            "x-ratelimit-limit: 25",
            "x-ratelimit-remaining: 0",
            "x-ratelimit-reset: 1700000001",
            "retry-after: 1",
            "x-ratelimit-tier: pro",
            "x-system-health: NORMAL",
            "x-processing-time: 12.3457s",
        ]
    );
}

#[test]
fn header_groups_can_be_turned_off_and_the_ietf_ones_on() {
    let data = FakeData::at(SECOND);
    let off = r#"{"headers": {"rate_limit": false, "system_health": false, "processing_time": false},
        "default_tier": "t", "tiers": {"t": {"base": {"capacity": 1, "refill_rate": 0.3}}}}"#;
    let mut quiet = limiter(&data, off);
    let first = answer(&mut quiet, &data, &FakeRequest::get("/"));
    assert!(headers(&quiet, &first, 0).is_empty());
    let refused = answer(&mut quiet, &data, &FakeRequest::get("/"));
    assert_eq!(headers(&quiet, &refused, 0), ["retry-after: 4"]);

    let data = FakeData::at(SECOND);
    let ietf = off.replace("\"rate_limit\": false", "\"ietf\": true, \"rate_limit\": false");
    let mut ietf = limiter(&data, &ietf);
    let first = answer(&mut ietf, &data, &FakeRequest::get("/"));
    assert_eq!(headers(&ietf, &first, 0), ["ratelimit-policy: \"t\";q=1;w=4", "ratelimit: \"t\";r=0;t=4"]);
}

#[test]
fn invalid_bodies_change_nothing_and_are_explained() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    let wanted = r#"wanted \"NORMAL\" or \"DEGRADED\""#;
    let cases: [(&[u8], &str); 8] = [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "body: found a list, wanted an object"),
        (b"{}", "body.status: found nothing, wanted"),
        (br#"{"status": "degraded"}"#, wanted),
        (br#"{"status": 1}"#, wanted),
        (br#"{"status": "DEGRADED", "x": 1}"#, "unknown field"),
    ];
    for (body, expected) in cases {
        let (status, answer) = set_health(&mut limiter, &data, body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.starts_with(r#"{"detail":""#) && answer.contains(expected), "{answer}");
    }
    let (status, answer) = set_health(&mut limiter, &data, &[b' '; 1025]);
    assert_eq!(status, 413, "{answer}");
    let (status, answer) = reply(&mut limiter, &data, &FakeRequest::get("/system/health"));
    assert!(status == 200 && answer.contains(r#""health":"NORMAL""#), "{answer}");
}

#[test]
fn a_change_that_cannot_be_stored_is_an_error_and_changes_nothing() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    data.refuse_writes();
    let answer = set_health(&mut limiter, &data, br#"{"status": "DEGRADED"}"#);
    assert_eq!(answer, (500, r#"{"detail":"Failed to update health"}"#.to_owned()));
    let (_, health) = reply(&mut limiter, &data, &FakeRequest::get("/health"));
    assert_eq!(health, r#"{"status":"healthy","redis":"not_configured","health":"NORMAL"}"#);
}

#[test]
fn after_five_bad_tokens_a_minute_the_right_one_is_refused_too() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    let post = |token: &str| FakeRequest::post("/system/health").with("x-admin-token", token);
    let forbidden = (403, r#"{"detail":"Invalid admin token"}"#.to_owned());
    for attempt in 0..5 {
        data.advance(SECOND);
        let wrong = if attempt == 0 { "" } else { "wrong" };
        let none = FakeRequest::post("/system/health");
        assert_eq!(reply(&mut limiter, &data, &none), forbidden, "a missing token does not count");
        assert_eq!(reply(&mut limiter, &data, &post(wrong)), forbidden);
    }
    assert_eq!(reply(&mut limiter, &data, &post(TOKEN)).0, 429);
    let elsewhere = post(TOKEN).from("198.51.100.1:1");
    assert!(
        matches!(limiter.decide(&elsewhere, &data, ARRIVAL), Decision::AwaitsBody(_)),
        "other addresses are not refused"
    );
    // The first bad token was four seconds before the last.
    data.advance(56 * SECOND - 1);
    assert_eq!(reply(&mut limiter, &data, &post(TOKEN)).0, 429, "a tick early");
    data.advance(1);
    assert!(matches!(limiter.decide(&post(TOKEN), &data, ARRIVAL), Decision::AwaitsBody(_)), "on time");
    assert_eq!(reply(&mut limiter, &data, &post("wrong")), forbidden);
    assert_eq!(reply(&mut limiter, &data, &post(TOKEN)).0, 429, "the window slides");
}

#[test]
fn the_login_throttle_is_bounded_for_any_number_of_addresses() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    for number in 0..20_000_u32 {
        let source = std::net::Ipv4Addr::from_bits(number).to_string();
        let guess = FakeRequest::post("/system/health").with("x-admin-token", "wrong").from(&source);
        limiter.decide(&guess, &data, ARRIVAL);
    }
    assert!(data.size() < 256 * 16 * 64, "{} bytes", data.size());
}

#[test]
fn a_store_failure_refuses_the_request_and_is_counted() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    data.refuse_writes();
    let refused = answer(&mut limiter, &data, &FakeRequest::get("/"));
    assert_eq!(refused.verdict.map(|v| (v.outcome, v.wait_us)), Some((Outcome::Refused, SECOND)));
    let failures = Sample::Count("rate_limiter_store_failures_total.reason.contended".to_owned(), 1);
    assert!(limiter.drain_metrics().contains(&failures));
}

#[test]
fn a_missing_or_empty_token_does_not_match_the_hash_of_the_empty_string() {
    let data = FakeData::at(SECOND);
    let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let plugin = PluginConfig::parse(
        format!(r#"{{"admin": {{"token_sha256": "{hash}"}}}}"#).as_bytes(),
        &Environment::default(),
    );
    let mut limiter = Limiter::new(plugin.expect("a configuration"), &data, (1, 2)).expect("a limiter");
    for request in
        [FakeRequest::post("/system/health"), FakeRequest::post("/system/health").with("x-admin-token", "")]
    {
        assert_eq!(reply(&mut limiter, &data, &request).0, 403);
    }
}

#[test]
fn concurrent_bad_tokens_are_all_counted() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    let wrong = FakeRequest::post("/system/health").with("x-admin-token", "wrong");
    for _ in 0..4 {
        assert_eq!(reply(&mut limiter, &data, &wrong).0, 403);
    }
    data.before_next_write(|data| {
        let other = FakeRequest::post("/system/health").with("x-admin-token", "wrong");
        assert_eq!(
            reply(&mut self::limiter(data, "{}"), data, &other).0,
            403,
            "the fifth comes from another worker"
        );
    });
    assert_eq!(reply(&mut limiter, &data, &wrong).0, 429, "this is the sixth");
}

#[test]
fn samples_are_counted_for_each_tier_and_handed_over_once() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, r#"{"api_keys": {"pro": "pro"}}"#);
    let at_first = limiter.drain_metrics();
    for status in ["allowed", "limited", "exempt", "blocked", "shed"] {
        for tier in ["free", "pro", "enterprise"] {
            let name = format!("rate_limiter_requests_total.tier.{tier}.status.{status}");
            assert!(at_first.contains(&Sample::Count(name.clone(), 0)), "{name} exists from the start");
        }
    }
    assert!(at_first.contains(&Sample::Gauge("rate_limiter_tokens_remaining.tier.pro".to_owned())));
    assert!(at_first.contains(&Sample::Level("rate_limiter_system_degraded".to_owned(), 0)));
    for _ in 0..12 {
        limiter.decide(&FakeRequest::get("/"), &data, ARRIVAL);
    }
    limiter.decide(&FakeRequest::get("/").with("x-api-key", "pro"), &data, ARRIVAL);
    let count = |name: &str, count| Sample::Count(format!("rate_limiter_requests_total.tier.{name}"), count);
    let level = |name: &str, level| Sample::Level(format!("rate_limiter_{name}"), level);
    assert_eq!(
        limiter.drain_metrics(),
        [
            count("free.status.allowed", 10),
            count("free.status.limited", 2),
            level("tokens_remaining.tier.free", 0),
            count("pro.status.allowed", 1),
            level("tokens_remaining.tier.pro", 24),
        ]
    );
    assert_eq!(limiter.drain_metrics(), []);
    assert!(data.now() > StoreTime::default());
}

#[test]
fn tiers_beyond_the_bound_are_counted_together() {
    let data = FakeData::at(SECOND);
    let tier = |n: usize| format!(r#""t{n}": {{"base": {{"capacity": 9, "refill_rate": 1}}}}"#);
    let key = |n: usize| format!(r#""key-{n}": "t{n}""#);
    let list =
        |part: &dyn Fn(usize) -> String| (0..MAX_TIER_SERIES + 2).map(part).collect::<Vec<_>>().join(",");
    let config =
        format!(r#"{{"default_tier": "t0", "tiers": {{{}}}, "api_keys": {{{}}}}}"#, list(&tier), list(&key));
    let mut limiter = limiter(&data, &config);
    for n in 0..MAX_TIER_SERIES + 2 {
        limiter.decide(&FakeRequest::get("/").with("x-api-key", format!("key-{n}")), &data, ARRIVAL);
    }
    let mut counted = std::collections::BTreeMap::new();
    for sample in limiter.drain_metrics() {
        if let Sample::Count(name, count) = sample
            && let Some(tier) = name.strip_prefix("rate_limiter_requests_total.tier.")
        {
            *counted.entry(tier.to_owned()).or_insert(0) += count;
        }
    }
    assert_eq!(counted.len(), (MAX_TIER_SERIES + 1) * 5);
    assert_eq!(counted.get("other_tiers.status.allowed"), Some(&2));
    assert_eq!(counted.get(&format!("t{}.status.allowed", MAX_TIER_SERIES - 1)), Some(&1));
}

#[test]
fn endpoints_match_the_exact_path_and_other_methods_get_the_allowed_ones() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, "{}");
    let tricks = [
        "/system/health/",
        "//system/health",
        "/SYSTEM/health",
        "/system%2fhealth",
        "/system/health;x",
        "/health/",
    ];
    for path in tricks {
        let request = FakeRequest::post(path).with("x-admin-token", TOKEN);
        assert!(matches!(limiter.decide(&request, &data, ARRIVAL), Decision::Admitted(_)), "{path}");
    }
    assert_eq!(reply(&mut limiter, &data, &FakeRequest::get("/health?x=/y")).0, 200);
    for (path, allow) in [("/health", "GET, HEAD"), ("/system/health", "GET, HEAD, POST")] {
        let delete = FakeRequest { method: "DELETE".into(), ..FakeRequest::get(path) };
        match limiter.decide(&delete, &data, ARRIVAL) {
            Decision::Replied(reply) => {
                assert_eq!((reply.status, reply.header), (405, Some(("allow", allow.to_owned()))));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_fractional_limit_is_reported_as_whole_places() {
    for (limit, shown) in [(13.0, 13), (13.078, 14)] {
        let mut metrics = Metrics::default();
        let name = b"upstream".to_vec();
        metrics.cluster(&ClusterReport { name, limit, baseline: None, in_flight: 0, waiting: 0, shed: 0 });
        let level = Sample::Level(format!("{CLUSTER_LIMIT}.cluster.upstream"), shown);
        assert!(metrics.drain().contains(&level), "{limit}");
    }
}
