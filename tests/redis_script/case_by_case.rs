//! Chosen buckets, limits and times, and fields that were written by hand.

use super::*;

#[test]
fn lua_decides_like_rust_case_by_case() {
    let mut lua = LuaBucket::start();
    let token = PICO_PER_TOKEN;
    let now = YEAR_2024 + 123_456_789;
    // Tokens that were stored now, none, and some before the border of a second.
    let with = |tokens_pico: u64| Some((tokens_pico, now));
    let (empty, border) = (with(0), Some((0, 1_999_999_999_999)));
    let (one, third, almost) = (limit(10, 1_000_000), limit(3, 333_333), limit(5, 999_999));
    let (slowest, fastest) = (limit(3, 1), limit(MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC));
    let nines = limit(MAX_CAPACITY, 999_999_999_999);
    // (case, stored tokens and time, limit, time, whole tokens left or nothing if refused)
    type Case = (&'static str, Option<(u64, u64)>, Limit, u64, Option<u32>);
    let cases: &[Case] = &[
        ("a new bucket is full", None, one, now, Some(9)),
        ("a new bucket of one", None, limit(1, 1_000_000), now, Some(0)),
        ("the largest new bucket", None, fastest, now, Some(MAX_CAPACITY - 1)),
        ("the last token", with(token), one, now, Some(0)),
        ("a unit less than a token", with(token - 1), one, now, None),
        ("a unit more than a token", with(token + 1), one, now, Some(0)),
        ("empty", empty, one, now, None),
        ("a microsecond before the token is due", empty, one, now + SECOND - 1, None),
        ("the instant it is due", empty, one, now + SECOND, Some(0)),
        ("a microsecond after", empty, one, now + SECOND + 1, Some(0)),
        ("a third of a token a second, early", empty, third, now + 3_000_003, None),
        ("a third of a token a second, on time", empty, third, now + 3_000_004, Some(0)),
        ("over a whole second's border", border, almost, 2_000_001_000_001, Some(0)),
        ("just before it, refilling a millionth less", border, almost, 2_000_001_000_000, None),
        ("almost full", with(10 * token - 1_000_001), one, now + 1, Some(8)),
        ("full to the unit", with(10 * token - 1_000_000), one, now + 1, Some(9)),
        ("more than full", with(9 * token), one, now + YEAR, Some(9)),
        (
            "capacity has grown: it fills at its rate",
            with(2 * token),
            limit(100, 1_000_000),
            now + SECOND,
            Some(2),
        ),
        ("capacity has shrunk: what is above is gone", with(9 * token), limit(2, 500_000), now, Some(1)),
        ("capacity has shrunk, a unit above", with(2 * token + 1), limit(2, 500_000), now, Some(1)),
        ("the rate has grown", empty, limit(10, 5_000_000), now + SECOND, Some(4)),
        ("the rate has shrunk", empty, limit(10, 100_000), now + 9_999_999, None),
        ("a microsecond back, empty", empty, one, now - 1, None),
        ("a microsecond back, with a token", with(token), one, now - 1, Some(0)),
        ("a second back, almost a token", with(token - 1), one, now - SECOND, None),
        ("a second and a microsecond back", with(token - 1), one, now - SECOND - 1, None),
        ("a year back", with(token / 2), one, now - YEAR, None),
        ("a year back, more than full", with(50 * token), one, now - YEAR, Some(9)),
        ("to 1970", with(token / 2), one, 0, None),
        ("since 1970", Some((0, 0)), one, YEAR_2200, Some(9)),
        ("since 1970, at a millionth a second", Some((0, 0)), slowest, now, Some(2)),
        ("a millionth a second, early", empty, slowest, now + 1_000_000 * SECOND - 1, None),
        ("a millionth a second, on time", empty, slowest, now + 1_000_000 * SECOND, Some(0)),
        ("a million a second, on time", empty, fastest, now + 1, Some(0)),
        ("a million a second, for a second", empty, fastest, now + SECOND, Some(999_999)),
        ("ten seconds less a microsecond", empty, fastest, now + 10 * SECOND - 1, Some(MAX_CAPACITY - 2)),
        ("a million a second, ten", empty, fastest, now + 10 * SECOND, Some(MAX_CAPACITY - 1)),
        ("all nines for a second", empty, nines, now + SECOND, Some(999_998)),
        ("all nines for all nines", with(999_999_999_999), nines, now + 999_999, Some(999_998)),
        ("all nines for 170 years", empty, nines, YEAR_2200, Some(MAX_CAPACITY - 1)),
        (
            "a millionth less than one for 170 years",
            empty,
            limit(MAX_CAPACITY, 999_999),
            now + 9_999_999 * SECOND,
            Some(9_999_988),
        ),
        ("more tokens than there can be", with(u64::MAX), one, now, Some(9)),
        ("a capacity of zero", with(5 * token), limit(0, 0), now, None),
        ("a capacity of zero, stepped back", with(5 * token), limit(0, 5), now - 1, None),
        ("a capacity of zero, new", None, limit(0, 0), now, None),
    ];
    for (what, bucket, limit, now_us, left) in cases {
        let take = take_of("case", *limit);
        let bucket = bucket.map(|(tokens_pico, refilled_at_us)| Bucket { tokens_pico, refilled_at_us });
        let mut stored = bucket.map_or_else(Stored::nothing, Stored::of);
        lua.put("case", stored.bytes());
        // Three requests, so that fields that the first one has stored are read too.
        for attempt in 0..3 {
            let seen = lua.run(&take, *now_us);
            let (expected, verdict) = stored.take(&take, lua.sequence, *now_us);
            assert_eq!(seen, expected, "{what}, attempt {attempt}");
            if attempt == 0 {
                let admitted = (verdict.outcome == Outcome::Admitted).then_some(verdict.remaining);
                assert_eq!(admitted, *left, "{what}");
            }
        }
    }
}

#[test]
fn fields_may_be_written_by_hand() {
    let mut lua = LuaBucket::start();
    let take = take_of("fields", limit(1_000, 1_000_000));
    let token = PICO_PER_TOKEN;
    let then = "1704067200";
    let cases = [
        ("5", then, 5 * token, YEAR_2024),
        ("5.5", then, 5 * token + token / 2, YEAR_2024),
        ("5.", then, 5 * token, YEAR_2024),
        ("0", then, 0, YEAR_2024),
        ("0.0", then, 0, YEAR_2024),
        ("007.25", then, 7 * token + token / 4, YEAR_2024),
        ("0.000000000001", then, 1, YEAR_2024),
        ("0.999999999999", then, token - 1, YEAR_2024),
        ("5", "1704067200.5", 5 * token, YEAR_2024 + SECOND / 2),
        ("5", "1704067200.000001", 5 * token, YEAR_2024 + 1),
        ("5", "0", 5 * token, 0),
        ("5", "9999999999.999999", 5 * token, 9_999_999_999_999_999),
    ];
    for (tokens, last_refill, tokens_pico, refilled_at_us) in cases {
        let bucket = Some(Bucket { tokens_pico, refilled_at_us });
        let mut stored = Stored { fields: (tokens.to_owned(), last_refill.to_owned()), bucket };
        lua.put("fields", stored.bytes());
        let seen = lua.run(&take, YEAR_2024 + 10 * SECOND);
        let (expected, _) = stored.take(&take, lua.sequence, YEAR_2024 + 10 * SECOND);
        assert_eq!(seen, expected, "{tokens:?} tokens at {last_refill:?}");
    }
}

#[test]
fn fields_with_garbage_count_as_absent() {
    let mut lua = LuaBucket::start();
    let take = take_of("fields", limit(1_000, 1_000_000));
    let (five, then): (&[u8], &[u8]) = (b"5", b"1704067200");
    let short = [
        "", " ", "-", "-1", "+5", " 5", "5 ", "5\n", "5\0", "\x005", "5,5", "5.5.5", "5..5", ".", ".5",
        "1e3", "0x10", "nan", "inf", "-0", "five", "5f", "٥",
    ];
    let long = ["12345678901", "5.0000000000001", "99999999999999999999999999999999", &"9".repeat(5_000)];
    let texts = short.into_iter().chain(long).map(str::as_bytes).chain([&b"\xff\xfe"[..]]);
    let garbage = texts.flat_map(|text| [[Some(text), Some(then)], [Some(five), Some(text)]]);
    let too_fine = [Some(five), Some(&b"1704067200.0000001"[..])];
    for fields in garbage.chain([[Some(five), None], [None, Some(then)], too_fine]) {
        lua.put("fields", fields);
        let seen = lua.run(&take, YEAR_2024 + 10 * SECOND);
        let (expected, _) = Stored::nothing().take(&take, lua.sequence, YEAR_2024 + 10 * SECOND);
        assert_eq!(seen, expected, "counts as a new bucket: {fields:?}");
    }
}
