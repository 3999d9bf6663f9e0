//! An object read in batches has the same members and errors as one read at once.

use dynamic_rate_limiter::json::{Batch, Json, MAX_MEMBER_BYTES, MemberReader};
use proptest::prelude::*;

/// The names of the members and the number of batches, or the error.
fn in_batches(text: &[u8], batch_bytes: usize) -> Result<(Vec<String>, usize), String> {
    let mut reader = MemberReader::new(text.to_vec(), batch_bytes);
    let (mut names, mut batches) = (Vec::new(), 0);
    for _ in 0..=text.len() {
        match reader.next_batch()? {
            Batch::Members(document) => {
                names.extend(document.root("").members()?.iter().map(|(name, _)| (*name).to_owned()));
                batches += 1;
            }
            Batch::Nothing => {}
            Batch::End => return Ok((names, batches)),
            Batch::Other(document) => return document.root("").members().map(|_| (Vec::new(), 0)),
        }
    }
    panic!("the reader does not end: {text:?}");
}

fn at_once(text: &[u8]) -> Result<Vec<String>, String> {
    let document = Json::parse(text)?;
    let members = document.root("").members()?;
    Ok(members.iter().map(|(name, _)| (*name).to_owned()).collect())
}

#[track_caller]
fn assert_same(text: &[u8]) {
    for batch_bytes in [0, 1, 7, 4096] {
        let names = in_batches(text, batch_bytes).map(|(names, _)| names);
        // Duplicate names in two batches are not found.
        if at_once(text).is_err_and(|error| error.contains("a second time")) {
            continue;
        }
        assert_eq!(names, at_once(text), "{:?} by {batch_bytes}", String::from_utf8_lossy(text));
    }
}

/// Every text of up to three characters, alone and where a name, a value or a member is.
#[test]
fn short_texts_have_the_same_result() {
    let starts = ["", "{", "{\"a\"", "{\"a\":", "{\"a\":\"", "{\"a\":0,\n"];
    let parts = ["", "{", "}", "[", "]", "\"", ",", ":", "\\", " ", "\n", "0", "-", "t", "x"];
    for start in starts {
        for [one, two] in parts.into_iter().flat_map(|one| parts.map(|two| [one, two])) {
            for three in parts {
                assert_same([start, one, two, three].concat().as_bytes());
            }
        }
    }
}

#[test]
fn errors_have_the_same_text_with_the_same_line_and_column() {
    let texts = [
        "{} \n x",
        "{\"a\":1 \"b\":2}",
        "{\"a\":tru,\"b\":1}",
        "{\"a\":12x,\"b\":1}",
        "{\"a\":1e999}",
        "{\"a\":[1,2,{\"b\":3}]}",
        "{\"a\":{\"b\":[}}}",
        "{\"a\":\"\\u12\"}",
        "{\"a\\\"b\":1}",
        "nul",
        "null",
        "{\"a\":1,\n\"b\":\n tru,\"c\":3}",
        "\n\n {\"a\":1,\n  \"b\":2,\n  \"c\" 3}",
        "{\"a\":\"}\",\"b\":\",\"}",
        "{\"a\":1}\u{feff}",
        "\u{feff}{\"a\":1}",
        "\u{feff}{\"a\" 1}",
        "{\"a\":\"\\u\",}",
        "{\"a\":\"\\u0\",\"b\":1}",
        "{\"a\":\"\\u\"}x",
        "{\"\\u\",{,",
    ];
    for text in texts {
        assert_same(text.as_bytes());
    }
    assert_same(b"{\"a\xff\":1}");
    assert_same(b"{\"a\":\"\xff\"}");
    let nested = |depth| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    for depth in [126, 127, 128, 1_000] {
        assert_same(nested(depth).as_bytes());
    }
}

#[test]
fn members_come_in_batches_in_their_order() {
    let text = format!(
        "{{{}}}",
        (0..1_000).map(|n| format!("\"{n}\": [{n}, \"}},{{\"]")).collect::<Vec<_>>().join(", ")
    );
    let (names, batches) = in_batches(text.as_bytes(), 1_000).expect("good JSON");
    assert_eq!(names, (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!((15..=25).contains(&batches), "{batches}");
}

#[test]
fn each_call_reads_a_bounded_part_of_any_text() {
    let white = format!("{{{}\"a\":1{}}}{}", " ".repeat(1 << 20), "\n".repeat(60_000), "\t".repeat(1 << 20));
    assert_eq!(in_batches(white.as_bytes(), 1).map(|(names, _)| names), Ok(vec!["a".to_owned()]));
    let fits = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_MEMBER_BYTES - 6));
    assert!(in_batches(fits.as_bytes(), 1).is_ok());
    let long = |start: &str| {
        in_batches(format!("{start}{}", "x".repeat(4 << 20)).as_bytes(), 4096).expect_err("too long")
    };
    assert_eq!(
        long("{\"a\": 1,\n \"b\":\""),
        "found a member of over 65536 bytes at line 2 column 2, wanted a shorter one"
    );
    assert_eq!(long("{\"a\": "), "not valid JSON: expected value at line 1 column 7");
    assert_eq!(long("["), "configuration: found a list, wanted an object");
    assert_eq!(long("x"), "not valid JSON: expected value at line 1 column 1");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_text_of_json_characters_has_the_same_result(text in "[\\[\\]{}\",:\\\\ \ntrue0-9a]{0,40}") {
        assert_same(text.as_bytes());
        assert_same(format!("{{{text}").as_bytes());
        assert_same(format!("{{\"a\":{text}}}").as_bytes());
        assert_same(format!("{{\"a\":1,\n{text}}}").as_bytes());
    }
}
