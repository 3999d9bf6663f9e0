//! A tier document and a key document, with a byte of zero between them: both are published or neither changes
//! anything, every worker ends up with the same, and no key is ever shown.

use dynamic_rate_limiter::config::{Config, ConfigSource};
use dynamic_rate_limiter::documents::{Fetched, Texts};

use harness::{FakeData, FakeRequest, SECOND, limiter};

const SOURCE: &str =
    r#"{"config_source": {"cluster": "files", "tiers": "/tiers.json", "api_keys": "/api_keys.json"}}"#;

pub(super) fn check(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let [tiers, api_keys] = [parts.next(), parts.next()].map(|part| part.map(<[u8]>::to_vec));
    shows_no_key(api_keys.as_deref().unwrap_or_default());

    let data = FakeData::at(SECOND);
    let (mut first, mut second) = (limiter(&data, SOURCE), limiter(&data, SOURCE));
    let source = source();
    let fetched = Fetched { tiers: tiers.map(Ok), api_keys: api_keys.map(Ok) };
    let before = said(first.config());
    first.publish(&source, fetched.clone(), &data);
    let published = Texts::published(&data, "default", &source);
    let force = said(first.config());
    match &published {
        Some(texts) => {
            let documents = texts.parse().expect("what is published is good");
            assert_eq!(
                documents.api_keys.map_or(0, |entries| entries.len()),
                first.config().callers(),
                "keys are lost on the way"
            );
        }
        None => assert_eq!(force, before, "what is not published holds for nobody"),
    }
    // Another worker takes it over at its next request, and the same again is no news.
    let changes = dynamic_rate_limiter::store::SharedData::changes(&data);
    second.decide(&FakeRequest::get("/"), &data, harness::ARRIVAL);
    assert_eq!(said(second.config()), force);
    second.publish(&source, fetched, &data);
    assert_eq!(dynamic_rate_limiter::store::SharedData::changes(&data), changes, "published twice");
    // Bad documents change nothing.
    first.publish(
        &source,
        Fetched { tiers: Some(Ok(b"{".to_vec())), api_keys: Some(Err("gone".into())) },
        &data,
    );
    assert_eq!(Texts::published(&data, "default", &source), published);
    assert_eq!(said(first.config()), force);
}

/// A text that is marked as a key's is in no message, wherever in the document it stands.
fn shows_no_key(api_keys: &[u8]) {
    let texts = Texts { tiers: None, api_keys: Some(api_keys.to_vec()) };
    if let Err(error) = texts.parse() {
        // An id is no secret: it names the bucket wherever that is shown.
        let is_about_an_id = error.contains(", which another entry has too");
        assert!(is_about_an_id || !error.contains("canary"), "a key is shown: {error}");
    }
}

fn source() -> ConfigSource {
    let path = |path: &str| Some(path.to_owned());
    let [tiers, api_keys] = [path("/tiers.json"), path("/api_keys.json")];
    ConfigSource { cluster: "files".to_owned(), tiers, api_keys, ttl_seconds: 20 }
}

fn said(config: &Config) -> String {
    format!("{:?} {:?} {}", config.tiers, config.default_tier, config.callers())
}
