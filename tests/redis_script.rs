//! On a real Redis, the bucket in Lua makes the same decisions as the bucket in Rust, exact to the last unit.
//!
//! Needs a `redis-server` on the `PATH`, or its path in `REDIS_SERVER`. The long random run is
//!
//! ```text
//! BUCKET_OPERATIONS=20_000_000 cargo test --release --test redis_script -- --nocapture at_random
//! ```
//!
//! A failure prints the seed that repeats it in `BUCKET_SEED`.

mod common;

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use common::random::{Random, number_from_env, seed_from_env};
use common::redis::parse_command;
use common::{IntervalOracle, SECOND, limit};
use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN, Verdict, available_pico, take};
use dynamic_rate_limiter::store::redis::resp::push_command;
use dynamic_rate_limiter::store::redis::script::{Script, TAKE, TAKE_SHA1, Take, TakeReply};
use dynamic_rate_limiter::tier::{Limit, MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC};
use harness::redis::Redis;
use redis::{Connection, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind, from_redis_value};

/// A year of 365 days, in microseconds.
const YEAR: u64 = 365 * 24 * 3600 * SECOND;

/// The start of 2024 and of 2200, in Unix microseconds.
const YEAR_2024: u64 = 1_704_067_200 * SECOND;
const YEAR_2200: u64 = 7_258_118_400 * SECOND;

const HOUR_MS: u64 = 3_600_000;

/// A connection that sends the limiter's commands, and its own Redis.
struct Client {
    connection: Connection,
    _server: Redis,
}

impl Client {
    fn start() -> Self {
        let server = Redis::start();
        Self { connection: server.connect().expect("a connection"), _server: server }
    }

    fn send(&mut self, commands: &[u8]) {
        self.connection.send_packed_command(commands).expect("Redis reads");
    }

    fn reply<T: FromRedisValue>(&mut self) -> RedisResult<T> {
        Ok(from_redis_value(self.connection.recv_response()?.extract_error()?)?)
    }

    /// The script's reply to the limiter's own command.
    fn take(&mut self, take: &Take, sequence: u32, script: Script) -> RedisResult<TakeReply> {
        let mut command = Vec::new();
        take.push(&mut command, sequence, script);
        self.send(&command);
        let text: String = self.reply()?;
        Ok(TakeReply::parse(text.as_bytes()).expect("a reply of the script"))
    }

    fn run<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        command.arg(words).query(&mut self.connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

/// The script with the time as an argument, and with the stored fields and their expiry in its reply.
///
fn script_with_clock() -> String {
    let clock = "redis.call('TIME')";
    assert_eq!(TAKE.matches(clock).count(), 1, "the script reads the clock once");
    let timed = TAKE.replace(clock, "{ARGV[7], ARGV[8]}");
    format!(
        "local function take()\n{timed}\nend\n\
         local reply = take()\n\
         local stored = redis.call('HMGET', KEYS[1], 'tokens', 'last_refill')\n\
         return reply .. '|' .. (stored[1] or '-') .. '|' .. (stored[2] or '-') .. '|' ..\n\
         string.format('%.0f', redis.call('PTTL', KEYS[1]))"
    )
}

/// The reply of the script, and the fields that it leaves.
#[derive(Clone, Debug)]
struct Seen {
    taken: TakeReply,
    tokens: String,
    last_refill: String,
    /// The expiry of the key; `None` if there is no key.
    kept_ms: Option<u64>,
}

/// Equal except for the time between two commands, and a millisecond that the script rounds up.
impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        let is_near = match (self.kept_ms, other.kept_ms) {
            (Some(one), Some(other)) => one.abs_diff(other) <= 1_000,
            (one, other) => one == other,
        };
        is_near
            && (self.taken, &self.tokens, &self.last_refill)
                == (other.taken, &other.tokens, &other.last_refill)
    }
}

/// The bucket in Lua, at any time.
struct LuaBucket {
    client: Client,
    sha1: String,
    sequence: u32,
    /// Commands that are not sent yet.
    batch: Vec<u8>,
}

impl LuaBucket {
    fn new(mut client: Client) -> Self {
        let sha1 = client.run(&["SCRIPT", "LOAD", &script_with_clock()]);
        Self { client, sha1, sequence: 0, batch: Vec::new() }
    }

    /// Adds the limiter's own command to the batch, with another script and a time.
    fn push(&mut self, take: &Take, now_us: u64) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut command = Vec::new();
        take.push(&mut command, self.sequence, Script::Hash);
        let (mut words, _) = parse_command(&command).expect("a command");
        words[1] = self.sha1.clone().into_bytes();
        words.push((now_us / SECOND).to_string().into_bytes());
        words.push((now_us % SECOND).to_string().into_bytes());
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        push_command(&mut self.batch, &words);
    }

    /// Adds a change of fields to the batch; each has a reply.
    fn push_fields(&mut self, key: &str, fields: &[(&str, &[u8])]) {
        push_command(&mut self.batch, &[b"DEL", key.as_bytes()]);
        for (field, value) in fields {
            push_command(&mut self.batch, &[b"HSET", key.as_bytes(), field.as_bytes(), value]);
        }
    }

    fn send(&mut self) {
        self.client.send(&std::mem::take(&mut self.batch));
    }

    fn seen(&mut self) -> Seen {
        let text: String = self.client.reply().expect("a reply");
        let mut parts = text.split('|');
        let mut part = || parts.next().expect("four parts");
        Seen {
            taken: TakeReply::parse(part().as_bytes()).expect("a reply of the script"),
            tokens: part().to_owned(),
            last_refill: part().to_owned(),
            kept_ms: match part().parse::<u64>() {
                Ok(kept_ms) => Some(kept_ms),
                Err(_) if text.ends_with("|-2") => None,
                Err(_) => panic!("the key is kept for ever: {text}"),
            },
        }
    }

    fn skip(&mut self, replies: usize) {
        for _ in 0..replies {
            self.client.reply::<redis::Value>().expect("a reply");
        }
    }

    fn run(&mut self, take: &Take, now_us: u64) -> Seen {
        self.push(take, now_us);
        self.send();
        self.seen()
    }

    fn put(&mut self, key: &str, fields: &[(&str, &[u8])]) {
        self.push_fields(key, fields);
        self.send();
        self.skip(1 + fields.len());
    }
}

fn take_of(key: &str, limit: Limit) -> Take {
    Take { key: key.to_owned(), limit, other_limit: limit, ttl_ms: HOUR_MS }
}

fn tokens_text(pico: u64) -> String {
    format!("{}.{:012}", pico / PICO_PER_TOKEN, pico % PICO_PER_TOKEN)
}

fn time_text(us: u64) -> String {
    format!("{}.{:06}", us / SECOND, us % SECOND)
}

/// The expected result of the script, from the bucket in Rust.
///
/// `texts` are the fields if the request changes nothing.
fn expected(
    sequence: u32,
    stored: &mut Option<Bucket>,
    texts: (&str, &str),
    take: &Take,
    now_us: u64,
) -> (Seen, Verdict) {
    let (verdict, changed) = self::take(*stored, take.limit, now_us);
    let available = available_pico(*stored, take.limit, now_us);
    let is_admitted = verdict.outcome == Outcome::Admitted;
    let tokens_pico = if is_admitted { available - PICO_PER_TOKEN } else { available };
    let (tokens, last_refill) = match changed {
        Some(bucket) => (tokens_text(bucket.tokens_pico), time_text(bucket.refilled_at_us)),
        None => (texts.0.to_owned(), texts.1.to_owned()),
    };
    *stored = changed.or(*stored);
    let taken = TakeReply { sequence, admitted: is_admitted, tokens_pico, now_us };
    let is_kept = tokens != "-" || last_refill != "-";
    let kept_ms = is_kept.then(|| kept_ms(take, tokens_pico));
    (Seen { taken, tokens, last_refill, kept_ms }, verdict)
}

/// The expiry of a bucket with these tokens: its `ttl`, and until it is full at either health.
fn kept_ms(take: &Take, tokens_pico: u64) -> u64 {
    let full_ms = |limit: Limit| {
        let missing = (u64::from(limit.capacity()) * PICO_PER_TOKEN).saturating_sub(tokens_pico);
        if missing == 0 { 0 } else { missing.div_ceil(limit.refill_micro_per_sec()).div_ceil(1_000) }
    };
    take.ttl_ms.max(full_ms(take.limit)).max(full_ms(take.other_limit))
}

#[test]
fn the_hash_is_the_one_that_redis_computes() {
    assert_eq!(Client::start().run::<String>(&["SCRIPT", "LOAD", TAKE]), TAKE_SHA1);
}

#[test]
fn lua_decides_like_rust_case_by_case() {
    let mut lua = LuaBucket::new(Client::start());
    let token = PICO_PER_TOKEN;
    let now = YEAR_2024 + 123_456_789;
    let one_per_second = limit(10, 1_000_000);
    let (slowest, fastest) = (limit(3, 1), limit(MAX_CAPACITY, MAX_REFILL_MICRO_PER_SEC));
    // (case, stored tokens and time, limit, time, whole tokens left or nothing if refused)
    type Case = (&'static str, Option<(u64, u64)>, Limit, u64, Option<u32>);
    let cases: &[Case] = &[
        ("a new bucket is full", None, one_per_second, now, Some(9)),
        ("a new bucket of one", None, limit(1, 1_000_000), now, Some(0)),
        ("the largest new bucket", None, fastest, now, Some(MAX_CAPACITY - 1)),
        ("the last token", Some((token, now)), one_per_second, now, Some(0)),
        ("a unit less than a token", Some((token - 1, now)), one_per_second, now, None),
        ("a unit more than a token", Some((token + 1, now)), one_per_second, now, Some(0)),
        ("empty", Some((0, now)), one_per_second, now, None),
        ("a microsecond before the token is due", Some((0, now)), one_per_second, now + SECOND - 1, None),
        ("the instant it is due", Some((0, now)), one_per_second, now + SECOND, Some(0)),
        ("a microsecond after", Some((0, now)), one_per_second, now + SECOND + 1, Some(0)),
        ("a third of a token a second, early", Some((0, now)), limit(3, 333_333), now + 3_000_003, None),
        ("a third of a token a second, on time", Some((0, now)), limit(3, 333_333), now + 3_000_004, Some(0)),
        (
            "over a whole second's border",
            Some((0, 1_999_999_999_999)),
            limit(5, 999_999),
            2_000_001_000_001,
            Some(0),
        ),
        (
            "just before it, refilling a millionth less",
            Some((0, 1_999_999_999_999)),
            limit(5, 999_999),
            2_000_001_000_000,
            None,
        ),
        ("almost full", Some((10 * token - 1_000_001, now)), one_per_second, now + 1, Some(8)),
        ("full to the unit", Some((10 * token - 1_000_000, now)), one_per_second, now + 1, Some(9)),
        ("more than full", Some((9 * token, now)), one_per_second, now + YEAR, Some(9)),
        (
            "capacity has grown: it fills at its rate",
            Some((2 * token, now)),
            limit(100, 1_000_000),
            now + SECOND,
            Some(2),
        ),
        (
            "capacity has shrunk: what is above is gone",
            Some((9 * token, now)),
            limit(2, 500_000),
            now,
            Some(1),
        ),
        ("capacity has shrunk, a unit above", Some((2 * token + 1, now)), limit(2, 500_000), now, Some(1)),
        ("the rate has grown", Some((0, now)), limit(10, 5_000_000), now + SECOND, Some(4)),
        ("the rate has shrunk", Some((0, now)), limit(10, 100_000), now + 9_999_999, None),
        ("a microsecond back, empty", Some((0, now)), one_per_second, now - 1, None),
        ("a microsecond back, with a token", Some((token, now)), one_per_second, now - 1, Some(0)),
        ("a second back, almost a token", Some((token - 1, now)), one_per_second, now - SECOND, None),
        ("a second and a microsecond back", Some((token - 1, now)), one_per_second, now - SECOND - 1, None),
        ("a year back", Some((token / 2, now)), one_per_second, now - YEAR, None),
        ("a year back, more than full", Some((50 * token, now)), one_per_second, now - YEAR, Some(9)),
        ("to 1970", Some((token / 2, now)), one_per_second, 0, None),
        ("since 1970", Some((0, 0)), one_per_second, YEAR_2200, Some(9)),
        ("since 1970, at a millionth a second", Some((0, 0)), slowest, now, Some(2)),
        ("a millionth a second, early", Some((0, now)), slowest, now + 1_000_000 * SECOND - 1, None),
        ("a millionth a second, on time", Some((0, now)), slowest, now + 1_000_000 * SECOND, Some(0)),
        ("a million a second, on time", Some((0, now)), fastest, now + 1, Some(0)),
        ("a million a second, for a second", Some((0, now)), fastest, now + SECOND, Some(999_999)),
        (
            "a million a second, ten less a microsecond",
            Some((0, now)),
            fastest,
            now + 10 * SECOND - 1,
            Some(MAX_CAPACITY - 2),
        ),
        ("a million a second, ten", Some((0, now)), fastest, now + 10 * SECOND, Some(MAX_CAPACITY - 1)),
        (
            "all nines for a second",
            Some((0, now)),
            limit(MAX_CAPACITY, 999_999_999_999),
            now + SECOND,
            Some(999_998),
        ),
        (
            "all nines for all nines",
            Some((999_999_999_999, now)),
            limit(MAX_CAPACITY, 999_999_999_999),
            now + 999_999,
            Some(999_998),
        ),
        (
            "all nines for 170 years",
            Some((0, now)),
            limit(MAX_CAPACITY, 999_999_999_999),
            YEAR_2200,
            Some(MAX_CAPACITY - 1),
        ),
        (
            "a millionth less than one for 170 years",
            Some((0, now)),
            limit(MAX_CAPACITY, 999_999),
            now + 9_999_999 * SECOND,
            Some(9_999_988),
        ),
        ("more tokens than there can be", Some((u64::MAX, now)), one_per_second, now, Some(9)),
        ("a capacity of zero", Some((5 * token, now)), limit(0, 0), now, None),
        ("a capacity of zero, stepped back", Some((5 * token, now)), limit(0, 5), now - 1, None),
        ("a capacity of zero, new", None, limit(0, 0), now, None),
    ];
    for (what, stored, limit, now_us, left) in cases {
        let take = take_of("case", *limit);
        let mut bucket = stored.map(|(tokens_pico, refilled_at_us)| Bucket { tokens_pico, refilled_at_us });
        let texts = stored.map(|(tokens, us)| (tokens_text(tokens), time_text(us)));
        let (tokens, last_refill) = texts.unwrap_or(("-".into(), "-".into()));
        match bucket {
            Some(_) => {
                lua.put("case", &[("tokens", tokens.as_bytes()), ("last_refill", last_refill.as_bytes())])
            }
            None => lua.put("case", &[]),
        }
        // Three requests, so that fields that the first one has stored are read too.
        let (mut tokens, mut last_refill) = (tokens, last_refill);
        for attempt in 0..3 {
            let seen = lua.run(&take, *now_us);
            let (expected, verdict) =
                expected(lua.sequence, &mut bucket, (&tokens, &last_refill), &take, *now_us);
            assert_eq!(seen, expected, "{what}, attempt {attempt}");
            if attempt == 0 {
                let admitted = (verdict.outcome == Outcome::Admitted).then_some(verdict.remaining);
                assert_eq!(admitted, *left, "{what}");
            }
            (tokens, last_refill) = (seen.tokens, seen.last_refill);
        }
    }
}

#[test]
fn fields_may_be_written_by_hand_and_garbage_counts_as_absent() {
    let mut lua = LuaBucket::new(Client::start());
    let limit = limit(1_000, 1_000_000);
    let take = take_of("fields", limit);
    let token = PICO_PER_TOKEN;
    let (now, then) = (YEAR_2024 + 10 * SECOND, "1704067200");
    let good: [(&str, &str, u64, u64); 12] = [
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
    for (tokens, last_refill, tokens_pico, refilled_at_us) in good {
        lua.put("fields", &[("tokens", tokens.as_bytes()), ("last_refill", last_refill.as_bytes())]);
        let mut bucket = Some(Bucket { tokens_pico, refilled_at_us });
        let seen = lua.run(&take, now);
        let (expected, _) = expected(lua.sequence, &mut bucket, (tokens, last_refill), &take, now);
        assert_eq!(seen, expected, "{tokens:?} tokens at {last_refill:?}");
    }

    let garbage: [&[u8]; 28] = [
        b"",
        b" ",
        b"-",
        b"-1",
        b"+5",
        b" 5",
        b"5 ",
        b"5\n",
        b"5\0",
        b"\x005",
        b"5,5",
        b"5.5.5",
        b"5..5",
        b".",
        b".5",
        b"1e3",
        b"0x10",
        b"nan",
        b"inf",
        b"-0",
        b"five",
        b"5f",
        b"\xff\xfe",
        "٥".as_bytes(),
        b"12345678901",
        b"5.0000000000001",
        b"99999999999999999999999999999999",
        &[b'9'; 5_000],
    ];
    let one = [("tokens", Some(&b"5"[..]), None), ("last_refill", None, Some(then.as_bytes()))];
    let both = garbage.iter().flat_map(|text| {
        [("tokens", Some(*text), Some(then.as_bytes())), ("last_refill", Some(&b"5"[..]), Some(*text))]
    });
    for (which, tokens, last_refill) in one.into_iter().chain(both) {
        let named = [("tokens", tokens), ("last_refill", last_refill)];
        let fields: Vec<(&str, &[u8])> =
            named.iter().filter_map(|(field, value)| Some((*field, (*value)?))).collect();
        lua.put("fields", &fields);
        let what = format!("{which}: {fields:?}");
        let seen = lua.run(&take, now);
        let (expected, _) = expected(lua.sequence, &mut None, ("-", "-"), &take, now);
        assert_eq!(seen, expected, "counts as a new bucket: {what}");
    }
    lua.put("fields", &[("tokens", b"5"), ("last_refill", b"1704067200.0000001")]);
    assert_eq!(lua.run(&take, now).taken.tokens_pico, 999 * token, "a tenth of a microsecond is garbage");
}

#[test]
fn the_key_is_kept_until_it_is_full_again_at_either_health_and_no_longer() {
    let mut lua = LuaBucket::new(Client::start());
    let per_day = limit(1_000, 11_574);
    // (limit, the other limit, ttl, requests before, how long it is kept after one more)
    let cases = [
        (per_day, per_day, 1_000, 0, 86_401),
        (per_day, per_day, 1_000, 1, 172_801),
        (per_day, per_day, 100_000, 0, 100_000),
        (limit(25, 2_000_000), limit(15, 2_000_000), 1, 0, 500),
        (limit(25, 2_000_000), limit(26, 1_000_000), 1, 0, 2_000),
        (limit(3, 10_000), limit(25, 2_000_000), 1, 0, 100_000),
        (limit(3, 1_000_000), limit(0, 0), 1, 0, 1_000),
    ];
    for (number, (limit, other_limit, ttl_ms, before, wanted_ms)) in cases.into_iter().enumerate() {
        let take = Take { key: format!("kept:{number}"), limit, other_limit, ttl_ms };
        let seen = (0..=before).map(|_| lua.run(&take, YEAR_2024)).last().expect("one request at least");
        let kept_ms = seen.kept_ms.expect("a key");
        assert!(
            (wanted_ms - wanted_ms.min(100)..=wanted_ms + 1).contains(&kept_ms),
            "{kept_ms} ms: {take:?}"
        );
    }
}

#[test]
fn the_key_expires_after_its_ttl_and_every_request_renews_it() {
    let mut client = Client::start();
    let slow = limit(1, 100_000);
    let take = Take { key: "kept".to_owned(), limit: slow, other_limit: slow, ttl_ms: 50_000 };
    let mut run = |script| {
        let taken = client.take(&take, 7, script).expect("a reply");
        assert_eq!(taken.sequence, 7);
        let clock_us = UNIX_EPOCH.elapsed().expect("a clock after 1970").as_micros() as u64;
        assert!(clock_us.abs_diff(taken.now_us) < 20 * SECOND, "it is Redis' clock");
        let ttl_ms: u64 = client.run(&["PTTL", "kept"]);
        // The reply to the second command may come later than the first one.
        assert!((30_000..=50_000).contains(&ttl_ms), "{ttl_ms} ms");
        client.run::<()>(&["PEXPIRE", "kept", "20000"]);
        taken.admitted
    };
    assert!(run(Script::Text), "a new bucket is kept");
    assert!(!run(Script::Hash), "a refusal keeps it longer");
    assert!(!run(Script::Text), "and so does the next");
    let stored: String = client.run(&["HGET", "kept", "last_refill"]);
    // A clock that is behind the stored time.
    client.run::<()>(&["HSET", "kept", "last_refill", "9999999999"]);
    assert!(!client.take(&take, 8, Script::Hash).expect("a reply").admitted);
    assert!(client.run::<u64>(&["PTTL", "kept"]) > 30_000, "a refusal after a step back");
    let again: String = client.run(&["HGET", "kept", "last_refill"]);
    assert!(again >= stored && again.as_str() < "9999999999", "continues from the present clock");

    let longest =
        Take { key: "longest".to_owned(), limit: limit(MAX_CAPACITY, 1), other_limit: slow, ttl_ms: 1_000 };
    let taken = client.take(&longest, u32::MAX, Script::Hash).expect("a reply");
    assert_eq!((taken.sequence, taken.admitted), (u32::MAX, true));
    client.run::<()>(&["HSET", "longest", "tokens", "0"]);
    assert!(!client.take(&longest, 1, Script::Hash).expect("a reply").admitted);
    assert!(client.run::<u64>(&["PTTL", "longest"]) > 9_000_000_000_000_000);
}

#[test]
fn a_key_that_is_no_bucket_is_an_error_and_stays_unchanged() {
    let mut client = Client::start();
    client.run::<()>(&["SET", "string", "mine"]);
    let error = client.take(&take_of("string", limit(1, 1)), 1, Script::Text).expect_err("no bucket");
    assert_eq!(error.code(), Some("WRONGTYPE"), "the session recognises it by its first word: {error}");
    assert_eq!(client.run::<String>(&["GET", "string"]), "mine");
    assert_eq!(client.run::<i64>(&["PTTL", "string"]), -1, "and does not expire");
}

#[test]
fn a_missing_script_is_an_error() {
    let mut client = Client::start();
    let take = take_of("key", limit(1, 1));
    let error = client.take(&take, 1, Script::Hash).expect_err("no script");
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::NoScript), "{error}");
    for (sequence, script, admitted) in [(2, Script::Text, true), (3, Script::Hash, false)] {
        let taken = client.take(&take, sequence, script).expect("a reply");
        assert_eq!((taken.sequence, taken.admitted), (sequence, admitted), "EVAL makes the hash known");
    }
}

/// One caller of the random run.
struct Caller {
    take: Take,
    now_us: u64,
    stored: Option<Bucket>,
    tokens: String,
    last_refill: String,
}

fn any_limit(random: &mut Random) -> Limit {
    let rates = [1, 278, 333_333, 999_999, 1_000_000, 1_000_001, 999_999_999_999, MAX_REFILL_MICRO_PER_SEC];
    let rate = match random.one_in(2) {
        true => random.choose(&rates),
        false => random.of_any_size(MAX_REFILL_MICRO_PER_SEC),
    };
    let capacity = match random.below(20) {
        0 => 0,
        1 => MAX_CAPACITY,
        2..12 => 1 + random.below(4) as u32,
        _ => random.of_any_size(MAX_CAPACITY.into()) as u32,
    };
    limit(capacity, rate)
}

/// The next instant: near the one before, near the next token, near a border of seconds, or far away.
fn any_time(random: &mut Random, caller: &Caller) -> u64 {
    let now_us = caller.now_us;
    let rate = caller.take.limit.refill_micro_per_sec().max(1);
    let missing = caller.stored.map_or(0, |bucket| PICO_PER_TOKEN.saturating_sub(bucket.tokens_pico));
    let due_us =
        caller.stored.map_or(now_us, |bucket| bucket.refilled_at_us.saturating_add(missing.div_ceil(rate)));
    let next_us = match random.below(100) {
        0..20 => now_us,
        20..35 => now_us + random.below(3),
        35..60 => due_us.saturating_add(random.below(5)).saturating_sub(2),
        60..70 => now_us + random.of_any_size(SECOND),
        70..75 => now_us + random.of_any_size(YEAR),
        75..80 => (now_us / SECOND + 1) * SECOND - random.below(2),
        80..83 => YEAR_2024 + random.below(YEAR_2200 - YEAR_2024),
        83..87 => now_us - 1 - random.below(3),
        87..89 => now_us - SECOND - random.below(3),
        89..90 => now_us - YEAR,
        90..92 => now_us - random.of_any_size(YEAR),
        _ => now_us + random.of_any_size(3600 * SECOND),
    };
    if (YEAR_2024..YEAR_2200).contains(&next_us) { next_us } else { YEAR_2024 + random.below(YEAR) }
}

/// `units` of one in 10^`digits` as text, in one of its forms.
fn any_text(random: &mut Random, units: u64, digits: u32) -> String {
    let one = 10_u64.pow(digits);
    let canonical = format!("{}.{:0width$}", units / one, units % one, width = digits as usize);
    match random.one_in(2) {
        true => canonical.trim_end_matches('0').to_owned(),
        false => format!("0{canonical}"),
    }
}

/// Changes the stored fields, as an operator or another program may; returns the number of replies.
fn change_fields(random: &mut Random, lua: &mut LuaBucket, caller: &mut Caller) -> usize {
    let tokens_pico = random.of_any_size(u64::from(MAX_CAPACITY) * PICO_PER_TOKEN);
    let refilled_at_us = YEAR_2024 + random.below(YEAR_2200 - YEAR_2024);
    let mut tokens = any_text(random, tokens_pico, 12);
    let mut last_refill = any_text(random, refilled_at_us, 6);
    let mut stored = Some(Bucket { tokens_pico, refilled_at_us });
    // At most ten digits before the point are read.
    if last_refill.starts_with('0') {
        stored = None;
    }
    match random.below(6) {
        0 => (tokens, stored) = ("garbage".to_owned(), None),
        1 => (last_refill, stored) = ("-1".to_owned(), None),
        2 => (tokens, stored) = (format!("{tokens}e1"), None),
        _ => {}
    }
    let fields: [(&str, &[u8]); 2] = [("tokens", tokens.as_bytes()), ("last_refill", last_refill.as_bytes())];
    lua.push_fields(&caller.take.key, &fields);
    (caller.tokens, caller.last_refill, caller.stored) = (tokens.clone(), last_refill.clone(), stored);
    3
}

#[test]
fn lua_decides_like_rust_at_random() {
    const CALLERS: u64 = 500;
    const BATCH: u64 = 2_000;
    let operations = number_from_env("BUCKET_OPERATIONS", 200_000);
    let mut random = Random::new(seed_from_env("BUCKET_SEED"));
    let mut lua = LuaBucket::new(Client::start());
    let mut callers: Vec<Caller> = (0..CALLERS)
        .map(|number| Caller {
            take: take_of(&format!("caller:{number}"), any_limit(&mut random)),
            now_us: YEAR_2024 + random.below(YEAR_2200 - YEAR_2024),
            stored: None,
            tokens: "-".to_owned(),
            last_refill: "-".to_owned(),
        })
        .collect();
    let mut outcomes: HashMap<(bool, bool), u64> = HashMap::new();
    let mut done = 0;
    while done < operations {
        let mut wanted = Vec::new();
        for _ in 0..BATCH.min(operations - done) {
            let caller = &mut callers[random.below(CALLERS) as usize];
            let changed = if random.one_in(50) { change_fields(&mut random, &mut lua, caller) } else { 0 };
            if random.one_in(20) {
                caller.take.limit = any_limit(&mut random);
            }
            caller.now_us = any_time(&mut random, caller);
            lua.push(&caller.take, caller.now_us);
            let before = caller.stored;
            let texts = (caller.tokens.as_str(), caller.last_refill.as_str());
            let (expected, verdict) =
                expected(lua.sequence, &mut caller.stored, texts, &caller.take, caller.now_us);
            let stepped_back = before.is_some_and(|bucket| caller.now_us < bucket.refilled_at_us);
            *outcomes.entry((verdict.outcome == Outcome::Admitted, stepped_back)).or_default() += 1;
            (caller.tokens, caller.last_refill) = (expected.tokens.clone(), expected.last_refill.clone());
            wanted.push((changed, before, caller.take.limit, expected));
        }
        lua.send();
        for (changed, before, limit, expected) in wanted {
            lua.skip(changed);
            let seen = lua.seen();
            done += 1;
            assert_eq!(seen, expected, "operation {done}: {before:?} under {limit:?}");
        }
    }
    println!("{done} operations, by (admitted, stepped back): {outcomes:?}");
    assert_eq!(outcomes.len(), 4, "not every kind of outcome occurred: {outcomes:?}");
}

#[test]
fn a_redis_clock_that_steps_back_mints_nothing_and_blocks_no_caller() {
    let mut random = Random::new(seed_from_env("BUCKET_SEED"));
    let mut lua = LuaBucket::new(Client::start());
    for run in 0..40 {
        let rate = random.of_any_size(5_000_000);
        let limit = limit(1 + random.below(20) as u32, rate);
        let take = take_of(&format!("stepping:{run}"), limit);
        let token_us = PICO_PER_TOKEN.div_ceil(rate);
        let mut oracle = IntervalOracle::new(limit);
        let mut now_us = YEAR_2024;
        for _ in 0..150 {
            now_us = match random.below(10) {
                0 => now_us - random.choose(&[1, SECOND, YEAR]),
                1..6 => now_us + random.below(3),
                6..9 => now_us + token_us.saturating_add(random.below(5)).saturating_sub(2),
                _ => now_us + random.of_any_size(10 * token_us),
            };
            let seen = lua.run(&take, now_us);
            let allowed = oracle.may_admit(now_us);
            if seen.taken.admitted {
                assert!(allowed, "run {run}: a token was minted at {now_us}");
                oracle.admit();
                continue;
            }
            let wait_us = Verdict::new(Outcome::Refused, seen.taken.tokens_pico, limit).wait_us;
            assert!((1..=token_us).contains(&wait_us), "run {run}: {wait_us} µs to wait at {now_us}");
            if random.one_in(4) {
                assert!(
                    !lua.run(&take, now_us + wait_us - 1).taken.admitted,
                    "run {run}: a microsecond early"
                );
                now_us += wait_us;
                assert!(lua.run(&take, now_us).taken.admitted, "run {run}: blocked at {now_us}");
                assert!(oracle.may_admit(now_us));
                oracle.admit();
            }
        }
    }
}
