//! Documents: who fetches them, what of them holds for whom, and what becomes of bad ones.

mod common;

use common::{FakeData, FakeRequest, SECOND, limiter, seen};
use dynamic_rate_limiter::config::ConfigSource;
use dynamic_rate_limiter::documents::{Fetched, Texts, claim_fetch};
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::metrics::Sample;

const SOURCE: &str =
    r#"{"config_source": {"cluster": "files", "tiers": "/tiers.json", "api_keys": "/api_keys.json"}}"#;

fn texts(tiers: &str, api_keys: &str) -> Fetched {
    Fetched { tiers: Some(Ok(tiers.into())), api_keys: Some(Ok(api_keys.into())) }
}

fn source(ttl_seconds: u32) -> ConfigSource {
    let path = |path: &str| Some(path.to_owned());
    let [tiers, api_keys] = [path("/tiers.json"), path("/api_keys.json")];
    ConfigSource { cluster: "files".to_owned(), tiers, api_keys, ttl_seconds }
}

const TIERS: &str = r#"{"free": {"base": {"capacity": 3, "refill_rate": 1}}, "gold": {"base": {"capacity": 100, "refill_rate": 1}}}"#;

#[test]
fn documents_that_one_worker_fetched_hold_for_all_at_their_next_request() {
    let data = FakeData::at(SECOND);
    let (mut first, mut second) = (limiter(&data, SOURCE), limiter(&data, SOURCE));
    let gold = FakeRequest::get("/").with("x-api-key", "canary-key");
    assert_eq!(seen(&mut second, &data, &gold), ("free".to_owned(), Some(9)));
    first.publish(&source(20), texts(TIERS, r#"{"canary-key": {"tier": "gold", "id": "g"}}"#), &data);
    assert_eq!(seen(&mut second, &data, &gold), ("gold".to_owned(), Some(99)));
    assert_eq!(seen(&mut second, &data, &FakeRequest::get("/")).1, Some(2), "nine tokens become three");
    let mut third = limiter(&data, SOURCE);
    assert_eq!(seen(&mut third, &data, &gold), ("gold".to_owned(), Some(98)), "a reload finds them at once");
    let published = Texts::published(&data, "default", &source(20)).expect("published texts");
    assert!(!String::from_utf8_lossy(&published.api_keys.unwrap_or_default()).contains("canary-key"));
}

#[test]
fn documents_hold_for_configurations_with_the_same_source_alone() {
    let data = FakeData::at(SECOND);
    limiter(&data, SOURCE).publish(&source(20), texts(TIERS, r#"{"k": "gold"}"#), &data);
    let gold = FakeRequest::get("/").with("x-api-key", "k");
    assert_eq!(seen(&mut limiter(&data, SOURCE), &data, &gold).0, "gold");
    let slower = SOURCE.replace("\"cluster\"", "\"ttl_seconds\": 60, \"cluster\"");
    assert_eq!(
        seen(&mut limiter(&data, &slower), &data, &gold).0,
        "gold",
        "how often it is read does not matter"
    );
    for other in [SOURCE.replace("files", "others"), SOURCE.replace("/tiers", "/t"), "{}".to_owned()] {
        assert_eq!(seen(&mut limiter(&data, &other), &data, &gold).0, "free", "{other}");
    }
}

#[test]
fn bad_documents_change_nothing_and_are_complained_about_once() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    limiter.publish(&source(20), texts(TIERS, r#"{"k": "gold"}"#), &data);
    let gold = FakeRequest::get("/").with("x-api-key", "k");
    let rejected = |limiter: &mut Limiter| {
        let counted = |sample: &Sample| match sample {
            Sample::Count(name, count) if name.ends_with("result.rejected") => Some(*count),
            _ => None,
        };
        limiter.metrics.drain().iter().find_map(counted).unwrap_or(0)
    };
    let bad = [
        texts("{", r#"{"k": "gold"}"#),
        texts(r#"{"free": {}}"#, r#"{"k": "gold"}"#),
        texts(TIERS, r#"{"k": "platinum"}"#),
        texts(r#"{"other": {"unlimited": true}}"#, r#"{"k": "gold"}"#),
    ];
    for (count, texts) in (1..).zip(bad) {
        limiter.publish(&source(20), texts.clone(), &data);
        assert_eq!(rejected(&mut limiter), 1, "{texts:?}");
        limiter.publish(&source(20), texts, &data);
        assert_eq!(rejected(&mut limiter), 0, "the same again is no news");
        assert_eq!(seen(&mut limiter, &data, &gold), ("gold".to_owned(), Some(100 - count)));
    }
    limiter.publish(&source(20), texts(TIERS, r#"{"k": "gold"}"#), &data);
    limiter.publish(&source(20), texts("{", r#"{"k": "gold"}"#), &data);
    assert_eq!(rejected(&mut limiter), 1, "news again after a good one");
    limiter.publish(&source(20), texts("{ ", r#"{"k": "gold"}"#), &data);
    assert_eq!(rejected(&mut limiter), 1, "another text is news too");
}

#[test]
fn a_bad_document_does_not_hold_up_the_other() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let gold = FakeRequest::get("/").with("x-api-key", "k");
    limiter.publish(&source(20), texts(TIERS, "{"), &data);
    assert_eq!(seen(&mut limiter, &data, &gold), ("free".to_owned(), Some(2)), "the tiers hold");
    limiter.publish(&source(20), texts("{", r#"{"k": "gold"}"#), &data);
    assert_eq!(seen(&mut limiter, &data, &gold), ("gold".to_owned(), Some(99)), "and the keys too");
    let unreachable = Fetched {
        tiers: Some(Ok(TIERS.replace("100", "50").into())),
        api_keys: Some(Err("api_keys: found status 503, wanted 200".to_owned())),
    };
    limiter.publish(&source(20), unreachable, &data);
    assert_eq!(seen(&mut limiter, &data, &gold), ("gold".to_owned(), Some(49)), "the last good keys stay");
}

#[test]
fn a_document_that_cannot_be_fetched_is_tried_again_soon_and_complained_about_at_the_second_time() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let mut rejections = || {
        let tiers = Some(Err("tiers: found status 503, wanted 200".to_owned()));
        limiter.publish(&source(20), Fetched { tiers, api_keys: None }, &data);
        limiter.metrics.drain().iter().filter(|sample| matches!(sample, Sample::Count(_, 1..))).count()
    };
    assert!(claim_fetch(&data, "default", &source(20)));
    assert_eq!(rejections(), 0);
    data.advance(SECOND - 1);
    assert!(!claim_fetch(&data, "default", &source(20)), "a tick early");
    data.advance(1);
    assert!(claim_fetch(&data, "default", &source(20)));
    assert_eq!(rejections(), 1);
    data.advance(SECOND);
    assert!(claim_fetch(&data, "default", &source(20)));
    assert_eq!(rejections(), 0);
}

#[test]
fn one_worker_fetches_for_all_once_in_a_period() {
    let data = FakeData::at(SECOND);
    assert!(claim_fetch(&data, "default", &source(20)));
    assert!(!claim_fetch(&data, "default", &source(20)));
    assert!(claim_fetch(&data, "other", &source(20)));
    data.advance(20 * SECOND - 1);
    assert!(!claim_fetch(&data, "default", &source(20)));
    data.advance(1);
    assert!(claim_fetch(&data, "default", &source(20)));
    assert!(claim_fetch(&data, "default", &source(5)), "a shorter period starts at once");
}
