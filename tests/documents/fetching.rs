//! Which worker fetches, and when.

use super::*;

/// A limiter without documents and one with some, and how soon each tries a document again that it could not reach.
fn retrying() -> [(FakeData, Limiter, u64); 2] {
    [(false, SECOND / 10), (true, SECOND)].map(|(published, retry_us)| {
        let data = FakeData::at(SECOND);
        let mut limiter = limiter(&data, SOURCE);
        if published {
            publish(&mut limiter, texts(TIERS, "{}"), &data);
            limiter.drain_metrics();
        }
        (data, limiter, retry_us)
    })
}

#[test]
fn a_failed_fetch_is_retried_soon_and_reported_at_the_second_failure() {
    for (data, mut limiter, retry_us) in retrying() {
        let mut rejections = || {
            let tiers = Some(Err("tiers: found status 503, wanted 200".to_owned()));
            publish(&mut limiter, Fetched { tiers, api_keys: None }, &data);
            limiter
                .drain_metrics()
                .iter()
                .filter(|update| matches!(update, StatUpdate::Count(_, 1..)))
                .count()
        };
        let records = records("default", 20);
        assert!(claims(&data, &records));
        assert_eq!(rejections(), 0);
        data.advance(retry_us - 1);
        assert!(!claims(&data, &records), "a tick early");
        data.advance(1);
        assert!(claims(&data, &records));
        assert_eq!(rejections(), 1);
        for next_us in (1..9).map(|doublings| (retry_us << doublings).min(SECOND)) {
            data.advance(next_us - 1);
            assert!(!claims(&data, &records), "each time later, up to a second");
            data.advance(1);
            assert!(claims(&data, &records));
            assert_eq!(rejections(), 0);
        }
    }
}

#[test]
fn one_worker_fetches_for_all_once_in_a_period() {
    let data = FakeData::at(SECOND);
    assert!(claims(&data, &records("default", 20)));
    assert!(!claims(&data, &records("default", 20)));
    assert!(claims(&data, &records("other", 20)));
    data.advance(20 * SECOND - 1);
    assert!(!claims(&data, &records("default", 20)));
    data.advance(1);
    assert!(claims(&data, &records("default", 20)));
    assert!(claims(&data, &records("default", 5)), "a shorter period starts at once");
}

#[test]
fn a_fetch_of_a_superseded_worker_is_repeated_after_six_seconds_while_documents_are_missing() {
    let (data, records) = (FakeData::at(SECOND), records("default", 86_400));
    assert!(claim_fetch(&data, &records, Duration::ZERO, true));
    data.advance(6 * SECOND - 1);
    assert!(!claim_fetch(&data, &records, Duration::ZERO, true));
    data.advance(1);
    assert!(!claims(&data, &records), "documents are in force");
    assert!(claim_fetch(&data, &records, Duration::ZERO, true));
    assert!(!claim_fetch(&data, &records, Duration::ZERO, true));
}

#[test]
fn a_publication_that_is_dropped_makes_a_fetch_due() {
    let (data, records) = (FakeData::at(SECOND), records("default", 86_400));
    let mut superseded =
        limiter(&data, &SOURCE.replace("\"cluster\"", "\"ttl_seconds\": 86400, \"cluster\""));
    assert!(claims(&data, &records));
    superseded.begin_publication(texts(TIERS, &many_keys(2_000, "gold")), &data);
    superseded.publish(&data);
    assert!(superseded.is_publishing());
    assert!(!claims(&data, &records));
    superseded.drop_publication(&data);
    assert!(claims(&data, &records));
    assert!(!claims(&data, &records), "once");
    superseded.drop_publication(&data);
    assert!(!claims(&data, &records), "nothing was dropped");
}

#[test]
fn a_busy_worker_leaves_a_fetch_to_others_for_a_moment() {
    let data = FakeData::at(SECOND);
    assert!(claims(&data, &records("default", 20)));
    data.advance(20 * SECOND);
    assert!(!claim_fetch(&data, &records("default", 20), Duration::from_secs(1), false));
    data.advance(SECOND);
    assert!(
        claim_fetch(&data, &records("default", 20), Duration::from_secs(1), false),
        "it fetches if no other worker has"
    );
}

#[test]
fn no_worker_fetches_during_a_publication_unless_the_publisher_is_silent() {
    let data = FakeData::at(SECOND);
    let mut busy = limiter(&data, SOURCE);
    let records = records("default", 1);
    busy.begin_publication(texts(TIERS, &many_keys(2_000, "gold")), &data);
    busy.publish(&data);
    data.advance(2 * SECOND);
    assert!(!claims(&data, &records));
    busy.publish(&data);
    data.advance(3 * SECOND);
    assert!(!claims(&data, &records), "the publisher has worked again");
    data.advance(2 * SECOND);
    assert!(claims(&data, &records), "five seconds after the publisher's last work");
}

#[test]
fn a_wrong_document_does_not_delay_the_retry_of_an_unreachable_one() {
    for (data, mut limiter, retry_us) in retrying() {
        let records = records("default", 20);
        assert!(claims(&data, &records));
        let mut one_unreachable = texts("{", "");
        one_unreachable.api_keys = Some(Err("api_keys: found status 503, wanted 200".to_owned()));
        publish(&mut limiter, one_unreachable, &data);
        assert_eq!(rejected(&mut limiter), 1, "the wrong one");
        data.advance(retry_us - 1);
        assert!(!claims(&data, &records), "a tick early");
        data.advance(1);
        assert!(claims(&data, &records));
        publish(&mut limiter, texts("{", r#"{"k": "free"}"#), &data);
        assert_eq!(rejected(&mut limiter), 0, "the wrong one is reported once");
        let request = keyed("k");
        assert_eq!(counted(&mut limiter, &data, &request).0, "free");
        data.advance(retry_us);
        assert!(!claims(&data, &records), "a wrong document is fetched at the usual time");
    }
}
