//! A model of Redis in memory: the commands that the limiter uses, with a clock that tests control.

use std::collections::{HashMap, HashSet};

use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN, available_pico, take};
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::store::redis::script::{TAKE, TAKE_SHA1, Take};

use crate::{SECOND, limit};

/// The error by which a replica refuses a write, without the dash.
pub const READ_ONLY: &str = "READONLY You can't write against a read only replica.";

pub type Command = Vec<Vec<u8>>;

/// A command as text, for messages and comparisons. The script is replaced by its name.
pub fn shown(command: &Command) -> String {
    let words = command.iter().map(|word| match word.as_slice() {
        script if script == TAKE.as_bytes() => "<take>".to_owned(),
        script if script == TAKE_SHA1.as_bytes() => "<sha1>".to_owned(),
        word => String::from_utf8_lossy(word).into_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Parses a command as Redis does, without code of the limiter: its words and its length, or `None` if it is incomplete.
pub fn parse_words(bytes: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    let mut at = 0;
    let number = |kind: u8, at: &mut usize| {
        let line = bytes[*at..].windows(2).position(|pair| pair == b"\r\n")?;
        let text = &bytes[*at..*at + line];
        assert_eq!(text.first(), Some(&kind), "{:?}", String::from_utf8_lossy(bytes));
        *at += line + 2;
        std::str::from_utf8(&text[1..]).ok()?.parse::<usize>().ok()
    };
    let count = number(b'*', &mut at)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(b'$', &mut at)?;
        let word = bytes.get(at..at + length)?;
        assert_eq!(bytes.get(at + length..at + length + 2)?, b"\r\n");
        at += length + 2;
        words.push(word);
    }
    Some((words, at))
}

/// [`parse_words`], with words of its own.
pub fn parse_command(bytes: &[u8]) -> Option<(Command, usize)> {
    let (words, length) = parse_words(bytes)?;
    Some((words.into_iter().map(<[u8]>::to_vec).collect(), length))
}

/// Parses all commands in `bytes`, which must end with a complete one.
pub fn parse_commands(mut bytes: &[u8]) -> Vec<Command> {
    let mut commands = Vec::new();
    while !bytes.is_empty() {
        let (command, length) = parse_command(bytes).expect("a complete command");
        commands.push(command);
        bytes = &bytes[length..];
    }
    commands
}

/// The reply of the script.
pub fn taken_reply(sequence: &str, admitted: bool, tokens_pico: u64, now_us: u64) -> Vec<u8> {
    let (tokens, pico) = (tokens_pico / PICO_PER_TOKEN, tokens_pico % PICO_PER_TOKEN);
    let (seconds, us) = (now_us / SECOND, now_us % SECOND);
    let admitted = u8::from(admitted);
    bulk(format!("{sequence} {admitted} {tokens}.{pico:012} {seconds}.{us:06}").as_bytes())
}

pub fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

/// The expiry of a bucket with these tokens: its `ttl`, and until it is full at either health.
pub fn kept_ms(take: &Take, tokens_pico: u64) -> u64 {
    let full_ms = |limit: Limit| {
        let missing = (u64::from(limit.capacity()) * PICO_PER_TOKEN).saturating_sub(tokens_pico);
        if missing == 0 { 0 } else { missing.div_ceil(limit.refill_micro_per_sec()).div_ceil(1_000) }
    };
    take.ttl_ms.max(full_ms(take.limit)).max(full_ms(take.other_limit))
}

/// The shipped script, but with the time in two more arguments: seconds, and microseconds.
pub fn script_with_clock() -> String {
    let clock = "redis.call('TIME')";
    assert_eq!(TAKE.matches(clock).count(), 1, "the script reads the clock once");
    TAKE.replace(clock, "{ARGV[7], ARGV[8]}")
}

/// One connection: the input not parsed yet, and whether it is authenticated.
#[derive(Default)]
pub struct Connection {
    input: Vec<u8>,
    is_authenticated: bool,
}

#[derive(Clone, Default)]
pub struct ModelRedis {
    pub now_us: u64,
    pub buckets: HashMap<String, Bucket>,
    /// When each bucket expires, on the same clock.
    pub expires_us: HashMap<String, u64>,
    pub strings: HashMap<String, Vec<u8>>,
    /// Whether the script is loaded, so that `EVALSHA` works.
    pub knows_script: bool,
    /// The error reply to every command, if any; without the dash.
    pub error: Option<&'static str>,
    /// Whether it is a replica, which rejects writes.
    pub is_replica: bool,
    /// Keys whose value is not a bucket.
    pub of_another_type: HashSet<String>,
    /// The required arguments of `AUTH`: the user, if not the default one, and the password.
    pub password: Option<(Option<&'static str>, &'static str)>,
    /// All received commands.
    pub commands: Vec<Command>,
}

impl ModelRedis {
    pub fn at(now_us: u64) -> Self {
        Self { now_us, ..Self::default() }
    }

    /// Receives bytes; returns the reply to each complete command.
    pub fn receive(&mut self, connection: &mut Connection, bytes: &[u8]) -> Vec<Vec<u8>> {
        connection.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut connection.input);
        let (mut replies, mut rest) = (Vec::new(), input.as_slice());
        while let Some((command, length)) = parse_command(rest) {
            rest = &rest[length..];
            replies.push(self.execute(connection, &command));
            self.commands.push(command);
        }
        connection.input = rest.to_vec();
        replies
    }

    /// The commands since the last call, as text.
    pub fn take_commands(&mut self) -> Vec<String> {
        std::mem::take(&mut self.commands).iter().map(shown).collect()
    }

    /// The reply to one command.
    pub fn execute(&mut self, connection: &mut Connection, words: &[impl AsRef<[u8]>]) -> Vec<u8> {
        let text = |word| std::str::from_utf8(word).expect("text");
        let texts: Vec<&str> = words.iter().map(|word| text(word.as_ref())).collect();
        if let Some(error) = self.error {
            return format!("-{error}\r\n").into_bytes();
        }
        if let ["AUTH", credentials @ ..] = texts.as_slice() {
            let is_right = match (self.password, credentials) {
                (Some((None, password)), [found]) => *found == password,
                (Some((Some(user), password)), [found_user, found]) => {
                    (*found_user, *found) == (user, password)
                }
                _ => false,
            };
            connection.is_authenticated |= is_right;
            let refusal = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
            return if is_right { b"+OK\r\n".to_vec() } else { refusal.to_vec() };
        }
        if self.password.is_some() && !connection.is_authenticated {
            assert!(texts.len() <= 10, "before AUTH, a longer command is a protocol error for Redis");
            return b"-NOAUTH Authentication required.\r\n".to_vec();
        }
        match texts.as_slice() {
            ["EVAL" | "EVALSHA" | "SET", ..] if self.is_replica => format!("-{READ_ONLY}\r\n").into_bytes(),
            ["EVALSHA", script, "1", key, arguments @ ..] => {
                assert_eq!(*script, TAKE_SHA1);
                match self.knows_script {
                    true => self.take(key, arguments),
                    false => b"-NOSCRIPT No matching script. Please use EVAL.\r\n".to_vec(),
                }
            }
            ["EVAL", script, "1", key, arguments @ ..] => {
                assert_eq!(*script, TAKE);
                self.knows_script = true;
                self.take(key, arguments)
            }
            ["GET", key] => match self.strings.get(*key) {
                Some(value) => bulk(value),
                None => b"$-1\r\n".to_vec(),
            },
            ["SET", key, value, flags @ ..] => match flags {
                ["NX"] if self.strings.contains_key(*key) => b"$-1\r\n".to_vec(),
                [] | ["NX"] => {
                    self.strings.insert((*key).to_owned(), (*value).into());
                    b"+OK\r\n".to_vec()
                }
                _ => panic!("SET has no flags {flags:?} here"),
            },
            _ => panic!("a command that the limiter does not use: {texts:?}"),
        }
    }

    /// The bucket, unless it has expired.
    pub fn bucket(&self, key: &str) -> Option<Bucket> {
        let is_kept = |_: &Bucket| self.expires_us.get(key).is_none_or(|until_us| self.now_us < *until_us);
        self.buckets.get(key).copied().filter(is_kept)
    }

    fn take(&mut self, key: &str, arguments: &[&str]) -> Vec<u8> {
        let [capacity, rate, ttl_ms, sequence, other_capacity, other_rate] = arguments else {
            panic!("the script has six arguments: {arguments:?}");
        };
        if self.of_another_type.contains(key) {
            return b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n".to_vec();
        }
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let limit_of = |capacity: &str, rate: &str| limit(number(capacity) as u32, number(rate));
        let (limit, other_limit) = (limit_of(capacity, rate), limit_of(other_capacity, other_rate));
        let command = Take { key: key.to_owned(), limit, other_limit, ttl_ms: number(ttl_ms) };
        assert!(command.ttl_ms > 0, "the key would be gone at once");
        let stored = self.bucket(key);
        let (verdict, changed) = take(stored, limit, self.now_us);
        let state = changed.or(stored).expect("a new bucket has a token");
        let left = available_pico(Some(state), limit, self.now_us);
        let until_us = self.now_us.saturating_add(kept_ms(&command, left).saturating_mul(1_000));
        self.expires_us.insert(key.to_owned(), until_us);
        self.buckets.insert(key.to_owned(), state);
        taken_reply(sequence, verdict.outcome == Outcome::Admitted, left, self.now_us)
    }
}
