//! The limiter: limits, response headers, changes of health, and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::bucket::Outcome;
use dynamic_rate_limiter::config::{Environment, PluginConfig};
use dynamic_rate_limiter::headers::HeaderValues;
use dynamic_rate_limiter::identity::KeyHash;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::metrics::{CLUSTER_LIMIT, MAX_TIER_SERIES, Metrics, StatUpdate};
use dynamic_rate_limiter::overload::ClusterRecord;
use dynamic_rate_limiter::time::{StoreTime, UnixTime, WallClock};
use harness::{FakeData, FakeRequest, SECOND, START, TOKEN, decide, keyed, limiter, replied};

/// A worker's limiter, and the shared data of its Envoy.
struct Test {
    data: FakeData,
    limiter: Limiter,
}

impl Test {
    fn new(json: &str) -> Self {
        let data = FakeData::at(SECOND);
        let limiter = limiter(&data, json);
        Self { data, limiter }
    }

    fn decide(&mut self, request: FakeRequest) -> Decision {
        decide(&mut self.limiter, &self.data, &request, START)
    }

    fn answer(&mut self, request: FakeRequest) -> HeaderValues {
        harness::answer(&mut self.limiter, &self.data, &request)
    }

    fn reply(&mut self, request: FakeRequest) -> (u32, String) {
        let decision = self.decide(request);
        replied(decision)
    }

    fn set_health(&mut self, body: &[u8]) -> (u32, String) {
        let Decision::AwaitsBody(pending) = self.decide(admin(TOKEN)) else { panic!("the token is right") };
        replied(self.limiter.change_health(&pending, body, &self.data, START))
    }

    /// Whether a change of health with the right token, from this address, is accepted.
    fn accepts_token(&mut self, source: &str) -> bool {
        matches!(self.decide(admin(TOKEN).from(source)), Decision::AwaitsBody(_))
    }

    fn headers(&self, answer: &HeaderValues, processing_us: u64) -> Vec<String> {
        harness::headers(&self.limiter, answer, Duration::from_micros(processing_us))
    }
}

fn get() -> FakeRequest {
    FakeRequest::get("/")
}

/// A change of health with this token.
fn admin(token: &str) -> FakeRequest {
    FakeRequest::post("/system/health").with("x-admin-token", token)
}

#[test]
fn bytes_that_are_not_utf8_are_no_key() {
    let hash = KeyHash::of(b"\xff\x00\x80").to_hex();
    let mut test = Test::new(&format!(r#"{{"api_keys": {{"sha256:{hash}": "pro"}}}}"#));
    assert_eq!(test.answer(keyed(b"\xff\x00\x80")).tier.name, "free");
}

#[test]
fn no_key_and_no_address_names_a_record() {
    let mut test = Test::new(r#"{"api_keys": {"canary-key": "pro"}}"#);
    for key in ["canary-key", "unknown-canary"] {
        test.decide(keyed(key).from("203.0.113.77:5"));
    }
    for key in test.data.keys() {
        assert!(key.starts_with("rate_limiter/default/"), "{key}");
        assert!(!key.contains("canary") && !key.contains("203.0.113"), "{key}");
    }
}

#[test]
fn a_limited_request_costs_a_read_and_a_write_and_a_rejection_no_write() {
    let mut test =
        Test::new(r#"{"default_tier": "t", "tiers": {"t": {"base": {"capacity": 1, "refill_rate": 1}}}}"#);
    let calls = |test: &mut Test| {
        test.data.take_calls();
        test.decide(get());
        test.data.take_calls()
    };
    assert_eq!([calls(&mut test), calls(&mut test)], [(1, 1), (1, 0)]);
    test.data.lose_announcements();
    assert_eq!(calls(&mut test), (2, 0), "one more read if Envoy keeps no count of changes");
}

#[test]
fn headers_report_limit_remaining_and_reset() {
    let mut test = Test::new(r#"{"api_keys": {"pro": "pro"}}"#);
    test.data.set_time(5_250_000);
    let (unix, now) = (UnixTime::from_micros(1_700_000_000_000_000), StoreTime::from_micros(5_000_000));
    test.limiter.set_wall_clock(WallClock::new(unix, now));
    let first = test.answer(keyed("pro"));
    // A quarter of a second after a full second, and half a second until the bucket is full.
    let reset = "x-ratelimit-reset: 1700000001";
    let [tier, health] = ["x-ratelimit-tier: pro", "x-system-health: NORMAL"];
    let [limit, remaining, took] =
        ["x-ratelimit-limit: 25", "x-ratelimit-remaining: 24", "x-processing-time: 0.0234s"];
    assert_eq!(test.headers(&first, 23_449), [limit, remaining, reset, tier, health, took]);
    for _ in 0..24 {
        test.answer(keyed("pro"));
    }
    let rejected = test.answer(keyed("pro"));
    let [remaining, retry, took] =
        ["x-ratelimit-remaining: 0", "retry-after: 1", "x-processing-time: 12.3457s"];
    let wanted = [limit, remaining, reset, retry, tier, health, took];
    assert_eq!(test.headers(&rejected, 12_345_678), wanted);
}

#[test]
fn a_blocked_tier_gets_a_retry_after_if_another_health_admits_it() {
    for (capacity, rate, retry_after) in [(5, 1, vec!["retry-after: 60"]), (0, 0, vec![])] {
        let mut test = Test::new(&format!(
            r#"{{"headers": {{"rate_limit": false, "system_health": false, "processing_time": false}}, "default_tier": "t",
            "tiers": {{"t": {{"base": {{"capacity": {capacity}, "refill_rate": {rate}}},
            "degraded": {{"capacity": 0, "refill_rate": 0}}}}}}}}"#
        ));
        assert_eq!(test.set_health(br#"{"status": "DEGRADED"}"#).0, 200);
        let rejected = test.answer(get());
        assert_eq!(test.headers(&rejected, 0), retry_after, "{capacity}");
    }
}

#[test]
fn a_change_that_cannot_be_stored_is_an_error_and_changes_nothing() {
    let mut test = Test::new("{}");
    test.data.refuse_writes();
    let answer = test.set_health(br#"{"status": "DEGRADED"}"#);
    assert_eq!(answer, (500, r#"{"detail":"Failed to update health"}"#.to_owned()));
    let (_, health) = test.reply(FakeRequest::get("/health"));
    assert_eq!(health, r#"{"status":"healthy","redis":"not_configured","health":"NORMAL"}"#);
}

#[test]
fn after_five_wrong_tokens_a_minute_the_right_one_is_rejected_too() {
    let mut test = Test::new("{}");
    let here = "192.0.2.1:40000";
    let forbidden = (403, r#"{"detail":"Invalid admin token"}"#.to_owned());
    for wrong in ["", "wrong", "wrong", "wrong", "wrong"] {
        test.data.advance(SECOND);
        let none = FakeRequest::post("/system/health");
        assert_eq!(test.reply(none), forbidden, "a missing token does not count");
        assert_eq!(test.reply(admin(wrong)), forbidden);
    }
    assert_eq!(test.reply(admin(TOKEN)).0, 429);
    assert!(test.accepts_token("198.51.100.1:1"), "other addresses are not rejected");
    // The first wrong token was four seconds before the last.
    test.data.advance(56 * SECOND - 1);
    assert_eq!(test.reply(admin(TOKEN)).0, 429, "a tick early");
    test.data.advance(1);
    assert!(test.accepts_token(here), "on time");
    assert_eq!(test.reply(admin("wrong")), forbidden);
    assert_eq!(test.reply(admin(TOKEN)).0, 429, "the window slides");
}

#[test]
fn a_store_failure_rejects_the_request_and_is_counted() {
    let mut test = Test::new("{}");
    test.data.refuse_writes();
    let rejected = test.answer(get());
    assert_eq!(rejected.verdict.map(|v| (v.outcome, v.wait_us)), Some((Outcome::Rejected, SECOND)));
    let failures = StatUpdate::Count("rate_limiter_store_failures_total.reason.contended".to_owned(), 1);
    assert!(test.limiter.drain_metrics().contains(&failures));
}

#[test]
fn a_missing_or_empty_token_does_not_match_the_hash_of_the_empty_string() {
    let data = FakeData::at(SECOND);
    let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let json = format!(r#"{{"admin": {{"token_sha256": "{hash}"}}}}"#);
    let plugin = PluginConfig::parse(json.as_bytes(), &Environment::default()).expect("a configuration");
    let mut limiter = Limiter::new(plugin, &data, (1, 2)).expect("a limiter");
    for request in [FakeRequest::post("/system/health"), admin("")] {
        assert_eq!(replied(decide(&mut limiter, &data, &request, START)).0, 403);
    }
}

#[test]
fn concurrent_wrong_tokens_are_all_counted() {
    let mut test = Test::new("{}");
    for _ in 0..4 {
        assert_eq!(test.reply(admin("wrong")).0, 403);
    }
    test.data.before_next_write(|data| {
        let decision = decide(&mut limiter(data, "{}"), data, &admin("wrong"), START);
        assert_eq!(replied(decision).0, 403, "the fifth comes from another worker");
    });
    assert_eq!(test.reply(admin("wrong")).0, 429, "this is the sixth");
}

#[test]
fn samples_are_counted_for_each_tier_and_handed_over_once() {
    let mut test = Test::new(r#"{"api_keys": {"pro": "pro"}}"#);
    let at_first = test.limiter.drain_metrics();
    for status in ["allowed", "limited", "exempt", "blocked", "shed"] {
        for tier in ["free", "pro", "enterprise"] {
            let name = format!("rate_limiter_requests_total.tier.{tier}.status.{status}");
            assert!(at_first.contains(&StatUpdate::Count(name.clone(), 0)), "{name} exists from the start");
        }
    }
    assert!(at_first.contains(&StatUpdate::DefineGauge("rate_limiter_tokens_remaining.tier.pro".to_owned())));
    assert!(at_first.contains(&StatUpdate::SetGauge("rate_limiter_system_degraded".to_owned(), 0)));
    for _ in 0..12 {
        test.decide(get());
    }
    test.decide(keyed("pro"));
    let count =
        |name: &str, count| StatUpdate::Count(format!("rate_limiter_requests_total.tier.{name}"), count);
    let level = |name: &str, level| StatUpdate::SetGauge(format!("rate_limiter_{name}"), level);
    let wanted = [
        count("free.status.allowed", 10),
        count("free.status.limited", 2),
        level("tokens_remaining.tier.free", 0),
        count("pro.status.allowed", 1),
        level("tokens_remaining.tier.pro", 24),
    ];
    assert_eq!(test.limiter.drain_metrics(), wanted);
    assert_eq!(test.limiter.drain_metrics(), []);
}

#[test]
fn tiers_beyond_the_bound_are_counted_together() {
    let list = |part: fn(usize) -> String| (0..MAX_TIER_SERIES + 2).map(part).collect::<Vec<_>>().join(",");
    let tiers = list(|n| format!(r#""t{n}": {{"base": {{"capacity": 9, "refill_rate": 1}}}}"#));
    let keys = list(|n| format!(r#""key-{n}": "t{n}""#));
    let json = format!(r#"{{"default_tier": "t0", "tiers": {{{tiers}}}, "api_keys": {{{keys}}}}}"#);
    let mut test = Test::new(&json);
    for n in 0..MAX_TIER_SERIES + 2 {
        test.decide(keyed(format!("key-{n}")));
    }
    let mut counted = BTreeMap::new();
    for update in test.limiter.drain_metrics() {
        if let StatUpdate::Count(name, count) = update {
            *counted.entry(name).or_insert(0) += count;
        }
    }
    let requests = "rate_limiter_requests_total.tier.";
    assert_eq!(counted.keys().filter(|name| name.starts_with(requests)).count(), (MAX_TIER_SERIES + 1) * 5);
    assert_eq!(counted[&format!("{requests}other_tiers.status.allowed")], 2);
    assert_eq!(counted[&format!("{requests}t{}.status.allowed", MAX_TIER_SERIES - 1)], 1);
}

#[test]
fn a_fractional_limit_is_reported_as_whole_places() {
    for (limit, shown) in [(13.0, 13), (13.078, 14)] {
        let mut metrics = Metrics::default();
        let mut record = ClusterRecord::default();
        record.limit.target = limit;
        metrics.cluster(b"upstream", &record);
        let level = StatUpdate::SetGauge(format!("{CLUSTER_LIMIT}.cluster.upstream"), shown);
        assert!(metrics.drain().contains(&level), "{limit}");
    }
}
