//! One worker's conversation with Redis: commands out, replies in, and what holds while Redis does not answer.
//!
//! Sans-IO, in the shape of quinn-proto's `Connection`: what happens goes in, with the time, and what is to be done
//! comes out. The owner calls [`Session::send`], [`Session::cancel`], [`Session::handle_input`],
//! [`Session::handle_close`], [`Session::handle_timeout`] or [`Session::flush`], and after each of them
//!
//! 1. [`Session::poll_output`] until it returns `None`; [`Session::has_output`] says whether there is more.
//! 2. [`Session::poll_timeout`], for the time at which to call [`Session::handle_timeout`] next.
//!
//! What is to be sent gathers until the owner flushes, so that one message carries the commands of many requests.
//!
//! Replies come in the order of the commands, so a queue shows which command each one is for. A command stays there
//! when its deadline has passed, and its late reply is dropped. Where replies and commands may be out of step, the
//! stream is closed. Beyond [`max_on_wire`] commands the next ones wait in a `Queue`, so that Redis can
//! keep the deadline of each that it was given, however many wait.
//!
//! The breaker opens after [`MAX_FAILURES`](super::breaker::MAX_FAILURES) failures in a row, and then no request
//! waits: a probe, which takes a token from a bucket that no caller uses, finds out when Redis works again. Errors of
//! one shard of a cluster fail its callers at once and leave the others alone, so it takes more of them. What a replica
//! refuses is sent again on another stream.

mod replies;

use std::collections::VecDeque;
use std::time::Duration;

use super::breaker::Breaker;
use super::command::{Command, CommandId, Declined, Event, Failure, ReplyValue, Sent, push_auth, timeout};
use super::failure::FailureKind;
use super::outbox::{Outbox, StreamAction};
use super::pending_reply::{PendingReply, Recipient, Wait};
use super::queue::{Queue, Queued, max_on_wire};
use super::reply_clock::{ReplyClock, ReplyTime};
use super::resp::Decoder;
use super::script::{Script, Take};
use crate::credentials::Credentials;
use crate::limit::Limit;
use crate::time::StoreTime;

/// Most commands of a session, without the few about health: waiting, on the wire, or with a reply that was not polled
/// yet. Envoy holds a request for each, at tens of KiB: some 0.5 GiB in all. The session itself takes a hundredth of
/// that. A worker needs seconds to answer so many.
pub const MAX_COMMANDS: usize = 16_384;

/// How long a probe may take that has to connect first. No request waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long [`Session::release_if_idle`] keeps the stream after the last command.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// What the owner of a session has to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    /// To do on the stream. Comes before all others, and only after [`Session::flush`].
    Stream(StreamAction),
    /// What has become of Redis.
    Event(Event),
    /// What has become of a command: once for each, unless it was cancelled before it was sent.
    Reply(CommandId, Result<ReplyValue, Failure>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionState {
    /// There is no stream; the next command opens one.
    Idle,
    Open,
    /// Nothing goes out until then.
    Broken {
        until: StoreTime,
    },
    /// Only the probe goes out: the first may have to connect, the second has the timeout of a command.
    Probing(Probe),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Connecting,
    Timed,
}

#[derive(Debug)]
pub struct Session {
    credentials: Credentials,
    proxy_errors: &'static [&'static [u8]],
    probe: Take,
    timeout: Duration,
    clock: ReplyClock,
    state: SessionState,
    breaker: Breaker,
    /// Whether Redis answers, as the last event said; `None` where none did.
    connected: Option<bool>,
    /// Whether polls need no probe: a token was taken on this stream, and no read or write has failed since.
    has_taken: bool,
    sequence: u32,
    last_id: u64,
    sent_at: StoreTime,
    /// The replies that are still to come, in order.
    pending: VecDeque<PendingReply>,
    /// Most commands on the wire, without the few about health.
    max_on_wire: usize,
    /// Commands that wait inside the worker; not empty only while `max_on_wire` are on the wire.
    queue: Queue,
    /// How many of the pending ones, at the end, are still in the outbox.
    unflushed: usize,
    decoder: Decoder,
    outbox: Outbox,
    replies: VecDeque<(CommandId, Result<ReplyValue, Failure>)>,
    event: Option<Event>,
}

impl Session {
    /// A session without a stream. `probe_key` names a bucket that is no caller's; a command has `timeout` for its
    /// reply; `seed` spreads the pauses of different workers.
    pub fn new(credentials: Credentials, probe_key: String, timeout: Duration, seed: u64) -> Self {
        Self {
            credentials,
            proxy_errors: &[],
            probe: Take { key: probe_key, limit: Limit::PROBE, other_limit: Limit::PROBE, ttl_ms: 1000 },
            timeout,
            clock: ReplyClock::new(timeout),
            state: SessionState::Idle,
            breaker: Breaker::new(seed),
            connected: None,
            has_taken: false,
            sequence: 0,
            last_id: 0,
            sent_at: StoreTime::default(),
            pending: VecDeque::new(),
            max_on_wire: max_on_wire(timeout),
            queue: Queue::default(),
            unflushed: 0,
            decoder: Decoder::default(),
            outbox: Outbox::default(),
            replies: VecDeque::new(),
            event: None,
        }
    }

    /// Names the error replies by which a proxy on the way to Redis says that it reaches no node.
    pub fn with_proxy_errors(self, proxy_errors: &'static [&'static [u8]]) -> Self {
        Self { proxy_errors, ..self }
    }

    pub fn has_stream(&self) -> bool {
        matches!(self.state, SessionState::Open | SessionState::Probing(_))
    }

    /// Whether commands are accepted.
    pub fn is_accepting(&self) -> bool {
        matches!(self.state, SessionState::Idle | SessionState::Open)
    }

    /// The command that finds out whether Redis works, unless this stream has shown that it does. Its reply matters to
    /// the session alone.
    pub fn probe(&self) -> Option<Command> {
        (!self.has_taken).then(|| Command::Take(self.probe.clone()))
    }

    /// How long a command of a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a command. Its reply can be polled at the latest one check of the reply clock after `timeout`, counted
    /// from the moment when it was handed over; later if the worker is too busy to check in time: see [`ReplyClock`].
    pub fn send(
        &mut self,
        command: Command,
        timeout: Duration,
        now: StoreTime,
    ) -> Result<CommandId, Declined> {
        if !self.is_accepting() {
            return Err(Declined::BreakerOpen);
        }
        let waiting = self.pending.len() + self.queue.len() + self.replies.len();
        if waiting >= MAX_COMMANDS && matches!(command, Command::Take(_)) {
            return Err(Declined::QueueFull);
        }
        self.connect(now);
        self.sent_at = now;
        self.last_id += 1;
        let id = CommandId(self.last_id);
        let recipient = Recipient::Owner(id);
        let wait = self.wait(timeout, now);
        match command {
            Command::Take(take) if self.pending.len() >= self.max_on_wire => {
                self.queue.push(id, Queued { take, timeout }, wait.reply_time);
            }
            command => self.transmit(recipient, command, Script::Hash, wait),
        }
        Ok(id)
    }

    /// Takes back a [`Command::Take`], for its request has ended. Returns whether it still waited: then it gets no reply.
    /// One on the wire may be carried out, and gets its reply, but is not sent again.
    pub fn cancel(&mut self, id: CommandId) -> bool {
        if self.queue.remove(id).is_some() {
            return true;
        }
        if let Some(sent) = self.pending.iter_mut().find(|sent| sent.recipient == Recipient::Owner(id)) {
            sent.recipient = Recipient::Left(id);
        }
        false
    }

    /// Takes in the bytes received on the stream.
    pub fn handle_input(&mut self, bytes: &[u8], now: StoreTime) {
        if self.is_on_stream() {
            self.read_replies(bytes, now);
            self.hand_over(now);
        }
    }

    /// Notes that the stream is closed, or could not be opened.
    pub fn handle_close(&mut self, detail: &str, now: StoreTime) {
        if self.is_on_stream() {
            if self.pending.is_empty() && self.state == SessionState::Open {
                // Redis may close what has been idle. The next command finds out more.
                self.drop_stream();
                self.state = SessionState::Idle;
            } else {
                let failure = Failure { reason: FailureKind::Disconnected, detail: detail.to_owned() };
                self.break_off(failure, now);
            }
        }
        self.outbox.note_closed();
    }

    /// Gives up on commands whose time is over, and probes when it is time to.
    pub fn handle_timeout(&mut self, now: StoreTime) {
        if let SessionState::Broken { until } = self.state {
            if now >= until {
                self.state = SessionState::Probing(Probe::Connecting);
                self.open_stream(now);
                self.send_probe(CONNECT_TIMEOUT, now);
            }
            return;
        }
        if self.pending.is_empty() {
            return;
        }
        let reply_time = self.clock.check(now);
        let is_all_sent = self.restart_unsent(reply_time, now);
        let mut late = self.fail_late(reply_time, now);
        self.queue.check(reply_time, is_all_sent);
        if self.queue.is_stuck(reply_time) {
            late += self.queue.len();
            self.replies.extend(self.queue.drain().map(|id| (id, Err(timeout()))));
        }
        if late == 0 {
            return;
        }
        self.breaker.record_timeout(self.timeout, now);
        if self.has_failed() {
            self.trip(timeout(), now);
        }
    }

    /// Closes the stream if there was no command for a second, and sends no probe: the next command finds out whether
    /// Redis works again. For an owner that acts only on requests; call it before each [`Session::handle_timeout`].
    pub fn release_if_idle(&mut self, now: StoreTime) {
        match self.state {
            SessionState::Idle => {}
            SessionState::Broken { until } if now < until => {}
            SessionState::Broken { .. } => self.state = SessionState::Idle,
            SessionState::Open | SessionState::Probing(_) => {
                let is_idle = self.pending.iter().all(|pending| pending.recipient.command().is_none());
                if is_idle && self.queue.is_empty() && now.since(self.sent_at) >= IDLE_TIME {
                    self.pending.clear();
                    self.drop_stream();
                    self.state = SessionState::Idle;
                }
            }
        }
    }

    /// Forgets whether Redis answers: the next token or failure that shows it is an event again.
    pub fn forget_status(&mut self) {
        (self.connected, self.event) = (None, None);
        self.has_taken = false;
    }

    /// Lets [`Session::poll_output`] return what has gathered for the stream.
    pub fn flush(&mut self) {
        self.outbox.flush();
    }

    /// Whether there is something to poll, or to flush and then to poll.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty() || self.event.is_some() || !self.replies.is_empty()
    }

    /// What is to be done or known next.
    pub fn poll_output(&mut self) -> Option<SessionOutput> {
        if let Some(action) = self.outbox.poll() {
            if let StreamAction::Send(_) = action {
                self.unflushed = 0;
            }
            return Some(SessionOutput::Stream(action));
        }
        if let Some(event) = self.event.take() {
            return Some(SessionOutput::Event(event));
        }
        self.replies.pop_front().map(|(id, reply)| SessionOutput::Reply(id, reply))
    }

    /// When to call [`Session::handle_timeout`] next: when the next check of the reply clock, or the next probe, is
    /// due.
    pub fn poll_timeout(&self) -> Option<StoreTime> {
        match self.state {
            SessionState::Broken { until } => Some(until),
            _ => (!self.pending.is_empty()).then(|| self.clock.next_check()),
        }
    }

    /// Lets the time of what has not been sent yet begin now. Returns whether no command of the queue is among it.
    fn restart_unsent(&mut self, reply_time: ReplyTime, now: StoreTime) -> bool {
        let is_new = |pending: &&mut PendingReply| !matches!(pending.sent, Sent::Command(_, Script::Text));
        let unflushed = self.pending.iter_mut().rev().take(self.unflushed).filter(is_new);
        let mut is_all_sent = true;
        for pending in unflushed {
            pending.wait = Wait { reply_time, at: now, ..pending.wait };
            is_all_sent &= !matches!(pending.sent, Sent::Command(Command::Take(_), _));
        }
        is_all_sent
    }

    /// Gives up on the commands whose time is over; returns how many these are.
    fn fail_late(&mut self, reply_time: ReplyTime, now: StoreTime) -> usize {
        let mut late = 0_usize;
        for PendingReply { recipient, wait, .. } in &mut self.pending {
            // Time in which the worker was busy is not counted.
            wait.reply_time = wait.reply_time.min(reply_time);
            if !wait.is_over(reply_time, now, self.timeout) {
                continue;
            }
            match std::mem::replace(recipient, Recipient::Gone) {
                Recipient::Owner(id) | Recipient::Left(id) => self.replies.push_back((id, Err(timeout()))),
                Recipient::Session => {}
                Recipient::Gone => continue,
            }
            late += 1;
        }
        late
    }

    /// Hands over what waits, as far as there is room on the wire.
    fn hand_over(&mut self, now: StoreTime) {
        while self.pending.len() < self.max_on_wire {
            let Some((id, Queued { take, timeout })) = self.queue.pop(self.clock.at(now)) else { return };
            let wait = self.wait(timeout, now);
            self.transmit(Recipient::Owner(id), Command::Take(take), Script::Hash, wait);
        }
    }

    /// Whether the bytes received belong to the stream that commands go out on, and not to one that is to be closed.
    fn is_on_stream(&self) -> bool {
        self.has_stream() && !self.outbox.opens_stream()
    }

    fn connect(&mut self, now: StoreTime) {
        if self.state == SessionState::Idle {
            self.state = SessionState::Open;
            self.open_stream(now);
        }
    }

    fn open_stream(&mut self, now: StoreTime) {
        self.outbox.open_stream();
        if push_auth(self.outbox.commands(), &self.credentials) {
            let wait = self.wait(CONNECT_TIMEOUT, now);
            self.note_pending(Recipient::Session, Sent::Auth, wait);
        }
    }

    fn send_probe(&mut self, timeout: Duration, now: StoreTime) {
        let wait = self.wait(timeout, now);
        let probe = Command::Take(self.probe.clone());
        self.transmit(Recipient::Session, probe, Script::Hash, wait);
    }

    fn transmit(&mut self, recipient: Recipient, command: Command, script: Script, wait: Wait) {
        self.sequence = self.sequence.wrapping_add(1);
        command.push(self.outbox.commands(), self.sequence, script);
        self.note_pending(recipient, Sent::Command(command, script), wait);
    }

    /// Notes what has just been sent: its reply is the next after those that are expected already.
    fn note_pending(&mut self, recipient: Recipient, sent: Sent, wait: Wait) {
        self.pending.push_back(PendingReply { recipient, sent, sequence: self.sequence, wait });
        self.unflushed += 1;
    }

    /// A wait that begins now.
    fn wait(&mut self, timeout: Duration, now: StoreTime) -> Wait {
        if self.pending.is_empty() {
            self.clock.start(now);
        }
        Wait { reply_time: self.clock.at(now), at: now, timeout }
    }

    /// Whether the breaker has to open; a probe has one try.
    fn has_failed(&self) -> bool {
        self.breaker.must_open() || matches!(self.state, SessionState::Probing(_))
    }

    /// Opens another stream, which may reach the master, and sends the commands of requests that have not ended again
    /// there: a replica carries out none.
    fn leave_replica(&mut self, failure: &Failure, now: StoreTime) {
        // A password starts the clock again, and what was to be withheld has to be by then.
        self.clock.check(now);
        let pending = std::mem::take(&mut self.pending);
        self.drop_stream();
        self.open_stream(now);
        for PendingReply { recipient, sent, wait, .. } in pending {
            match (recipient, sent) {
                (Recipient::Owner(_), Sent::Command(command, _)) => {
                    self.transmit(recipient, command, Script::Hash, wait);
                }
                (Recipient::Left(_), _) => self.reply(recipient, Err(failure.clone())),
                _ => {}
            }
        }
        // Their deadlines stay.
        self.unflushed = 0;
    }

    /// Closes the stream and fails all that wait.
    fn break_off(&mut self, failure: Failure, now: StoreTime) {
        self.breaker.record_loss();
        if self.has_failed() {
            return self.trip(failure, now);
        }
        self.fail_all(&failure);
        self.drop_stream();
        self.state = SessionState::Idle;
    }

    /// Opens the breaker.
    fn trip(&mut self, failure: Failure, now: StoreTime) {
        self.fail_all(&failure);
        self.drop_stream();
        let pause = self.breaker.open(now);
        self.state = SessionState::Broken { until: now.after(pause) };
        if self.connected != Some(false) {
            self.connected = Some(false);
            self.event = Some(Event::Lost(failure));
        }
    }

    fn fail_all(&mut self, failure: &Failure) {
        for pending in self.pending.drain(..) {
            if let Some(id) = pending.recipient.command() {
                self.replies.push_back((id, Err(failure.clone())));
            }
        }
        self.replies.extend(self.queue.drain().map(|id| (id, Err(failure.clone()))));
    }

    fn drop_stream(&mut self) {
        self.outbox.drop_stream();
        self.decoder = Decoder::default();
        self.unflushed = 0;
        self.has_taken = false;
    }
}
