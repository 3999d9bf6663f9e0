//! Documents: fetching, publication to all workers, and invalid documents.

mod fetching;
mod large;

use std::time::Duration;

use dynamic_rate_limiter::admission::Decision;
use dynamic_rate_limiter::config::{ConfigSource, Environment, PluginConfig};
use dynamic_rate_limiter::control::Control;
use dynamic_rate_limiter::documents::{
    Fetched, MAX_DOCUMENT_BYTES, Publication, PublicationOutcome, SourceRecords, claim_fetch,
};
use dynamic_rate_limiter::identity::KeyHash;
use dynamic_rate_limiter::in_force::DOCUMENT_WAIT;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::metrics::StatUpdate;
use dynamic_rate_limiter::request::DecisionStart;
use dynamic_rate_limiter::store::SharedData;
use dynamic_rate_limiter::time::{StoreTime, whole_micros};
use harness::{FakeData, FakeRequest, SECOND, START, counted, decide, keyed, limiter};

const SOURCE: &str =
    r#"{"config_source": {"cluster": "files", "tiers": "/tiers.json", "api_keys": "/api_keys.json"}}"#;

fn texts(tiers: &str, api_keys: &str) -> Fetched {
    Fetched { tiers: Some(Ok(tiers.into())), api_keys: Some(Ok(api_keys.into())) }
}

fn records(namespace: &str, ttl_seconds: u32) -> SourceRecords {
    let path = |path: &str| Some(path.to_owned());
    let [tiers, api_keys] = [path("/tiers.json"), path("/api_keys.json")];
    SourceRecords::new(namespace, &ConfigSource { cluster: "files".to_owned(), tiers, api_keys, ttl_seconds })
}

/// Whether an idle worker fetches the documents now, if they are in force.
fn claims(data: &FakeData, records: &SourceRecords) -> bool {
    claim_fetch(data, records, Duration::ZERO, false)
}

/// Publishes the documents; returns the number of slices.
fn publish(limiter: &mut Limiter, fetched: Fetched, data: &FakeData) -> usize {
    limiter.begin_publication(fetched, data);
    for slices in 0..100_000 {
        if !limiter.is_publishing() {
            return slices;
        }
        limiter.publish(data);
    }
    panic!("the publication does not end");
}

/// Publishes the documents without a limiter; returns the number of slices and what is reported.
fn publish_alone(fetched: Fetched, data: &FakeData) -> (usize, Option<String>) {
    publish_with_seed(1, fetched, data)
}

fn publish_with_seed(seed: u64, fetched: Fetched, data: &FakeData) -> (usize, Option<String>) {
    let plugin =
        PluginConfig::parse(SOURCE.as_bytes(), &Environment::default()).expect("a good configuration");
    let mut publication = Publication::new(fetched, &plugin, records("default", 20), seed, data);
    let outcome = (1..1_000).find_map(|slices| Some((slices, publication.work(&plugin, data)?)));
    let Some((slices, PublicationOutcome::Finished(finished))) = outcome else { panic!("{outcome:?}") };
    (slices, finished.complaint)
}

/// How many rejections were counted since the last call.
fn rejected(limiter: &mut Limiter) -> u64 {
    let counted = |update: &StatUpdate| match update {
        StatUpdate::Count(name, count) if name.ends_with("result.rejected") => Some(*count),
        _ => None,
    };
    limiter.drain_metrics().iter().find_map(counted).unwrap_or(0)
}

/// Whether a request waits for documents.
fn waits(limiter: &mut Limiter, data: &FakeData, request: &FakeRequest) -> bool {
    matches!(decide(limiter, data, request, START), Decision::AwaitsDocuments)
}

const TIERS: &str = r#"{"free": {"base": {"capacity": 3, "refill_rate": 1}}, "gold": {"base": {"capacity": 100, "refill_rate": 1}}}"#;

fn many_keys(count: usize, tier: &str) -> String {
    let keys: Vec<String> = (0..count).map(|key| format!(r#""key-{key}": "{tier}""#)).collect();
    format!("{{{}}}", keys.join(","))
}

#[test]
fn documents_apply_only_to_configurations_with_the_same_source() {
    let data = FakeData::at(SECOND);
    publish(&mut limiter(&data, SOURCE), texts(TIERS, r#"{"k": "gold"}"#), &data);
    let gold = keyed("k");
    assert_eq!(counted(&mut limiter(&data, SOURCE), &data, &gold).0, "gold");
    let slower = SOURCE.replace("\"cluster\"", "\"ttl_seconds\": 60, \"cluster\"");
    assert_eq!(counted(&mut limiter(&data, &slower), &data, &gold).0, "gold", "the period does not matter");
    for other in [SOURCE.replace("files", "others"), SOURCE.replace("/tiers", "/t")] {
        assert!(waits(&mut limiter(&data, &other), &data, &gold), "{other}");
    }
    assert_eq!(counted(&mut limiter(&data, "{}"), &data, &gold).0, "free");
}

#[test]
fn bad_documents_change_nothing_and_are_reported_once() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    publish(&mut limiter, texts(TIERS, r#"{"k": "gold"}"#), &data);
    let gold = keyed("k");
    let bad = [
        texts("{", r#"{"k": "gold"}"#),
        texts(r#"{"free": {}}"#, r#"{"k": "gold"}"#),
        texts(TIERS, r#"{"k": "platinum"}"#),
        texts(r#"{"other": {"unlimited": true}}"#, r#"{"k": "gold"}"#),
        texts(TIERS, &" ".repeat(MAX_DOCUMENT_BYTES + 1)),
    ];
    for (count, texts) in (1..).zip(bad) {
        publish(&mut limiter, texts.clone(), &data);
        assert_eq!(rejected(&mut limiter), 1, "{texts:?}");
        publish(&mut limiter, texts, &data);
        assert_eq!(rejected(&mut limiter), 0, "the same document is not reported again");
        assert_eq!(counted(&mut limiter, &data, &gold), ("gold".to_owned(), Some(100 - count)));
    }
    publish(&mut limiter, texts(TIERS, r#"{"k": "gold"}"#), &data);
    publish(&mut limiter, texts("{", r#"{"k": "gold"}"#), &data);
    assert_eq!(rejected(&mut limiter), 1, "reported again after a good one");
    publish(&mut limiter, texts("{ ", r#"{"k": "gold"}"#), &data);
    assert_eq!(rejected(&mut limiter), 1, "another text is reported too");
}

#[test]
fn a_bad_document_does_not_block_the_other() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let gold = keyed("k");
    publish(&mut limiter, texts(TIERS, "{"), &data);
    assert_eq!(counted(&mut limiter, &data, &gold), ("free".to_owned(), Some(2)), "the tiers apply");
    publish(&mut limiter, texts("{", r#"{"k": "gold"}"#), &data);
    assert_eq!(counted(&mut limiter, &data, &gold), ("gold".to_owned(), Some(99)), "the keys apply");
    let unreachable = Fetched {
        tiers: Some(Ok(TIERS.replace("100", "50").into())),
        api_keys: Some(Err("api_keys: found status 503, wanted 200".to_owned())),
    };
    publish(&mut limiter, unreachable, &data);
    assert_eq!(counted(&mut limiter, &data, &gold), ("gold".to_owned(), Some(49)), "the last good keys stay");
}

#[test]
fn of_two_new_documents_that_do_not_fit_the_one_that_fits_applies() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let without_gold = r#"{"free": {"base": {"capacity": 4, "refill_rate": 1}}}"#;
    let new_tiers = TIERS.replace("100", "50");
    let gold_keys = r#"{"k": "gold"}"#;
    let cases = [
        ("at a start, tiers alone", texts(TIERS, r#"{"k": "platinum"}"#), ["free", "free"]),
        ("both fit", texts(TIERS, gold_keys), ["gold", "free"]),
        (
            "a key is added beside wrong tiers",
            texts(without_gold, r#"{"k": "gold", "l": "gold"}"#),
            ["gold", "gold"],
        ),
        ("and another is revoked", texts(without_gold, r#"{"l": "gold"}"#), ["free", "gold"]),
        ("limits change beside wrong keys", texts(&new_tiers, r#"{"k": "platinum"}"#), ["free", "gold"]),
        ("neither fits", texts(without_gold, r#"{"k": "platinum"}"#), ["free", "gold"]),
    ];
    for (case, fetched, tiers) in cases {
        publish(&mut limiter, fetched.clone(), &data);
        assert_eq!(rejected(&mut limiter), u64::from(case != "both fit"), "{case}");
        assert_eq!(publish(&mut limiter, fetched, &data), 1, "{case}: parsed again");
        assert_eq!(rejected(&mut limiter), 0, "{case}: reported again");
        let found = ["k", "l"].map(|key| counted(&mut limiter, &data, &keyed(key)).0);
        assert_eq!(found, tiers, "{case}");
    }
    assert_eq!(counted(&mut limiter, &data, &keyed("l")).1, Some(47), "the new limit of gold holds");
}

#[test]
fn tiers_that_keys_do_not_fit_apply_in_any_order() {
    let (tiers, keys) = (Some(Ok(TIERS.into())), Some(Ok(r#"{"k": "platinum"}"#.into())));
    let unreachable = || Some(Err("tiers: found status 503, wanted 200".to_owned()));
    for first in [unreachable(), tiers.clone()] {
        let data = FakeData::at(SECOND);
        let mut limiter = limiter(&data, SOURCE);
        publish(&mut limiter, Fetched { tiers: first.clone(), api_keys: keys.clone() }, &data);
        publish(&mut limiter, Fetched { tiers: tiers.clone(), api_keys: keys.clone() }, &data);
        let found = counted(&mut limiter, &data, &keyed("k"));
        assert_eq!(found, ("free".to_owned(), Some(2)), "first {first:?}");
    }
}

#[test]
fn keys_that_fit_the_first_tiers_stay_beside_wrong_new_keys() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let keys = |text: &str| Some(Ok(text.into()));
    publish(&mut limiter, Fetched { tiers: None, api_keys: keys(r#"{"k": "gold"}"#) }, &data);
    publish(&mut limiter, texts(TIERS, r#"{"k": "platinum"}"#), &data);
    assert_eq!(counted(&mut limiter, &data, &keyed("k")), ("gold".to_owned(), Some(99)));
}

#[test]
fn keys_that_do_not_fit_the_first_tiers_are_reported_with_their_reason() {
    let data = FakeData::at(SECOND);
    let old = Some(Ok(r#"{"k": "platinum"}"#.into()));
    publish_alone(Fetched { tiers: None, api_keys: old }, &data);
    let complaint = publish_alone(texts(TIERS, "{"), &data).1.expect("a complaint");
    for reason in ["api_keys: not valid JSON", "api_keys left out: api_keys[1]: found the name of no tier"] {
        assert!(complaint.contains(reason), "{complaint}");
    }

    let (data, keys) = (FakeData::at(SECOND), r#"{"k": "platinum"}"#);
    publish_alone(Fetched { tiers: None, api_keys: Some(Ok(keys.into())) }, &data);
    let unreachable = Some(Err("api_keys: found status 503, wanted 200".to_owned()));
    publish_alone(Fetched { tiers: Some(Ok(TIERS.into())), api_keys: unreachable }, &data);
    let complaint = publish_alone(texts(TIERS, keys), &data).1.expect("a complaint");
    assert!(complaint.contains("api_keys[1]: found the name of no tier"), "{complaint}");
}

#[test]
fn a_wrong_document_and_an_outage_are_each_reported_once() {
    let data = FakeData::at(SECOND);
    let wrong = || texts("{", r#"{"k": "gold"}"#);
    let unreachable = |status: u32| Fetched {
        tiers: Some(Err(format!("tiers: found status {status}, wanted 200"))),
        api_keys: Some(Ok(r#"{"k": "gold"}"#.into())),
    };
    let steps = [
        (wrong(), Some("tiers: not valid JSON")),
        (wrong(), None),
        (unreachable(503), None),
        (unreachable(503), Some("tiers: found status 503")),
        (unreachable(503), None),
        (unreachable(404), Some("tiers: found status 404")),
        (unreachable(503), None),
        (unreachable(404), None),
        (unreachable(500), Some("tiers: found status 500")),
        (wrong(), None),
        (unreachable(404), None),
        (unreachable(404), Some("tiers: found status 404")),
        (texts("[", r#"{"k": "gold"}"#), Some("tiers: not valid JSON")),
    ];
    for (step, (fetched, expected)) in steps.into_iter().enumerate() {
        let complaint = publish_alone(fetched, &data).1;
        let is_expected = match (&complaint, expected) {
            (Some(found), Some(expected)) => found.contains(expected),
            (found, expected) => found.is_none() && expected.is_none(),
        };
        assert!(is_expected, "step {step}: {complaint:?}, expected {expected:?}");
    }
}

#[test]
fn requests_wait_for_documents_until_a_second_after_the_first_one() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let mut waits_at = |at_us: u64| {
        data.set_time(at_us);
        let start = DecisionStart { at: StoreTime::from_micros(at_us), ..START };
        matches!(decide(&mut limiter, &data, &FakeRequest::get("/"), start), Decision::AwaitsDocuments)
    };
    let (first_us, hold_us) = (40 * SECOND, whole_micros(DOCUMENT_WAIT));
    assert!(waits_at(first_us), "independent of the start of the worker");
    assert!(waits_at(first_us + hold_us - 1));
    assert!(!waits_at(first_us + hold_us));
    assert!(!waits_at(first_us + 2 * hold_us));
}

#[test]
fn requests_wait_for_missing_documents_and_not_for_rejected_ones() {
    let unreachable = || Some(Err("api_keys: found status 503, wanted 200".to_owned()));
    let cases = [
        (texts("{", "{"), false),
        (texts(TIERS, r#"{"k": "platinum"}"#), false),
        (Fetched { tiers: Some(Ok(TIERS.into())), api_keys: unreachable() }, true),
        (Fetched { tiers: Some(Ok(b"{".to_vec())), api_keys: unreachable() }, true),
    ];
    for (fetched, waits_still) in cases {
        let data = FakeData::at(SECOND);
        let mut limiter = limiter(&data, SOURCE);
        assert!(waits(&mut limiter, &data, &FakeRequest::get("/")));
        assert!(matches!(
            decide(&mut limiter, &data, &FakeRequest::get("/health"), START),
            Decision::Replied(_)
        ));
        publish(&mut limiter, fetched.clone(), &data);
        assert_eq!(waits(&mut limiter, &data, &FakeRequest::get("/")), waits_still, "{fetched:?}");
    }
}

#[test]
fn a_document_that_fits_a_new_configuration_applies_without_a_change_of_its_text() {
    let source = r#""config_source": {"cluster": "files", "tiers": "/tiers.json"}"#;
    let with = |rest: &str| format!("{{{source}, {rest}}}");
    let document = || Fetched {
        tiers: Some(Ok(br#"{"pro": {"base": {"capacity": 7, "refill_rate": 1}}}"#.to_vec())),
        api_keys: None,
    };
    let good = r#""default_tier": "pro", "api_keys": {"k": "pro"}"#;
    for misfit in [
        r#""default_tier": "pro", "api_keys": {"k": "gold"}"#,
        r#""default_tier": "free", "api_keys": {"k": "pro"}"#,
    ] {
        let data = FakeData::at(SECOND);
        publish(&mut limiter(&data, &with(misfit)), document(), &data);
        let mut limiter = limiter(&data, &with(good));
        publish(&mut limiter, document(), &data);
        let request = keyed("k");
        assert_eq!(counted(&mut limiter, &data, &request), ("pro".to_owned(), Some(6)), "{misfit}");
    }
}

#[test]
fn documents_that_do_not_fit_a_newer_configuration_keep_their_keys_and_tiers() {
    let data = FakeData::at(SECOND);
    publish(&mut limiter(&data, SOURCE), texts(TIERS, r#"{"k": "gold"}"#), &data);
    let misfit = SOURCE.replacen('{', r#"{"default_tier": "platinum", "#, 1);
    let mut limiter = limiter(&data, &misfit);
    let request = keyed("k");
    assert_eq!(counted(&mut limiter, &data, &request), ("gold".to_owned(), Some(99)));
    assert_eq!(counted(&mut limiter, &data, &FakeRequest::get("/")), ("free".to_owned(), Some(2)));
}

#[test]
fn a_default_tier_that_is_missing_means_the_least_important_one() {
    let data = FakeData::at(SECOND);
    let tier = |name, priority| format!(r#""{name}": {{"unlimited": true, "priority": {priority}}}"#);
    let tiers = format!("{{{}, {}}}", tier("gold", 9), tier("free", 1));
    publish(&mut limiter(&data, SOURCE), texts(&tiers, "{}"), &data);
    let mut limiter = limiter(&data, &SOURCE.replacen('{', r#"{"default_tier": "fre", "#, 1));
    assert_eq!(counted(&mut limiter, &data, &FakeRequest::get("/")).0, "free");
}

#[test]
fn documents_that_could_not_be_announced_are_announced_at_the_next_tick() {
    let data = FakeData::at(SECOND);
    let (mut publisher, mut other) = (limiter(&data, SOURCE), limiter(&data, SOURCE));
    let gold = keyed("k");
    publisher.begin_publication(texts(TIERS, r#"{"k": "gold"}"#), &data);
    data.refuse_writes_to(Some(&Control::key("default")));
    (0..100).for_each(|_| publisher.publish(&data));
    data.refuse_writes_to(None);
    assert!(!publisher.is_publishing());
    assert!(waits(&mut other, &data, &gold), "it does not know of the documents");
    publisher.publish(&data);
    for worker in [&mut publisher, &mut other] {
        assert_eq!(counted(worker, &data, &gold).0, "gold");
    }
    data.take_calls();
    publisher.publish(&data);
    assert_eq!(data.take_calls(), (0, 0), "and once");
}
