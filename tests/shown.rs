//! Text from outside, in the log and in errors: one line of a bounded length.

use dynamic_rate_limiter::config::{
    Environment, MAX_TIERS, PluginConfig, parse_key_document, parse_tier_document,
};
use dynamic_rate_limiter::shown::{Line, MAX_LINE_BYTES, Shown, listed, quoted};

/// Longer than a log line and than any document.
const LONG: usize = 5 << 20;

#[test]
fn a_text_is_shown_in_one_line_of_forty_characters() {
    let cases = [
        ("pro", "pro"),
        ("with \"quotes\", 'others' and \\", "with \"quotes\", 'others' and \\"),
        ("a\nb\r\tc\0d\u{1b}[31m", r"a\nb\r\tc\0d\u{1b}[31m"),
        ("separators \u{85}\u{2028}\u{2029}", r"separators \u{85}\u{2028}\u{2029}"),
        ("right to left \u{202e}\u{2066}", r"right to left \u{202e}\u{2066}"),
        ("größer 限流", "größer 限流"),
    ];
    for (text, shown) in cases {
        assert_eq!(Shown(text).to_string(), shown);
    }
    assert_eq!(Shown(&"x".repeat(40)).to_string(), "x".repeat(40));
    assert_eq!(Shown(&"x".repeat(41)).to_string(), format!("{}…", "x".repeat(40)));
    assert_eq!(quoted("a\"b\n"), r#""a\"b\n""#);
    assert_eq!(quoted(&"é".repeat(LONG)), format!("\"{}…\"", "é".repeat(40)));
}

#[test]
fn a_long_list_ends_with_the_number_of_omitted_items() {
    let names: Vec<String> = (0..1_000).map(|number| format!("t{number}")).collect();
    let list = |count: usize| listed(names[..count].iter().map(String::as_str));
    assert_eq!(list(0), "");
    assert_eq!(list(3), "t0, t1, t2");
    assert!(list(20).ends_with("t18, t19"));
    assert!(list(1_000).ends_with("t18, t19 and 980 more"));
}

#[test]
fn a_line_of_the_log_is_one_line_and_bounded() {
    assert_eq!(
        Line::of(format_args!("health set to {} by {}", "NORMAL", "1.2.3.4")).as_str(),
        "health set to NORMAL by 1.2.3.4"
    );
    assert_eq!(Line::of(format_args!("a{}b", "\n[info] forged")).as_str(), r"a\n[info] forgedb");
    for (text, of_one) in [("x".repeat(LONG), 1), ("\n".repeat(LONG), 2), ("\u{202e}".repeat(LONG), 8)] {
        let line = Line::of(format_args!("{text}"));
        let length = line.as_str().len();
        assert!((MAX_LINE_BYTES..MAX_LINE_BYTES + of_one + 3).contains(&length), "{length}");
        assert!(line.as_str().ends_with('…'));
    }
    let whole = "x".repeat(MAX_LINE_BYTES);
    assert_eq!(Line::of(format_args!("{whole}")).as_str(), whole);
}

/// Every part of a document that an error repeats, with long text that contains line breaks.
#[test]
fn every_configuration_error_is_one_line() {
    let hostile = format!("forged\n[info] line\u{2028}{}", "x".repeat(LONG));
    let json = serde_json::to_string(&hostile).expect("a string");
    let documents = [
        json.clone(),
        format!("{{{json}: 1}}"),
        format!(r#"{{"default_tier": {json}}}"#),
        format!(r#"{{"tiers": {{{json}: {{"unlimited": true}}}}}}"#),
        format!(r#"{{"tiers": {{"free": {{{json}: 1}}}}}}"#),
        format!(r#"{{"tiers": {{"free": {{"base": {json}}}}}}}"#),
        format!(r#"{{"tiers": {{"free": {{"base": {{"capacity": {json}}}}}}}}}"#),
        format!(r#"{{"api_keys": {{"k": {{"tier": "pro", "id": {json}}}}}}}"#),
        format!(r#"{{"api_keys": {{"k": {{"tier": {json}}}}}}}"#),
        format!(r#"{{"api_keys": {{"k": {json}}}}}"#),
        format!(r#"{{"api_keys": {{{json}: "pro"}}}}"#),
        format!(r#"{{"config_source": {{"cluster": "c", "tiers": {json}}}}}"#),
        format!(r#"{{"config_source": {{"cluster": {json}, "tiers": 1}}}}"#),
        format!(r#"{{"config_source": {json}}}"#),
        format!(r#"{{"admin": {{"health_path": {json}}}}}"#),
        format!(r#"{{"admin": {{"token_sha256": {json}}}}}"#),
        format!(r#"{{"store": {{"kind": {json}}}}}"#),
        format!(r#"{{"store": {{"kind": "redis", "cluster": {json}}}}}"#),
        format!(r#"{{"store": {{"kind": "redis", "cluster": "c", "on_failure": {json}}}}}"#),
        format!(r#"{{"store": {{"kind": "redis", "cluster": "c", "key_prefix": {json}}}}}"#),
        format!(r#"{{"health": {{"mode": {json}}}}}"#),
        format!(r#"{{"headers": {{{json}: true}}}}"#),
        format!(r#"{{"namespace": {json}}}"#),
        format!(r#"{{"ipv6_prefix": {json}}}"#),
        format!(r#"{{"exempt_paths": [{json}]}}"#),
    ];
    for document in &documents {
        let error =
            PluginConfig::parse(document.as_bytes(), &Environment::default()).expect_err("a wrong one");
        assert_one_line(&error);
    }
    for text in documents
        .iter()
        .chain([&format!(r#"{{{json}: {{"unlimited": 1}}}}"#), &format!(r#"{{"k": {json}}}"#)])
    {
        for error in [
            parse_tier_document(text.as_bytes()).map(|_| ()).err(),
            parse_key_document(text.as_bytes()).map(|_| ()).err(),
        ] {
            assert_one_line(error.as_deref().unwrap_or_default());
        }
    }
    for environment in [
        Environment { default_tier: Some(hostile.clone().into_bytes()), ..Environment::default() },
        Environment { config_ttl: Some(hostile.clone().into_bytes()), ..Environment::default() },
    ] {
        let source = br#"{"config_source": {"cluster": "c", "api_keys": "/k"}}"#;
        assert_one_line(&PluginConfig::parse(source, &environment).expect_err("a wrong variable"));
    }
}

#[test]
fn an_error_lists_a_bounded_number_of_tiers() {
    let tiers: Vec<String> =
        (0..MAX_TIERS).map(|number| format!(r#""t{number}": {{"unlimited": true}}"#)).collect();
    let document = format!(r#"{{"default_tier": "gold", "tiers": {{{}}}}}"#, tiers.join(","));
    let error = PluginConfig::parse(document.as_bytes(), &Environment::default()).expect_err("no such tier");
    assert!(error.starts_with("default_tier: found \"gold\", wanted one of the tiers t0, t1, "), "{error}");
    assert_one_line(&error);
}

#[track_caller]
fn assert_one_line(error: &str) {
    assert!(error.len() < 600, "{} bytes: {:.300}", error.len(), error);
    assert!(
        !error.contains(|character: char| character.is_control() || character == '\u{2028}'),
        "{error:?}"
    );
}
