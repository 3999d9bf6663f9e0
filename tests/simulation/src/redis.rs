//! The Redis of a world: a model, or a real server with the real script on the world's clock.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dynamic_rate_limiter::bucket::{Bucket, Outcome, PICO_PER_TOKEN, available_pico, take};
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::store::redis::resp::push_command;
use dynamic_rate_limiter::store::redis::script::{TAKE, TAKE_SHA1};

use crate::oracle::Said;

const SECOND: u64 = 1_000_000;

/// The start of every world on Redis' clock.
const EPOCH_US: u64 = 1_700_000_000 * SECOND;

/// The effect of a command, besides its reply.
pub enum Done {
    Took(Took),
    NoScript(u32),
    Other,
}

pub struct Took {
    pub key: Vec<u8>,
    /// The sequence number of the command.
    pub sequence: u32,
    /// Whether it came with the script's text.
    pub is_retry: bool,
    pub limit: Limit,
    /// The limit at the other health in the command.
    pub other_limit: Limit,
    /// Its decision.
    pub said: Said,
    pub was_absent: bool,
    pub has_expired: bool,
}

pub struct Server {
    backend: Backend,
    /// Added to the world's clock.
    clock_us: u64,
    /// Whether the script is known by its hash.
    pub knows_script: bool,
}

enum Backend {
    Model(Model),
    Real(Client),
}

#[derive(Default)]
struct Model {
    buckets: HashMap<Vec<u8>, (Bucket, u64)>,
    texts: HashMap<Vec<u8>, Vec<u8>>,
    knows_script: bool,
    replica: Option<Box<Model>>,
}

impl Server {
    /// The model, empty.
    pub fn model() -> Self {
        Self { backend: Backend::Model(Model::default()), clock_us: EPOCH_US, knows_script: false }
    }

    /// A real server, emptied.
    pub fn real(mut client: Client) -> Self {
        client.send(&[b"FLUSHALL"]);
        client.send(&[b"SCRIPT", b"FLUSH"]);
        Self { backend: Backend::Real(client), clock_us: EPOCH_US, knows_script: false }
    }

    pub fn into_client(self) -> Option<Client> {
        match self.backend {
            Backend::Model(_) => None,
            Backend::Real(client) => Some(client),
        }
    }

    pub fn has_replica(&self) -> bool {
        matches!(self.backend, Backend::Model(_))
    }

    pub fn clock_us(&self, now_us: u64) -> u64 {
        self.clock_us + now_us
    }

    pub fn step_clock(&mut self, forward: bool, us: u64) {
        self.clock_us = if forward { self.clock_us + us } else { self.clock_us - us };
    }

    /// `SCRIPT FLUSH`, or a restart that keeps the data.
    pub fn flush_script(&mut self) {
        self.knows_script = false;
        match &mut self.backend {
            Backend::Model(model) => model.knows_script = false,
            Backend::Real(client) => drop(client.send(&[b"SCRIPT", b"FLUSH"])),
        }
    }

    /// A restart without the data.
    pub fn lose_all(&mut self) {
        match &mut self.backend {
            Backend::Model(model) => *model = Model::default(),
            Backend::Real(client) => drop(client.send(&[b"FLUSHALL"])),
        }
        self.flush_script();
    }

    pub fn replicate(&mut self) {
        if let Backend::Model(model) = &mut self.backend {
            let (buckets, texts) = (model.buckets.clone(), model.texts.clone());
            model.replica = Some(Box::new(Model { buckets, texts, ..Model::default() }));
        }
    }

    pub fn fail_over(&mut self) {
        self.knows_script = false;
        if let Backend::Model(model) = &mut self.backend {
            let replica = model.replica.take().unwrap_or_default();
            *model =
                Model { buckets: replica.buckets.clone(), texts: replica.texts.clone(), ..Model::default() };
            model.replica = Some(replica);
        }
    }

    pub fn text(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        match &mut self.backend {
            Backend::Model(model) => model.texts.get(key).cloned(),
            Backend::Real(client) => bulk_of(&client.send(&[b"GET", key])).map(<[u8]>::to_vec),
        }
    }

    /// Sets a text, as an operator does.
    pub fn set_text(&mut self, key: &[u8], value: &[u8]) {
        self.execute(&[b"SET", key, value], 0);
    }

    /// Carries out one command at a time of the world's clock.
    pub fn execute(&mut self, words: &[&[u8]], now_us: u64) -> (Vec<u8>, Done) {
        let clock_us = self.clock_us(now_us);
        match words {
            [command @ (b"EVALSHA" | b"EVAL"), script, b"1", key, arguments @ ..] => {
                let is_retry = *command == b"EVAL";
                self.knows_script |= is_retry;
                let expected = if is_retry { TAKE.as_bytes() } else { TAKE_SHA1.as_bytes() };
                assert_eq!(*script, expected, "another script than ours");
                let command = TakeCommand::read(key, arguments, is_retry);
                match &mut self.backend {
                    Backend::Model(model) => model.take(&command, clock_us),
                    Backend::Real(client) => client.take(&command, clock_us),
                }
            }
            _ => match &mut self.backend {
                Backend::Model(model) => (model.text_command(words), Done::Other),
                Backend::Real(client) => (client.send(words), Done::Other),
            },
        }
    }
}

/// A command that runs the script.
struct TakeCommand<'a> {
    key: &'a [u8],
    arguments: &'a [&'a [u8]],
    is_retry: bool,
    limit: Limit,
    other_limit: Limit,
    ttl_ms: u64,
    sequence: u32,
}

impl<'a> TakeCommand<'a> {
    fn read(key: &'a [u8], arguments: &'a [&'a [u8]], is_retry: bool) -> Self {
        let &[capacity, rate, ttl_ms, sequence, other_capacity, other_rate] = arguments else {
            panic!("the script has six arguments");
        };
        let limit = Limit::new(number(capacity) as u32, number(rate));
        let limit = limit.expect("a limit in range");
        let other_limit = Limit::new(number(other_capacity) as u32, number(other_rate));
        let other_limit = other_limit.expect("a limit in range");
        let (ttl_ms, sequence) = (number(ttl_ms), number(sequence) as u32);
        assert!(ttl_ms > 0, "the bucket would be gone at once");
        Self { key, arguments, is_retry, limit, other_limit, ttl_ms, sequence }
    }

    /// The expiry of the bucket with these tokens: until it is full at either health.
    fn keep_ms(&self, left_pico: u64) -> u64 {
        let full_ms = |limit: Limit| {
            let full = u64::from(limit.capacity()) * PICO_PER_TOKEN;
            full.saturating_sub(left_pico).div_ceil(limit.refill_micro_per_sec()).div_ceil(1_000)
        };
        self.ttl_ms.max(full_ms(self.limit)).max(full_ms(self.other_limit))
    }

    fn took(&self, said: Said, (was_absent, has_expired): (bool, bool)) -> Done {
        let Self { sequence, is_retry, limit, other_limit, .. } = *self;
        Done::Took(Took {
            key: self.key.to_vec(),
            sequence,
            is_retry,
            limit,
            other_limit,
            said,
            was_absent,
            has_expired,
        })
    }
}

const NO_SCRIPT: &[u8] = b"-NOSCRIPT No matching script. Please use EVAL.\r\n";

impl Model {
    fn take(&mut self, command: &TakeCommand, clock_us: u64) -> (Vec<u8>, Done) {
        if !self.knows_script && !command.is_retry {
            return (NO_SCRIPT.to_vec(), Done::NoScript(command.sequence));
        }
        self.knows_script = true;
        let kept = self.buckets.get(command.key).copied();
        let stored = kept.filter(|(_, until_us)| clock_us < *until_us).map(|(bucket, _)| bucket);
        let (verdict, changed) = take(stored, command.limit, clock_us);
        let state = changed.or(stored).expect("a new bucket has a token");
        let left = available_pico(Some(state), command.limit, clock_us);
        self.buckets.insert(command.key.to_vec(), (state, clock_us + command.keep_ms(left) * 1_000));
        let admitted = verdict.outcome == Outcome::Admitted;
        let (tokens, pico) = (left / PICO_PER_TOKEN, left % PICO_PER_TOKEN);
        let (seconds, us) = (clock_us / SECOND, clock_us % SECOND);
        let text =
            format!("{} {} {tokens}.{pico:012} {seconds}.{us:06}", command.sequence, u8::from(admitted));
        let said = Said { admitted, left_pico: Some(left), left: tokens as u32, wait_us: None };
        (bulk(text.as_bytes()), command.took(said, (stored.is_none(), kept.is_some() && stored.is_none())))
    }

    fn text_command(&mut self, words: &[&[u8]]) -> Vec<u8> {
        match words {
            [b"GET", key] => self.texts.get(*key).map_or(b"$-1\r\n".to_vec(), |text| bulk(text)),
            [b"SET", key, _, b"NX"] if self.texts.contains_key(*key) => b"$-1\r\n".to_vec(),
            [b"SET", key, value] | [b"SET", key, value, b"NX"] => {
                self.texts.insert(key.to_vec(), value.to_vec());
                b"+OK\r\n".to_vec()
            }
            _ => panic!("unknown command: {words:?}"),
        }
    }
}

fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a number")
}

fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

fn bulk_of(reply: &[u8]) -> Option<&[u8]> {
    let start = reply.iter().position(|byte| *byte == b'\n')? + 1;
    (reply.first() == Some(&b'$')).then(|| reply.get(start..reply.len() - 2)).flatten()
}

/// Parses a command without the limiter's code: its words and its length, or nothing while it is incomplete.
pub fn parse_command<'a>(bytes: &'a [u8], words: &mut Vec<&'a [u8]>) -> Option<usize> {
    words.clear();
    let mut at = 0;
    let mut count = None;
    while count.is_none_or(|count| words.len() < count) {
        let line = bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let (kind, digits) = bytes[at..at + line].split_first().expect("a command");
        let length = number(digits) as usize;
        at += line + 2;
        if count.is_none() {
            assert_eq!(*kind, b'*', "a command");
            count = Some(length);
        } else {
            assert_eq!(*kind, b'$', "a word");
            bytes.get(at + length + 1)?;
            words.push(&bytes[at..at + length]);
            at += length + 2;
        }
    }
    Some(at)
}

/// A connection to the real server. One carries the commands of all streams, in the order in which they arrive there.
pub struct Client {
    _server: harness::redis::Redis,
    stream: UnixStream,
    /// The shipped script, but with the time as an argument.
    script: String,
    sha1: Vec<u8>,
}

impl Client {
    /// Starts a server, which stops with the connection.
    pub fn start() -> Self {
        let server = harness::redis::Redis::start();
        let stream = UnixStream::connect(server.socket()).expect("redis-server listens");
        let clock = "redis.call('TIME')";
        assert_eq!(TAKE.matches(clock).count(), 1, "the script looks at the clock once");
        let script = TAKE.replace(clock, "{ARGV[7], ARGV[8]}");
        let mut client = Self { _server: server, stream, script, sha1: Vec::new() };
        let script = client.script.clone();
        let reply = client.send(&[b"SCRIPT", b"LOAD", script.as_bytes()]);
        client.sha1 = bulk_of(&reply).expect("a hash").to_vec();
        client
    }

    /// Sends one command; returns the bytes of its reply.
    fn send(&mut self, words: &[&[u8]]) -> Vec<u8> {
        let mut command = Vec::new();
        push_command(&mut command, words);
        self.stream.write_all(&command).expect("redis-server reads");
        let (mut reply, mut buffer) = (Vec::new(), [0; 4096]);
        while !is_whole(&reply) {
            let length = self.stream.read(&mut buffer).expect("redis-server answers");
            assert!(length > 0, "redis-server hung up");
            reply.extend_from_slice(&buffer[..length]);
        }
        reply
    }

    fn take(&mut self, command: &TakeCommand, clock_us: u64) -> (Vec<u8>, Done) {
        let (seconds, us) = ((clock_us / SECOND).to_string(), (clock_us % SECOND).to_string());
        // The server expires keys by its own clock, which is not the world's: the expiry is extended.
        let ttl_ms = (command.ttl_ms * 1_000_000).to_string();
        let (script, sha1) = (self.script.clone(), self.sha1.clone());
        let (name, script): (&[u8], &[u8]) = match command.is_retry {
            true => (b"EVAL", script.as_bytes()),
            false => (b"EVALSHA", &sha1),
        };
        let mut words: Vec<&[u8]> = vec![name, script, b"1", command.key];
        words.extend(command.arguments);
        words[6] = ttl_ms.as_bytes();
        words.extend([seconds.as_bytes(), us.as_bytes()]);
        let reply = self.send(&words);
        if reply.starts_with(b"-NOSCRIPT") {
            return (reply, Done::NoScript(command.sequence));
        }
        let text =
            bulk_of(&reply).and_then(|text| std::str::from_utf8(text).ok()).expect("the script's answer");
        let fields: Vec<&str> = text.split(' ').collect();
        let (whole, pico) = fields[2].split_once('.').expect("tokens");
        let left_pico = number(whole.as_bytes()) * PICO_PER_TOKEN + number(pico.as_bytes());
        let left = (left_pico / PICO_PER_TOKEN) as u32;
        let said = Said { admitted: fields[1] == "1", left_pico: Some(left_pico), left, wait_us: None };
        (reply.clone(), command.took(said, (false, false)))
    }
}

fn is_whole(reply: &[u8]) -> bool {
    let Some(line) = reply.windows(2).position(|pair| pair == b"\r\n") else { return false };
    match reply[0] {
        b'$' if reply[1] != b'-' => reply.len() == line + 2 + number(&reply[1..line]) as usize + 2,
        _ => true,
    }
}
