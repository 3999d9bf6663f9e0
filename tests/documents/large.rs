//! Documents of thousands of keys: parsed once, in slices.

use super::*;

fn key(number: usize) -> FakeRequest {
    keyed(format!("key-{number}"))
}

#[test]
fn no_document_can_aim_at_a_record_of_the_table() {
    let sizes = |seed| {
        let data = FakeData::at(SECOND);
        assert_eq!(publish_with_seed(seed, texts(TIERS, &many_keys(1_000, "gold")), &data).1, None);
        let mut records: Vec<_> = data.keys().into_iter().filter(|key| key.contains("/k1/")).collect();
        records.sort();
        records.iter().map(|key| data.get(key).expect("a record").0.len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(1), sizes(1));
    assert_ne!(sizes(1), sizes(2), "the seed decides which key is in which record");
}

#[test]
fn a_large_document_is_processed_in_slices_and_applied_at_once() {
    let data = FakeData::at(SECOND);
    let (mut publisher, mut other) = (limiter(&data, SOURCE), limiter(&data, SOURCE));
    publish(&mut publisher, texts(TIERS, &many_keys(5_000, "gold")), &data);
    for number in [0, 17, 4_999] {
        assert_eq!(counted(&mut other, &data, &key(number)), ("gold".to_owned(), Some(99)));
    }
    assert_eq!(counted(&mut other, &data, &key(5_000)).0, "free");
    publisher.begin_publication(texts(TIERS, &many_keys(4_000, "free")), &data);
    let mut slices = 0;
    while publisher.is_publishing() {
        assert_eq!(counted(&mut other, &data, &key(slices % 5_000)).0, "gold", "after {slices} slices");
        publisher.publish(&data);
        slices += 1;
    }
    assert!(slices > 10, "{slices}");
    for number in [0, 17, 3_999, 4_000] {
        assert_eq!(counted(&mut other, &data, &key(number)).0, "free");
    }
    let records = data.keys().len();
    for round in 0..10 {
        publish(&mut publisher, texts(TIERS, &many_keys(5_000 - round, "gold")), &data);
    }
    assert!(data.keys().len() <= records, "at most two tables exist");
}

/// Shared data has one lock and copies its values, so the cost of a publication is counted there.
#[test]
fn a_document_that_has_not_changed_is_not_parsed_again_good_or_bad() {
    let data = FakeData::at(SECOND);
    let mut limiter = limiter(&data, SOURCE);
    let keys = many_keys(5_000, "gold");
    let two = format!(r#"{{{}, "a": 1}}"#, &keys[1..keys.len() - 1]);
    let unknown_tier = many_keys(5_000, "platinum");
    for (keys, what) in [(&keys, "good"), (&two, "bad"), (&unknown_tier, "without a tier")] {
        let first = publish(&mut limiter, texts(TIERS, keys), &data);
        data.take_calls();
        let again = publish(&mut limiter, texts(TIERS, keys), &data);
        let (reads, writes) = data.take_calls();
        assert!(first > 10 && again == 1, "{what}: {first} slices, then {again}");
        assert!(reads < 10 && writes < 3, "{what}: {reads} reads, {writes} writes");
    }
    // With other tiers these keys are parsed again.
    let platinum = TIERS.replace("gold", "platinum");
    publish(&mut limiter, texts(&platinum, &unknown_tier), &data);
    assert_eq!(counted(&mut limiter, &data, &key(1)).0, "platinum");
}

#[test]
fn an_older_publication_changes_nothing_after_a_newer_one() {
    let data = FakeData::at(SECOND);
    let (mut slow, mut fast) = (limiter(&data, SOURCE), limiter(&data, SOURCE));
    publish(&mut fast, texts(TIERS, &many_keys(3_000, "free")), &data);
    slow.begin_publication(texts(TIERS, &many_keys(3_000, "gold")), &data);
    (0..5).for_each(|_| slow.publish(&data));
    publish(&mut fast, texts(TIERS, &many_keys(3_001, "free")), &data);
    while slow.is_publishing() {
        slow.publish(&data);
        assert_eq!(counted(&mut fast, &data, &key(1)).0, "free");
    }
    for worker in [&mut slow, &mut fast] {
        for number in 0..3_000 {
            let found = counted(worker, &data, &key(number)).0;
            assert_eq!(found, "free", "{number}");
        }
    }
}

#[test]
fn keys_and_ids_are_unique_across_a_large_document() {
    let data = FakeData::at(SECOND);
    let keys = many_keys(3_000, "gold");
    let with = |entry: &str| texts(TIERS, &format!("{}, {entry}}}", &keys[..keys.len() - 1]));
    let hash = KeyHash::of(b"key-7");
    let cases = [
        (
            r#""key-7": "free""#.to_owned(),
            "api_keys[3001]: found a key that another entry has too, wanted each once",
        ),
        (
            format!(r#""sha256:{}": "free""#, hash.to_hex()),
            "api_keys[3001]: found a key that another entry has too",
        ),
        (
            format!(r#""another": {{"tier": "free", "id": "{}"}}"#, hash.short_hex()),
            "which another entry has too, wanted an id of its own",
        ),
        (
            r#""another": {"tier": "free", "id": 7}"#.to_owned(),
            "api_keys[3001].id: found a number, wanted a string",
        ),
        (
            r#""another": "platinum""#.to_owned(),
            "api_keys[3001]: found the name of no tier (8 bytes), wanted one of the tiers free, gold",
        ),
        (
            r#""another": "free" "#.to_owned() + "}",
            "api_keys: not valid JSON: trailing characters at line 1 column",
        ),
    ];
    for (entry, expected) in cases {
        println!("{entry}");
        let complaint = publish_alone(with(&entry), &data).1.unwrap_or_default();
        assert!(complaint.contains(expected), "{entry}: {complaint}");
    }
}

#[test]
fn a_document_that_does_not_fit_beside_a_wrong_one_is_reported_and_not_parsed_again() {
    let (keys, gone) = (many_keys(5_000, "platinum"), r#"{"other": {"unlimited": true}}"#);
    // Five thousand keys of which one is wrong, beside tiers that lack the default tier.
    let wrong_keys = format!(r#"{{{}, "a": 1}}"#, &keys[1..keys.len() - 1]);
    let cases = [
        (texts("{", &keys), ["tiers: not valid JSON", "api_keys[1]: found the name of no tier"]),
        (texts(gone, &wrong_keys), ["default_tier: found", "api_keys[5001]: found a number"]),
    ];
    for (fetched, reasons) in cases {
        let data = FakeData::at(SECOND);
        publish_alone(texts(TIERS, r#"{"k": "gold"}"#), &data);
        let (slices, complaint) = publish_alone(fetched.clone(), &data);
        let complaint = complaint.expect("a complaint");
        assert!(slices > 5, "{slices}");
        assert!(reasons.iter().all(|reason| complaint.contains(reason)), "{complaint}");
        for _ in 0..2 {
            assert_eq!(publish_alone(fetched.clone(), &data), (1, None), "{complaint}");
        }
    }
}
