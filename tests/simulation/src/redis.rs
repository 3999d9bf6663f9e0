//! The Redis of a world: a model, or a real server with the real script on the world's clock.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dynamic_rate_limiter::bucket::PICO_PER_TOKEN;
use dynamic_rate_limiter::limit::Limit;
use dynamic_rate_limiter::store::redis::resp::push_command;
use dynamic_rate_limiter::store::redis::script::{TAKE, TAKE_SHA1};
use harness::fake_redis::{Connection, ModelRedis, script_with_clock};

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
    Model(Box<Model>),
    Real(Client),
}

#[derive(Default)]
struct Model {
    redis: ModelRedis,
    replica: ModelRedis,
}

impl Server {
    /// The model, empty.
    pub fn model() -> Self {
        Self { backend: Backend::Model(Box::default()), clock_us: EPOCH_US, knows_script: false }
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
            Backend::Model(model) => model.redis.knows_script = false,
            Backend::Real(client) => drop(client.send(&[b"SCRIPT", b"FLUSH"])),
        }
    }

    /// A restart without the data.
    pub fn lose_all(&mut self) {
        match &mut self.backend {
            Backend::Model(model) => **model = Model::default(),
            Backend::Real(client) => drop(client.send(&[b"FLUSHALL"])),
        }
        self.flush_script();
    }

    pub fn replicate(&mut self) {
        if let Backend::Model(model) = &mut self.backend {
            model.replica = ModelRedis { knows_script: false, ..model.redis.clone() };
        }
    }

    pub fn fail_over(&mut self) {
        self.knows_script = false;
        if let Backend::Model(model) = &mut self.backend {
            model.redis = model.replica.clone();
        }
    }

    pub fn text(&mut self, key: &str) -> Option<Vec<u8>> {
        match &mut self.backend {
            Backend::Model(model) => model.redis.strings.get(key).cloned(),
            Backend::Real(client) => bulk_of(&client.send(&[b"GET", key.as_bytes()])).map(<[u8]>::to_vec),
        }
    }

    /// Sets a text, as an operator does.
    pub fn set_text(&mut self, key: &str, value: &str) {
        self.execute(&[b"SET", key.as_bytes(), value.as_bytes()], 0);
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
                let &[capacity, rate, _, sequence, other_capacity, other_rate] = arguments else {
                    panic!("the script has six arguments");
                };
                let (reply, (was_absent, has_expired)) = match &mut self.backend {
                    Backend::Model(model) => {
                        model.redis.now_us = clock_us;
                        let absence = model.absence(key);
                        (model.redis.execute(&mut Connection::default(), words), absence)
                    }
                    Backend::Real(client) => {
                        (client.take(key, arguments, is_retry, clock_us), (false, false))
                    }
                };
                let sequence = number(sequence) as u32;
                if reply.starts_with(b"-NOSCRIPT") {
                    return (reply, Done::NoScript(sequence));
                }
                let limit = harness::limit(number(capacity) as u32, number(rate));
                let other_limit = harness::limit(number(other_capacity) as u32, number(other_rate));
                let (key, said) = (key.to_vec(), said(&reply));
                let took = Took { key, sequence, limit, other_limit, said, was_absent, has_expired };
                (reply, Done::Took(took))
            }
            _ => match &mut self.backend {
                Backend::Model(model) => {
                    (model.redis.execute(&mut Connection::default(), words), Done::Other)
                }
                Backend::Real(client) => (client.send(words), Done::Other),
            },
        }
    }
}

impl Model {
    /// Whether there is no such bucket, and whether it has expired.
    fn absence(&self, key: &[u8]) -> (bool, bool) {
        let key = std::str::from_utf8(key).expect("a key of the limiter");
        let is_absent = self.redis.bucket(key).is_none();
        (is_absent, is_absent && self.redis.buckets.contains_key(key))
    }
}

/// The decision in a reply of the script.
fn said(reply: &[u8]) -> Said {
    let text = bulk_of(reply).and_then(|text| std::str::from_utf8(text).ok()).expect("the script's reply");
    let fields: Vec<&str> = text.split(' ').collect();
    let (whole, pico) = fields[2].split_once('.').expect("tokens");
    let left_pico = number(whole.as_bytes()) * PICO_PER_TOKEN + number(pico.as_bytes());
    let left = (left_pico / PICO_PER_TOKEN) as u32;
    Said { admitted: fields[1] == "1", left_pico: Some(left_pico), left, wait_us: None }
}

fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).expect("a number")
}

fn bulk_of(reply: &[u8]) -> Option<&[u8]> {
    let start = reply.iter().position(|byte| *byte == b'\n')? + 1;
    (reply.first() == Some(&b'$')).then(|| reply.get(start..reply.len() - 2)).flatten()
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
        let script = script_with_clock();
        let mut client = Self { _server: server, stream, script: script.clone(), sha1: Vec::new() };
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

    fn take(&mut self, key: &[u8], arguments: &[&[u8]], is_retry: bool, clock_us: u64) -> Vec<u8> {
        let (seconds, us) = ((clock_us / SECOND).to_string(), (clock_us % SECOND).to_string());
        // The server expires keys by its own clock, which is not the world's: the expiry is extended.
        let ttl_ms = number(arguments[2]);
        assert!(ttl_ms > 0, "the bucket would be gone at once");
        let ttl_ms = (ttl_ms * 1_000_000).to_string();
        let (script, sha1) = (self.script.clone(), self.sha1.clone());
        let (name, script): (&[u8], &[u8]) = match is_retry {
            true => (b"EVAL", script.as_bytes()),
            false => (b"EVALSHA", &sha1),
        };
        let mut words: Vec<&[u8]> = vec![name, script, b"1", key];
        words.extend(arguments);
        words[6] = ttl_ms.as_bytes();
        words.extend([seconds.as_bytes(), us.as_bytes()]);
        self.send(&words)
    }
}

fn is_whole(reply: &[u8]) -> bool {
    let Some(line) = reply.windows(2).position(|pair| pair == b"\r\n") else { return false };
    match reply[0] {
        b'$' if reply[1] != b'-' => reply.len() == line + 2 + number(&reply[1..line]) as usize + 2,
        _ => true,
    }
}
