//! A stream to the model of Redis, and a session on it, under a clock that tests move.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dynamic_rate_limiter::bucket::PICO_PER_TOKEN;
use dynamic_rate_limiter::credentials::Credentials;
use dynamic_rate_limiter::store::redis::command::{
    Command, CommandId, Declined, Event, Failure, Overwrite, ReplyValue,
};
use dynamic_rate_limiter::store::redis::failure::FailureKind;
use dynamic_rate_limiter::store::redis::outbox::StreamAction;
use dynamic_rate_limiter::store::redis::script::Take;
use dynamic_rate_limiter::store::redis::session::{Session, SessionOutput};
use dynamic_rate_limiter::time::StoreTime;

use crate::fake_redis::{Connection, ModelRedis};
use crate::{SECOND, limit};

/// A stream, and the replies that are on their way on it.
#[derive(Default)]
pub struct FakeStream {
    connection: Option<Connection>,
    pub replies: VecDeque<Vec<u8>>,
}

impl FakeStream {
    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Does something on it; commands reach Redis, and the replies set out.
    pub fn carry_out(&mut self, action: StreamAction, redis: &mut ModelRedis) {
        match action {
            StreamAction::Close => self.close(),
            StreamAction::Open => {
                self.close();
                self.connection = Some(Connection::default());
            }
            StreamAction::Send(bytes) => {
                let connection = self.connection.as_mut().expect("a stream to send on");
                self.replies.extend(redis.receive(connection, &bytes));
            }
        }
    }

    pub fn close(&mut self) {
        *self = Self::default();
    }

    /// The replies that have set out, as bytes that arrive at once.
    pub fn take_replies(&mut self) -> Vec<u8> {
        self.replies.drain(..).flatten().collect()
    }
}

/// A command for a bucket whose size says whose answer it is: `id` is left, of one more.
pub fn take(id: u32) -> Command {
    Command::Take(Take {
        key: format!("bucket:{id}"),
        limit: limit(id + 1, 1),
        other_limit: limit(1, 1),
        ttl_ms: 1_000,
    })
}

pub fn get(id: u32) -> Command {
    Command::Get(format!("text:{id}").into())
}

pub fn set(id: u32) -> Command {
    Command::Set(format!("set:{id}").into(), "DEGRADED", Overwrite::Always)
}

/// Whether Redis replied so to `id`, and to no other command.
pub fn is_of(id: u32, value: &ReplyValue) -> bool {
    match value {
        ReplyValue::Taken(taken) => taken.tokens_pico == u64::from(id) * PICO_PER_TOKEN,
        ReplyValue::Text(text) => text.as_deref() == Some(id.to_string().as_bytes()),
        ReplyValue::Done => true,
    }
}

/// The outcome of a command: a value, or the kind of its failure.
pub type Outcome = (u32, Result<(), FailureKind>);

/// What a session did on its stream in one turn.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub has_closed: bool,
    pub has_opened: bool,
    pub sent: Vec<u8>,
}

/// A session, the Redis that it talks to, and all that is between them.
pub struct FakeSession {
    pub session: Session,
    pub redis: ModelRedis,
    pub stream: FakeStream,
    pub now_us: u64,
    timeout_us: u64,
    /// Which command is which, as tests call them.
    ids: BTreeMap<CommandId, u32>,
    replies: VecDeque<(u32, Result<ReplyValue, Failure>)>,
    events: VecDeque<Event>,
}

impl FakeSession {
    pub fn new(credentials: Credentials, timeout_us: u64, seed: u64) -> Self {
        let mut redis = ModelRedis::at(1_700_000_000 * SECOND);
        redis.knows_script = true;
        let timeout = Duration::from_micros(timeout_us);
        Self {
            session: Session::new(credentials, "#probe".to_owned(), timeout, seed)
                .with_proxy_errors(&[b"upstream failure", b"no upstream host"]),
            redis,
            stream: FakeStream::default(),
            now_us: SECOND,
            timeout_us,
            ids: BTreeMap::new(),
            replies: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub fn now(&self) -> StoreTime {
        StoreTime::from_micros(self.now_us)
    }

    /// Sends a command that has to be accepted.
    #[track_caller]
    pub fn send(&mut self, id: u32, command: Command) -> CommandId {
        self.try_send(id, command).unwrap_or_else(|why| panic!("{id}: {why:?}"))
    }

    /// [`FakeSession::send`], and Redis receives it with all that waits for the stream.
    #[track_caller]
    pub fn start(&mut self, id: u32, command: Command) -> Turn {
        self.send(id, command);
        self.flush()
    }

    /// [`FakeSession::send`], and Redis replies; returns all outcomes.
    #[track_caller]
    pub fn round_trip(&mut self, id: u32, command: Command) -> Vec<Outcome> {
        self.send(id, command);
        self.exchange();
        self.outcomes()
    }

    pub fn try_send(&mut self, id: u32, command: Command) -> Result<CommandId, Declined> {
        self.send_within(id, command, self.timeout_us)
    }

    pub fn send_within(&mut self, id: u32, command: Command, timeout_us: u64) -> Result<CommandId, Declined> {
        self.redis.strings.insert(format!("text:{id}"), id.to_string().into_bytes());
        let sent = self.session.send(command, Duration::from_micros(timeout_us), self.now());
        if let Ok(command) = sent {
            self.ids.insert(command, id);
        }
        sent
    }

    /// What the session wants done on its stream now.
    pub fn take_turn(&mut self) -> Turn {
        self.session.flush();
        self.poll()
    }

    /// Does what the session wants done on its stream now.
    pub fn flush(&mut self) -> Turn {
        let turn = self.take_turn();
        let Turn { has_closed, has_opened, sent } = &turn;
        let actions = [
            has_closed.then_some(StreamAction::Close),
            has_opened.then_some(StreamAction::Open),
            (!sent.is_empty()).then(|| StreamAction::Send(sent.clone())),
        ];
        actions.into_iter().flatten().for_each(|action| self.carry_out(action));
        turn
    }

    /// Does that on the stream.
    pub fn carry_out(&mut self, action: StreamAction) {
        self.stream.carry_out(action, &mut self.redis);
    }

    /// Polls until there is nothing more, and keeps replies and events.
    fn poll(&mut self) -> Turn {
        let mut turn = Turn::default();
        while let Some(output) = self.session.poll_output() {
            match output {
                SessionOutput::Stream(StreamAction::Close) => {
                    assert!(!turn.has_opened, "a stream is closed before another is opened");
                    turn.has_closed = true;
                }
                SessionOutput::Stream(StreamAction::Open) => turn.has_opened = true,
                SessionOutput::Stream(StreamAction::Send(bytes)) => {
                    assert!(!bytes.is_empty() && turn.sent.is_empty(), "one message for a turn");
                    turn.sent = bytes;
                }
                SessionOutput::Event(event) => self.events.push_back(event),
                SessionOutput::Reply(command, reply) => {
                    let id = self.ids.remove(&command).expect("one reply to each command");
                    self.replies.push_back((id, reply));
                }
            }
        }
        turn
    }

    /// Whether the session wants something done on its stream.
    pub fn wants_turn(&mut self) -> bool {
        let turn = self.poll();
        assert_eq!(turn, Turn::default(), "only a turn lets out what is for the stream");
        self.session.has_output()
    }

    /// Whether Redis owes a reply.
    pub fn is_waiting(&self) -> bool {
        self.session.is_accepting() && self.session.poll_timeout().is_some()
    }

    /// Something arrives.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.session.handle_input(bytes, self.now());
    }

    /// The replies arrive.
    pub fn deliver(&mut self) {
        let replies = self.stream.take_replies();
        self.receive(&replies);
    }

    /// Commands and replies go back and forth until there are no more.
    pub fn exchange(&mut self) {
        while self.wants_turn() || !self.stream.replies.is_empty() {
            self.flush();
            self.deliver();
        }
    }

    /// Reports to the session that its stream is closed.
    pub fn close(&mut self, detail: &str) {
        self.session.handle_close(detail, self.now());
    }

    /// The stream is closed at the other end.
    pub fn hang_up(&mut self) {
        self.stream.close();
        self.close("reset by peer");
    }

    /// Time goes by in an idle worker, whose timeouts are handled when they are due.
    pub fn pass(&mut self, us: u64) {
        let until_us = self.now_us + us;
        while self.pass_to_timeout(until_us) {}
        self.stall(until_us - self.now_us);
    }

    /// Time goes by until the next timeout is due, which is handled then; false where none is due before `until_us`.
    pub fn pass_to_timeout(&mut self, until_us: u64) -> bool {
        let timeout = self.session.poll_timeout().filter(|timeout| timeout.as_micros() < until_us);
        let Some(timeout) = timeout else { return false };
        self.stall(timeout.since(self.now()).as_micros() as u64);
        let next = self.session.poll_timeout();
        assert!(next.is_none_or(|next| next > self.now()), "a timeout is over once it was handled");
        true
    }

    /// Time goes by in a worker that does something else, and handles timeouts late.
    pub fn stall(&mut self, us: u64) {
        self.now_us += us;
        self.session.handle_timeout(self.now());
    }

    /// The next reply, and the id of its command.
    pub fn next_reply(&mut self) -> Option<(u32, Result<ReplyValue, Failure>)> {
        self.poll();
        self.replies.pop_front()
    }

    /// The outcomes since the last call. Each value has to be that of its command, with a token for each `take`.
    #[track_caller]
    pub fn outcomes(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some((id, reply)) = self.next_reply() {
            if let Ok(value) = &reply {
                assert!(is_of(id, value), "{value:?} is not the reply to {id}");
                assert!(!matches!(value, ReplyValue::Taken(taken) if !taken.admitted), "{id} has a token");
            }
            outcomes.push((id, reply.map(drop).map_err(|failure| failure.reason)));
        }
        outcomes
    }

    /// What has become of Redis, if that changed.
    pub fn next_event(&mut self) -> Option<Event> {
        self.poll();
        self.events.pop_front()
    }

    /// Takes a command back. Returns whether it still waited: then no reply may come.
    pub fn cancel(&mut self, command: CommandId) -> bool {
        self.poll();
        let has_waited = self.session.cancel(command);
        if has_waited {
            self.ids.remove(&command);
        }
        has_waited
    }
}
