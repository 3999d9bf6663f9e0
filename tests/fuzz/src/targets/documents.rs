//! A tier document and a key document, separated by a zero byte: read in slices they have the same content as read at
//! once, each applies as a whole or not at all, both if they fit each other, all workers use the same content, and no key
//! is ever shown.

use dynamic_rate_limiter::config::{Config, KeyEntry, parse_key_document, parse_tier_document};
use dynamic_rate_limiter::documents::Fetched;
use dynamic_rate_limiter::limiter::Limiter;
use dynamic_rate_limiter::store::SharedData;
use dynamic_rate_limiter::tier::Tier;

use harness::{FakeData, FakeRequest, SECOND, START, decide, limiter};

const SOURCE: &str =
    r#"{"config_source": {"cluster": "files", "tiers": "/tiers.json", "api_keys": "/api_keys.json"}}"#;

/// More slices than any document needs: each is at least a thousand bytes.
const MAX_SLICES: usize = 100_000;

pub(super) fn check(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let [tiers, api_keys] = [parts.next(), parts.next()].map(|part| part.map(<[u8]>::to_vec));
    shows_no_key(api_keys.as_deref().unwrap_or_default());

    let data = FakeData::at(SECOND);
    let (mut first, mut second) = (limiter(&data, SOURCE), limiter(&data, SOURCE));
    let fetched = Fetched { tiers: tiers.clone().map(Ok), api_keys: api_keys.clone().map(Ok) };
    let before = said(first.config());
    publish(&mut first, fetched.clone(), &data);
    let force = said(first.config());
    let at_once = (
        tiers.map(|text| parse_tier_document(&text)).transpose(),
        api_keys.map(|text| parse_key_document(&text)).transpose(),
    );
    let has_tiers = |tiers: &[Tier]| first.config().tiers.iter().map(|tier| &**tier).eq(tiers);
    let has_keys = |keys: &[KeyEntry]| first.config().keys() == keys.len();
    match at_once {
        (Ok(Some(tiers)), Ok(Some(keys))) => {
            let is_tier = |name: &str| tiers.iter().any(|tier| tier.name == name);
            let fits = is_tier("free") && keys.iter().all(|entry| is_tier(&entry.tier));
            let (has_tiers, has_keys) = (has_tiers(&tiers), has_keys(&keys));
            let has_one = has_tiers && first.config().keys() == 0 || has_keys;
            assert!(if fits { has_tiers && has_keys } else { force == before || has_one }, "{force}");
        }
        (Ok(Some(tiers)), Ok(None)) if force != before => assert!(has_tiers(&tiers), "{force}"),
        (Ok(None), Ok(Some(keys))) if force != before => assert!(has_keys(&keys), "keys are lost on the way"),
        (Err(_), Err(_)) => assert_eq!(force, before, "an invalid document does not apply"),
        _ => {}
    }
    // Another worker uses it at its next request, and the same document again changes nothing.
    let changes = data.changes();
    decide(&mut second, &data, &FakeRequest::get("/"), START);
    assert_eq!(said(second.config()), force);
    publish(&mut second, fetched, &data);
    assert_eq!(data.changes(), changes, "published twice");
    // Bad documents change nothing.
    let bad = Fetched { tiers: Some(Ok(b"{".to_vec())), api_keys: Some(Err("gone".into())) };
    publish(&mut first, bad, &data);
    assert_eq!(said(first.config()), force);
}

fn publish(limiter: &mut Limiter, fetched: Fetched, data: &FakeData) {
    limiter.begin_publication(fetched, data);
    let slices = (0..MAX_SLICES).take_while(|_| {
        limiter.publish(data);
        limiter.is_publishing()
    });
    assert!(slices.count() < MAX_SLICES, "a publication that does not end");
}

/// A text that is marked as part of a key is in no message.
fn shows_no_key(api_keys: &[u8]) {
    if let Err(error) = parse_key_document(api_keys) {
        // An id is no secret: it names the bucket.
        let is_about_an_id = error.contains(", which another entry has too");
        assert!(is_about_an_id || !error.contains("canary"), "a key is shown: {error}");
    }
}

fn said(config: &Config) -> String {
    format!("{:?} {:?} {}", config.tiers, config.default_tier, config.keys())
}
