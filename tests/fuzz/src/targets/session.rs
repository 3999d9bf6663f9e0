//! A session with Redis, in which each byte of the input is the next event: a command, a reply of the model of Redis,
//! other bytes in its place, a close, or time.
//!
//! Each command is answered once, at the latest at the tick after its deadline. Its timeout begins when it is sent, or,
//! while it is queued, when the last one was sent. Without tampering, the answer is the one of Redis to that command. A
//! command that is cancelled before it is sent is not answered. Commands in flight and queued commands are bounded.

use std::collections::HashMap;
use std::time::Duration;

use dynamic_rate_limiter::credentials::Credentials;
use dynamic_rate_limiter::store::redis::command::CommandId;
use dynamic_rate_limiter::store::redis::queue::max_on_wire;
use dynamic_rate_limiter::store::redis::reply_clock::ReplyClock;
use dynamic_rate_limiter::store::redis::session::MAX_COMMANDS;

use harness::SECOND;
use harness::fake_redis::parse_commands;
use harness::fake_stream::{FakeSession, get, is_of, set, take};

const TIMEOUT: Duration = Duration::from_millis(20);
const TIMEOUT_US: u64 = TIMEOUT.as_micros() as u64;

/// The longest time until a command fails: until the check after its deadline.
fn longest_wait_us() -> u64 {
    (TIMEOUT + ReplyClock::new(TIMEOUT).interval()).as_micros() as u64
}

/// Replies in place of the right one.
const ERRORS: [&[u8]; 8] = [
    b"-NOSCRIPT No matching script.\r\n",
    b"-LOADING Redis is loading\r\n",
    b"-MOVED 1 127.0.0.1:1\r\n",
    b"-NOAUTH Authentication required.\r\n",
    b"-OOM command not allowed\r\n",
    b"-BUSY Redis is busy running a script.\r\n",
    b"-upstream failure\r\n",
    b"$-1\r\n",
];

pub(super) fn check(bytes: &[u8]) {
    let (flags, mut rest) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
    let mut test = SessionTest::new(flags & 1 != 0, flags & 2 != 0);
    while let Some((act, after)) = rest.split_first() {
        let (argument, after) = after.split_first().map_or((0, after), |(first, after)| (*first, after));
        rest = after;
        match act % 16 {
            0..4 => (0..=argument % 8).for_each(|kind| test.send(kind % 3)),
            4 => (0..argument).for_each(|_| test.send(0)),
            5 | 6 => test.flush(),
            7 | 8 => test.deliver(usize::from(argument)),
            9 => test.deliver(usize::MAX),
            10 => test.pass(1 << (argument % 22)),
            11 => test.pass(TIMEOUT_US / 4),
            12 => test.fake.hang_up(),
            13 => {
                let (garbage, after) = rest.split_at(rest.len().min(usize::from(argument)));
                rest = after;
                test.tamper(garbage);
            }
            14 => test.replace_reply(ERRORS[usize::from(argument) % ERRORS.len()]),
            _ => match argument % 8 {
                0 | 1 | 4 | 5 => test.fake.redis.knows_script = argument % 2 == 0,
                2 | 3 => test.cancel(),
                _ => test.fake.redis.is_replica = argument % 2 == 0,
            },
        }
        test.settle();
    }
    test.end();
}

struct SessionTest {
    fake: FakeSession,
    /// Whether all bytes on this stream came from Redis.
    is_genuine: bool,
    next_id: u32,
    /// Commands without an answer.
    waiting: HashMap<u32, Waiting>,
    /// The last request that took a token, and its command.
    last_take: Option<(u32, CommandId)>,
}

struct Waiting {
    deadline_us: u64,
    is_sent: bool,
}

impl SessionTest {
    fn new(has_password: bool, knows_script: bool) -> Self {
        let credentials = Credentials { username: None, password: has_password.then(|| b"canary".to_vec()) };
        let mut fake = FakeSession::new(credentials, TIMEOUT_US, 7);
        fake.redis.knows_script = knows_script;
        fake.redis.password = has_password.then_some((None, "canary"));
        Self { fake, is_genuine: true, next_id: 0, waiting: HashMap::new(), last_take: None }
    }

    fn send(&mut self, kind: u8) {
        let id = self.next_id;
        self.next_id += 1;
        let command = [take, get, set][usize::from(kind)](id);
        if let Ok(command) = self.fake.try_send(id, command) {
            let deadline_us = self.deadline_us();
            self.waiting.insert(id, Waiting { deadline_us, is_sent: false });
            self.last_take = (kind == 0).then_some((id, command)).or(self.last_take);
        }
        assert!(self.waiting.len() <= MAX_COMMANDS);
    }

    /// The deadline of a command that is sent now, or at the next check at the latest.
    fn deadline_us(&self) -> u64 {
        self.fake.now_us + longest_wait_us()
    }

    /// Cancels the last command that took a token.
    fn cancel(&mut self) {
        let Some((id, command)) = self.last_take.take() else { return };
        if self.fake.cancel(command) {
            self.waiting.remove(&id);
        }
    }

    /// Records a sent command: its timeout begins, and that of all queued commands.
    fn note_sent(&mut self, words: &[Vec<u8>]) {
        let Some(b"EVALSHA") = words.first().map(Vec::as_slice) else { return };
        let key = words.get(3).and_then(|key| std::str::from_utf8(key).ok());
        let Some(id) = key.and_then(|key| key.strip_prefix("bucket:")?.parse().ok()) else { return };
        let deadline_us = self.deadline_us();
        self.waiting.values_mut().filter(|waiting| !waiting.is_sent).for_each(|waiting| {
            waiting.deadline_us = deadline_us;
        });
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.is_sent = true;
        }
    }

    fn flush(&mut self) {
        let turn = self.fake.flush();
        self.is_genuine |= turn.has_closed || turn.has_opened;
        let commands = parse_commands(&turn.sent);
        let takes = commands.iter().filter(|words| words[0].starts_with(b"EVAL")).count();
        commands.iter().for_each(|words| self.note_sent(words));
        assert!(takes <= max_on_wire(TIMEOUT), "{takes} at a time");
    }

    /// Delivers this number of bytes.
    fn deliver(&mut self, mut bytes: usize) {
        while let Some(reply) = self.fake.stream.replies.front_mut() {
            let piece: Vec<u8> = reply.drain(..bytes.min(reply.len())).collect();
            bytes -= piece.len();
            if reply.is_empty() {
                self.fake.stream.replies.pop_front();
            }
            self.fake.receive(&piece);
            if bytes == 0 {
                return;
            }
        }
    }

    /// Exchanges commands and replies until there are no more.
    fn exchange(&mut self) {
        while self.fake.wants_turn() || !self.fake.stream.replies.is_empty() {
            self.flush();
            self.deliver(usize::MAX);
        }
    }

    fn tamper(&mut self, garbage: &[u8]) {
        self.is_genuine = false;
        self.fake.receive(garbage);
    }

    fn replace_reply(&mut self, reply: &[u8]) {
        if let Some(next) = self.fake.stream.replies.back_mut() {
            // A false NOSCRIPT makes the session send the command twice.
            self.is_genuine &= reply.starts_with(b"-") && !reply.starts_with(b"-NOSCRIPT");
            *next = reply.to_vec();
        }
    }

    /// Advances the time in an idle worker, whose timeouts are handled when they are due.
    fn pass(&mut self, us: u64) {
        let until_us = self.fake.now_us + us;
        self.fake.redis.now_us += us;
        while self.fake.pass_to_timeout(until_us) {
            self.flush();
        }
        self.fake.stall(until_us - self.fake.now_us);
        self.flush();
        self.settle();
        let late = self.waiting.iter().find(|(_, waiting)| waiting.deadline_us <= self.fake.now_us);
        assert!(late.is_none(), "still without an answer: {:?}", late.map(|(id, _)| id));
    }

    fn settle(&mut self) {
        while let Some((id, reply)) = self.fake.next_reply() {
            assert!(self.waiting.remove(&id).is_some(), "{id} is answered twice, or never sent");
            match reply {
                Ok(answer) if self.is_genuine => {
                    assert!(is_of(id, &answer), "{answer:?} is not the answer to {id}");
                }
                Ok(_) => {}
                Err(failure) => assert!(!failure.detail.contains("canary") && failure.detail.len() <= 256),
            }
        }
    }

    /// In the end each command is answered, and the session finds the healthy Redis again.
    fn end(mut self) {
        self.flush();
        self.pass(longest_wait_us());
        assert!(self.waiting.is_empty());
        self.fake.redis.is_replica = false;
        self.fake.hang_up();
        for _ in 0..200 {
            self.exchange();
            self.pass(SECOND / 10);
        }
        self.send(0);
        assert_eq!(self.waiting.len(), 1, "no command is sent to a healthy Redis");
        self.exchange();
        self.settle();
        assert!(self.waiting.is_empty(), "the reply of a healthy Redis is ignored");
    }
}
