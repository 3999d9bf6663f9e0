//! Every invalid file and every shipped file, checked by the command's own functions.

use std::collections::BTreeMap;

use super::*;
use crate::workspace;

fn shipped(path: &str) -> Vec<u8> {
    fs::read(workspace::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn check(name: &str, text: &str) -> Result<String, String> {
    let mut found = read(name, text.as_bytes(), None);
    assert_eq!(found.len(), 1, "{name}");
    found.remove(0).what.map(|checked| checked.to_string())
}

fn together(documents: &[(&str, &str)]) -> Vec<(String, Result<String, String>)> {
    let mut found: Vec<Found> =
        documents.iter().flat_map(|(name, text)| read(name, text.as_bytes(), None)).collect();
    join(&mut found);
    found.into_iter().map(|found| (found.name, found.what.map(|checked| checked.to_string()))).collect()
}

#[test]
fn every_invalid_file_has_the_filters_own_error() {
    let messages = String::from_utf8(shipped("tests/config/bad/messages.txt")).expect("text");
    let messages: BTreeMap<_, _> = messages.lines().filter_map(|line| line.split_once(": ")).collect();
    assert!(messages.len() > 60, "{}", messages.len());
    for (name, message) in messages {
        let bytes = shipped(&format!("tests/config/bad/{name}.json"));
        // The kind of this file cannot be detected.
        let kind = (name == "unknown_field").then_some(Kind::PluginConfig);
        let mut found = read(name, &bytes, kind);
        assert_eq!(found.remove(0).what.err().as_deref(), Some(message), "{name}");
    }
}

#[test]
fn every_shipped_file_is_valid_and_its_kind_is_detected() {
    let cases = [
        ("config/tiers.json", "3 tiers: free, pro, enterprise"),
        ("config/api_keys.json", "3 keys of 3 tiers; 3 in the clear, which --hash turns into hashes"),
        ("envoy.yaml", "plugin configuration: tiers from /tiers.json; keys from /api_keys.json; shared data"),
        ("deploy/redis/envoy.yaml", "; Redis by cluster redis"),
        ("deploy/redis-tls/envoy.yaml", "; Redis by cluster redis"),
        ("deploy/redis-cluster/envoy.yaml", "; Redis by cluster redis"),
        ("deploy/compose/limiter.yaml", "; Redis by cluster redis"),
        ("deploy/kubernetes/config.yaml", "; Redis by cluster redis"),
        ("deploy/istio/rate-limiter.yaml", "; Redis by cluster redis"),
        ("deploy/istio/wasm-plugin.yaml", "; Redis by cluster redis"),
        ("deploy/envoy-gateway/rate-limiter.yaml", "; Redis by cluster redis"),
    ];
    let mut found = Vec::new();
    for (path, summary) in cases {
        let of_file = read(path, &shipped(path), None);
        // Only the limiter, not its bridge.
        let result: Vec<_> =
            of_file.iter().map(|found| found.what.as_ref().map(Checked::to_string)).collect();
        assert!(matches!(&result[..], [Ok(found)] if found.ends_with(summary)), "{path}: {result:?}");
        found.extend(of_file);
    }
    join(&mut found);
    for Found { name, what } in found {
        assert_eq!(what.err(), None, "{name}");
    }
}

#[test]
fn the_kind_of_a_document_is_detected_from_its_content() {
    let cases = [
        (r#"{}"#, Some("plugin configuration: 3 tiers, default free; 0 keys; shared data")),
        (r#"{"namespace": "a"}"#, Some("plugin configuration: 3 tiers, default free; 0 keys; shared data")),
        (r#"{"store": {"base": {"capacity": 1, "refill_rate": 1}}}"#, Some("1 tier: store")),
        (r#"{"a": {"unlimited": true}, "b": {"unlimited": true}}"#, Some("2 tiers: a, b")),
        (r#"{"k": "free"}"#, Some("1 key of 1 tier; 1 in the clear, which --hash turns into hashes")),
        (r#"{"k": 5}"#, None),
        ("", None),
    ];
    for (text, expected) in cases {
        let result = check("a.json", text);
        assert_eq!(result.as_deref().ok(), expected, "{text}: {result:?}");
    }
    let hashed = format!(r#"{{"sha256:{}": {{"tier": "pro", "id": "acme"}}}}"#, "ab".repeat(32));
    assert_eq!(check("a.json", &hashed).as_deref(), Ok("1 key of 1 tier"));
}

const TIERS: &str = r#"{"gold": {"base": {"capacity": 1, "refill_rate": 1}}}"#;

#[test]
fn keys_must_name_tiers_that_are_given_with_them() {
    let keys = |tier: &str| format!(r#"{{"c4nary": {{"tier": "{tier}"}}}}"#);
    let result = together(&[("tiers.json", TIERS), ("keys.json", &keys("gold"))]);
    assert!(result.iter().all(|(_, result)| result.is_ok()), "{result:?}");
    let result = together(&[("keys.json", &keys("silver")), ("tiers.json", TIERS)]);
    let message =
        "api_keys[1]: found the name of no tier (6 bytes), wanted one of the tiers gold (with tiers.json)";
    assert_eq!(result[0].1, Err(message.to_owned()));
    assert!(result[1].1.is_ok());
    // Alone there are no tiers to compare with.
    assert!(together(&[("keys.json", &keys("silver"))])[0].1.is_ok());
}

#[test]
fn a_plugin_configuration_is_checked_with_the_documents_that_it_fetches() {
    let fetches = r#"{"default_tier": "free", "config_source": {"cluster": "files", "tiers": "/t"}}"#;
    let result = together(&[("plugin.json", fetches), ("tiers.json", TIERS)]);
    let message = "default_tier: found \"free\", wanted one of the tiers gold (with tiers.json)";
    assert_eq!(result[0].1, Err(message.to_owned()));
    let own = r#"{"default_tier": "free", "config_source": {"cluster": "files", "api_keys": "/k"}}"#;
    let result =
        together(&[("plugin.json", own), ("keys.json", r#"{"c4nary": "gold"}"#), ("tiers.json", TIERS)]);
    assert!(result[0].1.is_ok(), "it has its own tiers: {result:?}");
    let message = "api_keys[1]: found the name of no tier (4 bytes), wanted one of the tiers free, pro, enterprise \
                   (with plugin.json)";
    assert_eq!(result[1].1, Err(message.to_owned()));
}

#[test]
fn no_key_is_shown_for_any_kind() {
    let documents = [
        r#"{"c4nary-secret": "gold", "admin": "gold"}"#,
        r#"{"c4nary-secret": {"tier": "gold"}, "tiers": {}}"#,
        r#"{"c4nary-secret": {"tier": "gold", "unlimited": true}}"#,
        r#"{"c4nary-secret": 5}"#,
        r#"{"c4nary-secret": {}}"#,
        r#"{"c4nary-secret": {"tier": 1}}"#,
        r#"{"c4nary-secret": "gold", "c4nary-secret": "gold"}"#,
        r#"{"c4nary-secret": "gold""#,
        r#"{"api_keys": {"gold": "c4nary-secret"}}"#,
        r#"["c4nary-secret"]"#,
        r#""c4nary-secret""#,
    ];
    for text in documents {
        for kind in [None, Some(Kind::ApiKeys), Some(Kind::Tiers), Some(Kind::PluginConfig)] {
            // A member with a number or an empty object is not a key, and a tier's name is not secret.
            if matches!(kind, Some(Kind::Tiers | Kind::PluginConfig))
                && (text.ends_with(": 5}") || text.ends_with("{}}"))
            {
                continue;
            }
            for found in read("a.json", text.as_bytes(), kind) {
                let result = found.what.map_or_else(|message| message, |checked| checked.to_string());
                assert!(!result.contains("c4nary"), "{text} as {kind:?}: {result}");
            }
        }
    }
    let error = check("a.yaml", "a: {c4nary-secret: 1, c4nary-secret: 2}\nb: [").expect_err("not YAML");
    assert!(error.starts_with("not valid YAML") && !error.contains("c4nary"), "{error}");
}

#[test]
fn only_the_rate_limiter_is_read_from_yaml() {
    let filter = |name: &str, configuration: &str| {
        format!(
            "a:\n- typed_config:\n    '@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm\n    \
             config: {{name: {name}, root_id: {name}{configuration}}}\n"
        )
    };
    let config_map =
        |yaml: &str| format!("kind: ConfigMap\ndata: {}\n", json!({"envoy.yaml": yaml, "notes.txt": "a: ["}));
    let string =
        "{'@type': type.googleapis.com/google.protobuf.StringValue, value: '{\"ipv6_prefix\": 999}'}";
    let structure = "{'@type': type.googleapis.com/google.protobuf.Struct, value: {ipv6_prefix: 64}}";
    let cases = [
        (filter("rate_limiter", ""), Ok("plugin configuration: 3 tiers, default free; 0 keys; shared data")),
        (filter("rate_limiter", &format!(", configuration: {string}")), Err("ipv6_prefix: found 999")),
        (filter("rate_limiter", &format!(", configuration: {structure}")), Err("configuration: found no google")),
        (filter("other", &format!(", configuration: {string}")), Err("found no rate limiter in it")),
        (filter("redis_bridge", ""), Err("found no rate limiter in it")),
        (
            "kind: WasmPlugin\nmetadata: {name: limiter}\nspec: {url: 'oci://r/dynamic-rate-limiter:1', pluginConfig: \
             {namespace: 'a/b'}}\n"
                .to_owned(),
            Err("namespace: found \"a/b\""),
        ),
        (
            "kind: Other\n---\nkind: EnvoyExtensionPolicy\nspec: {wasm: [{name: rate-limiter, config: {default_tier: \
             pro}}]}\n"
                .to_owned(),
            Ok("plugin configuration: 3 tiers, default pro; 0 keys; shared data"),
        ),
        (
            config_map(&filter("rate_limiter", &format!(", configuration: {string}"))),
            Err("ipv6_prefix: found 999"),
        ),
        (config_map("a: {c4nary: 1\n"), Err("not valid YAML: at line 1 column 4")),
    ];
    for (yaml, expected) in cases {
        match (check("a.yaml", &yaml), expected) {
            (Ok(result), Ok(expected)) => assert_eq!(result, expected, "{yaml}"),
            (Err(result), Err(expected)) => assert!(result.starts_with(expected), "{yaml}: {result}"),
            (result, expected) => panic!("{yaml}: {result:?}, not {expected:?}"),
        }
    }
}

#[test]
fn a_document_above_the_filters_limit_is_too_long() {
    let padded = |document: &str| document.replacen('{', &format!("{{{}", " ".repeat(4 << 20)), 1);
    let refused = Err("found 4194317 bytes, wanted at most 4194304".to_owned());
    assert_eq!(check("a.json", &padded(r#"{"k": "free"}"#)), refused);
    assert!(check("a.json", &padded(r#"{"namespace": "a"}"#)).is_ok(), "Envoy delivers this one itself");
}

#[test]
fn every_field_of_the_filter_is_documented() {
    let text = String::from_utf8(shipped("docs/configuring.md")).expect("text");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let places = [
        (r#"{"?": 0}"#, "", "exempt_preflight"),
        (r#"{"config_source": {"?": 0}}"#, "config_source.", "ttl_seconds"),
        (r#"{"admin": {"?": 0}}"#, "admin.", "health_path"),
        (r#"{"store": {"kind": "redis", "?": 0}}"#, "store.", "key_prefix"),
        (r#"{"headers": {"?": 0}}"#, "headers.", "ietf"),
        (r#"{"health": {"?": 0}}"#, "health.", "shed"),
        (r#"{"tiers": {"t": {"?": 0}}}"#, "", "min_share"),
    ];
    for (wrong, place, last) in places {
        // The name of an unknown field beside a secret is not shown, but the valid fields are.
        let fields = document::fields_beside(wrong.as_bytes());
        assert!(fields.iter().any(|field| field == last), "{wrong}: {fields:?}");
        for field in fields {
            let (whole, outer) = (format!("`{place}{field}`"), format!("`{place}{field}."));
            let is_documented = rows.iter().any(|row| row.contains(&whole) || row.contains(&outer));
            assert!(is_documented, "docs/configuring.md has no row for {whole}");
        }
    }
}

#[test]
fn hashes_are_those_of_the_filter() {
    let hashed = |input: &[u8]| {
        let mut output = Vec::new();
        let done = secrets::hash_lines(input, &mut output);
        (String::from_utf8(output).expect("text"), done.map_err(|error| error.to_string()))
    };
    let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
    for input in ["abc", "abc\n", "abc\r\n"] {
        assert_eq!(hashed(input.as_bytes()), (abc.to_owned(), Ok(())), "{input:?}");
    }
    assert_eq!(hashed(b"abc\nabc\n"), (abc.repeat(2), Ok(())));
    assert_eq!(hashed(b"abc\n\n").1, Err("line 2: found 0 bytes, wanted 1 to 256".to_owned()));
    let space = "line 1: found a space at the start or the end, wanted none";
    assert_eq!(hashed(b" c4nary\n").1, Err(space.to_owned()));
    assert_eq!(hashed(&[b'a'; 257]).1, Err("line 1: found 257 bytes, wanted 1 to 256".to_owned()));
}

#[test]
fn new_keys_are_different_and_valid() {
    let (one, other) = (secrets::new_key().expect("a key"), secrets::new_key().expect("a key"));
    assert_ne!(one, other);
    let document = format!(r#"{{"{one}": "free", "{other}": "free"}}"#);
    let result = check("a.json", &document).expect("valid keys");
    assert!(result.starts_with("2 keys of 1 tier"), "{result}");
    assert!(one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
}
