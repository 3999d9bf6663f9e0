//! A conversation with Redis, where each byte says what happens next: a question, a reply as a model of Redis gives
//! it, bytes from the input in its place, a close, time.
//!
//! Everybody who asks is answered once, at the tick after the deadline at the latest, which begins when the command is
//! sent, or while it waits, when the last one was; as long as nobody tampers with the stream, with what Redis has
//! answered to that very question; who has cancelled in time is not answered and costs nothing; and there is a bound to
//! what is on the wire, and to what is remembered.

use std::collections::{HashMap, HashSet, VecDeque};

use dynamic_rate_limiter::bucket::PICO_PER_TOKEN;
use dynamic_rate_limiter::config::Credentials;
use dynamic_rate_limiter::store::redis::command::{Answer, Command, Overwrite};
use dynamic_rate_limiter::store::redis::queue::{CommandId, window};
use dynamic_rate_limiter::store::redis::script::Take;
use dynamic_rate_limiter::store::redis::session::{MAX_COMMANDS, Session};

use harness::fake_redis::{Connection, ModelRedis, parse_command};
use harness::{SECOND, limit};

const TIMEOUT_US: u64 = 20_000;

/// Replies that Redis gives in place of the right one.
const ERRORS: [&[u8]; 8] = [
    b"-NOSCRIPT No matching script.\r\n",
    b"-LOADING Redis is loading\r\n",
    b"-MOVED 1 127.0.0.1:1\r\n",
    b"-NOAUTH Authentication required.\r\n",
    b"-OOM command not allowed\r\n",
    b"-READONLY You can't write\r\n",
    b"-upstream failure\r\n",
    b"$-1\r\n",
];

pub(super) fn check(bytes: &[u8]) {
    let (flags, mut rest) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
    let mut talk = Talk::new(flags & 1 != 0, flags & 2 != 0);
    while let Some((act, after)) = rest.split_first() {
        let (argument, after) = after.split_first().map_or((0, after), |(first, after)| (*first, after));
        rest = after;
        match act % 16 {
            0..4 => (0..=argument % 8).for_each(|kind| talk.ask(kind % 3)),
            4 => (0..argument).for_each(|_| talk.ask(0)),
            5 | 6 => talk.flush(),
            7 | 8 => talk.deliver(usize::from(argument)),
            9 => talk.deliver(usize::MAX),
            10 => talk.pass(1 << (argument % 22)),
            11 => talk.pass(TIMEOUT_US / 4),
            12 => talk.close(),
            13 => {
                let (garbage, after) = rest.split_at(rest.len().min(usize::from(argument)));
                rest = after;
                talk.tamper(garbage);
            }
            14 => talk.replace_reply(ERRORS[usize::from(argument) % ERRORS.len()]),
            _ if argument % 4 < 2 => talk.redis.knows_script = argument % 2 == 0,
            _ => talk.cancel(),
        }
        talk.settle();
    }
    talk.end();
}

struct Talk {
    session: Session<u32>,
    redis: ModelRedis,
    connection: Option<Connection>,
    replies: VecDeque<Vec<u8>>,
    /// Whether all that came on this stream was Redis' own.
    is_genuine: bool,
    now_us: u64,
    asked: u32,
    /// Everybody who has no answer yet.
    waiting: HashMap<u32, Waiting>,
    /// Who may have cancelled too late.
    cancelled: HashSet<u32>,
    /// The last who took a token, and by which command.
    last_take: Option<(u32, CommandId)>,
}

struct Waiting {
    deadline_us: u64,
    is_sent: bool,
}

impl Talk {
    fn new(has_password: bool, knows_script: bool) -> Self {
        let mut redis = ModelRedis::at(1_700_000_000 * SECOND);
        redis.knows_script = knows_script;
        redis.password = has_password.then_some((None, "canary"));
        let credentials = Credentials { username: None, password: has_password.then(|| b"canary".to_vec()) };
        Self {
            session: Session::new(credentials, "#probe".to_owned(), TIMEOUT_US, 7),
            redis,
            connection: None,
            replies: VecDeque::new(),
            is_genuine: true,
            now_us: SECOND,
            asked: 0,
            waiting: HashMap::new(),
            cancelled: HashSet::new(),
            last_take: None,
        }
    }

    fn ask(&mut self, kind: u8) {
        let id = self.asked;
        self.asked += 1;
        let question = match kind {
            // The bucket's size says whose answer it is: `id` is left, of one more.
            0 => Command::Take(Take {
                key: format!("bucket:{id}"),
                limit: limit(id + 1, 1),
                other_limit: limit(1, 1),
                ttl_ms: 1_000,
            }),
            1 => Command::Get(format!("text:{id}").into()),
            _ => Command::Set(format!("set:{id}").into(), "NORMAL", Overwrite::Always),
        };
        self.redis.strings.insert(format!("text:{id}"), id.to_string().into_bytes());
        if let Ok(command) = self.session.send(id, question, TIMEOUT_US, self.now_us) {
            let deadline_us = self.deadline_us();
            self.waiting.insert(id, Waiting { deadline_us, is_sent: false });
            self.last_take = (kind == 0).then_some((id, command)).or(self.last_take);
        }
        assert!(self.waiting.len() <= MAX_COMMANDS);
    }

    /// Of what is sent now, or at the next tick at the latest.
    fn deadline_us(&self) -> u64 {
        self.now_us + TIMEOUT_US + self.session.tick_us()
    }

    /// Nobody wants the answer of the last who took a token.
    fn cancel(&mut self) {
        let Some((id, command)) = self.last_take.take() else { return };
        self.session.cancel(command);
        if self.waiting.remove(&id).is_some() {
            self.cancelled.insert(id);
        }
    }

    /// Notes what goes out: its time begins, and so does that of everybody who waits for it to.
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
        let effects = self.session.take_effects();
        if effects.close || effects.open {
            self.connection = None;
            self.replies.clear();
            self.is_genuine = true;
        }
        if effects.open {
            self.connection = Some(Connection::default());
        }
        let mut rest = effects.send.as_slice();
        let mut takes = 0;
        while !rest.is_empty() {
            // One at a time: the model moves all that it has been given for every command.
            let (words, length) = parse_command(rest).expect("whole commands");
            takes += usize::from(words[0].starts_with(b"EVAL"));
            self.note_sent(&words);
            let connection = self.connection.as_mut().expect("a stream to send on");
            self.replies.extend(self.redis.receive(connection, &rest[..length]));
            rest = &rest[length..];
        }
        assert!(takes <= window(TIMEOUT_US), "{takes} at a time");
    }

    /// So many bytes of what is on its way arrive.
    fn deliver(&mut self, mut bytes: usize) {
        while let Some(reply) = self.replies.front_mut() {
            let piece: Vec<u8> = reply.drain(..bytes.min(reply.len())).collect();
            bytes -= piece.len();
            if reply.is_empty() {
                self.replies.pop_front();
            }
            self.session.received(&piece, self.now_us);
            if bytes == 0 {
                return;
            }
        }
    }

    /// Commands and replies go back and forth until there are no more.
    fn exchange(&mut self) {
        while self.session.has_effects() || !self.replies.is_empty() {
            self.flush();
            self.deliver(usize::MAX);
        }
    }

    fn tamper(&mut self, garbage: &[u8]) {
        self.is_genuine = false;
        self.session.received(garbage, self.now_us);
    }

    fn replace_reply(&mut self, reply: &[u8]) {
        if let Some(next) = self.replies.back_mut() {
            // A Redis that says it has no script has run none; where that is a lie, the question is asked twice.
            self.is_genuine &= reply.starts_with(b"-") && !reply.starts_with(b"-NOSCRIPT");
            *next = reply.to_vec();
        }
    }

    fn close(&mut self) {
        self.connection = None;
        self.replies.clear();
        self.session.closed("reset by peer", self.now_us);
    }

    /// Time goes by in an idle worker, whose ticks come when they are due.
    fn pass(&mut self, us: u64) {
        let until_us = self.now_us + us;
        self.redis.now_us += us;
        while self.session.is_waiting() && self.now_us + self.session.tick_us() < until_us {
            self.now_us += self.session.tick_us();
            self.session.tick(self.now_us);
            self.flush();
        }
        self.now_us = until_us;
        self.session.tick(self.now_us);
        self.flush();
        self.settle();
        let late = self.waiting.iter().find(|(_, waiting)| waiting.deadline_us <= self.now_us);
        assert!(late.is_none(), "still without an answer: {:?}", late.map(|(id, _)| id));
    }

    fn settle(&mut self) {
        while let Some((id, answer)) = self.session.next_answer() {
            let was_waiting = self.waiting.remove(&id).is_some() || self.cancelled.remove(&id);
            assert!(was_waiting, "{id} is answered twice, or never asked");
            match answer {
                Ok(answer) if self.is_genuine => {
                    let is_its_own = match &answer {
                        Answer::Taken(taken) => taken.tokens_pico == u64::from(id) * PICO_PER_TOKEN,
                        Answer::Text(text) => text.as_deref() == Some(id.to_string().as_bytes()),
                        Answer::Done => true,
                    };
                    assert!(is_its_own, "{answer:?} is not the answer to {id}");
                }
                Ok(_) => {}
                Err(failure) => assert!(!failure.detail.contains("canary") && failure.detail.len() <= 256),
            }
        }
    }

    /// Everybody is answered in the end, and Redis is found again once it behaves.
    fn end(mut self) {
        self.flush();
        self.pass(TIMEOUT_US + self.session.tick_us());
        assert!(self.waiting.is_empty());
        self.close();
        for _ in 0..200 {
            self.exchange();
            self.pass(SECOND / 10);
        }
        self.ask(0);
        assert_eq!(self.waiting.len(), 1, "Redis is well and is not asked");
        self.exchange();
        self.settle();
        assert!(self.waiting.is_empty(), "Redis is well and its answer is not taken");
    }
}
