//! One worker's conversation with Redis: questions out, replies in, and what holds while Redis cannot be asked.
//!
//! Sans-IO: the owner of the stream calls in with what happened and the time, and carries out [`Effects`]. Replies
//! come in the order of the questions, so a queue says whose each one is; a question keeps its place there when
//! its deadline has passed, and its late reply is thrown away. What cannot be trusted to be in step any more is
//! closed: nothing is ever matched by hope. Beyond a [`window`] of commands on the wire the next ones wait in a
//! [`Queue`], so that Redis can keep the deadline of each that it was given, however many wait.
//!
//! The breaker opens after [`MAX_FAILURES`](super::breaker::MAX_FAILURES) failures in a row, and then no request waits: a
//! probe, which takes a token from a bucket that no caller uses, finds out when Redis works again. Errors of one shard
//! of a cluster fail its callers at once and leave the others alone, so it takes more of them.

use std::collections::VecDeque;

use super::breaker::Breaker;
use super::command::{
    Answer, Command, Declined, Event, Expected, Failure, Read, protocol, push_auth, push_get, push_set, read,
    timeout,
};
use super::failure::FailureKind;
use super::queue::{CommandId, Queue, Queued, window};
use super::reply_clock::ReplyClock;
use super::resp::{Decoder, Malformed};
use super::script::{Script, Take};
use super::sent::{Asker, Sent, Wait};
use crate::config::Credentials;
use crate::limit::Limit;

/// Most commands that wait or are on the wire, and answers not yet taken. Each belongs to a request that Envoy holds,
/// at tens of KiB: a worker with so many has some 0.5 GiB of them, and here a hundredth of that; it needs seconds to
/// answer them.
pub const MAX_COMMANDS: usize = 16_384;

/// How long a probe may take that has to connect first, in microseconds. No request waits for it.
const CONNECT_TIMEOUT_US: u64 = 1_000_000;

/// What the owner of the stream has to do, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Close the stream.
    pub close: bool,
    /// Open a new one.
    pub open: bool,
    /// Send this on it; nothing where empty.
    pub send: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionState {
    /// There is no stream; the next question opens one.
    Idle,
    /// Questions go out.
    Open,
    /// Nothing goes out until then.
    Broken { until_us: u64 },
    /// Only the probe goes out: the first may have to connect, the second has to be as quick as any question.
    Probing(Probe),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Connecting,
    Timed,
}

/// The session. `T` is what the owner wants back with an answer.
#[derive(Debug)]
pub struct Session<T> {
    credentials: Credentials,
    proxy_errors: &'static [&'static [u8]],
    probe: Take,
    timeout_us: u64,
    clock: ReplyClock,
    state: SessionState,
    breaker: Breaker,
    connected: Option<bool>,
    sequence: u32,
    last_id: u64,
    sent: VecDeque<Sent<T>>,
    /// Most commands on the wire, but for those about health, which are few.
    window: usize,
    /// What waits until there are fewer; where something does, so many are.
    queue: Queue<T>,
    /// How many of them, at the end, the owner of the stream has not been given yet.
    unsent: usize,
    decoder: Decoder,
    effects: Effects,
    answers: VecDeque<(T, Result<Answer, Failure>)>,
    event: Option<Event>,
}

impl<T> Session<T> {
    /// A session without a stream. `probe_key` names a bucket that is no caller's; a question has `timeout_us` for its
    /// answer; `seed` spreads the pauses of different workers.
    pub fn new(credentials: Credentials, probe_key: String, timeout_us: u64, seed: u64) -> Self {
        Self {
            credentials,
            proxy_errors: &[],
            probe: Take { key: probe_key, limit: Limit::PROBE, other_limit: Limit::PROBE, ttl_ms: 1000 },
            timeout_us,
            clock: ReplyClock::new(timeout_us),
            state: SessionState::Idle,
            breaker: Breaker::new(seed),
            connected: None,
            sequence: 0,
            last_id: 0,
            sent: VecDeque::new(),
            window: window(timeout_us),
            queue: Queue::default(),
            unsent: 0,
            decoder: Decoder::default(),
            effects: Effects::default(),
            answers: VecDeque::new(),
            event: None,
        }
    }

    /// Names the error replies by which a proxy on the way to Redis says that it reaches no node.
    pub fn with_proxy_errors(self, proxy_errors: &'static [&'static [u8]]) -> Self {
        Self { proxy_errors, ..self }
    }

    /// Whether questions are taken.
    pub fn is_accepting(&self) -> bool {
        matches!(self.state, SessionState::Idle | SessionState::Open)
    }

    /// Whether a request waits, so that [`Session::tick`] should be called often.
    pub fn is_waiting(&self) -> bool {
        !self.sent.is_empty()
    }

    /// The question that finds out whether Redis is well. Its answer matters to the session alone.
    pub fn probe(&self) -> Command {
        Command::Take(self.probe.clone())
    }

    /// How long a question may take, in microseconds.
    pub fn timeout_us(&self) -> u64 {
        self.timeout_us
    }

    /// How often to call [`Session::tick`] while a request waits, in microseconds.
    pub fn tick_us(&self) -> u64 {
        self.clock.interval_us()
    }

    /// Asks; the answer comes through [`Session::next_answer`], within `timeout_us` and a tick after the command was
    /// handed over, or later where the worker is too busy to tick in time: see [`ReplyClock`].
    pub fn send(
        &mut self,
        asker: T,
        question: Command,
        timeout_us: u64,
        now_us: u64,
    ) -> Result<CommandId, Declined> {
        if !self.is_accepting() {
            return Err(Declined::BreakerOpen);
        }
        if self.sent.len() + self.queue.len() + self.answers.len() >= MAX_COMMANDS {
            return Err(Declined::QueueFull);
        }
        self.connect(now_us);
        self.last_id += 1;
        let id = CommandId(self.last_id);
        let wait = self.wait(timeout_us, now_us);
        let out = &mut self.effects.send;
        match question {
            Command::Take(take) if self.sent.len() >= self.window => {
                self.queue.push(id, Queued { asker, take, timeout_us }, wait.charged_us);
            }
            Command::Take(take) => self.send_take(Asker::Waiting(asker), take, Script::Hash, wait),
            Command::Get(key) => {
                push_get(out, &key);
                self.expect(Asker::Waiting(asker), Expected::Get, wait);
            }
            Command::Set(key, value, overwrite) => {
                push_set(out, &key, value, overwrite);
                self.expect(Asker::Waiting(asker), Expected::Set, wait);
            }
        }
        Ok(id)
    }

    /// Takes back a command that still waits, for its request has ended. One that was handed over is carried
    /// out.
    pub fn cancel(&mut self, id: CommandId) {
        self.queue.remove(id);
    }

    /// Takes in what came on the stream.
    pub fn received(&mut self, bytes: &[u8], now_us: u64) {
        if self.is_on_stream() {
            self.read_replies(bytes, now_us);
            self.hand_over(now_us);
        }
    }

    fn read_replies(&mut self, bytes: &[u8], now_us: u64) {
        self.decoder.push(bytes);
        loop {
            let outcome = match self.decoder.next_reply() {
                Ok(None) => return,
                Err(Malformed) => Err(protocol("what came is no reply of Redis")),
                Ok(Some(reply)) => match self.sent.pop_front() {
                    None => Err(protocol("a reply came that was not asked for")),
                    Some(sent) => match read(&sent.question, sent.sequence, reply, self.proxy_errors) {
                        Ok(read) => Ok((sent, read)),
                        Err(failure) => {
                            // The request that asked is still to be answered, with all others.
                            self.sent.push_front(sent);
                            Err(failure)
                        }
                    },
                },
            };
            match outcome {
                Ok((sent, read)) => self.settle(sent, read, now_us),
                Err(failure) => self.break_off(failure, now_us),
            }
            if !self.is_on_stream() {
                return;
            }
        }
    }

    /// Hands over what waits, as far as there is room on the wire.
    fn hand_over(&mut self, now_us: u64) {
        while self.sent.len() < self.window {
            let at_us = self.clock.at(now_us);
            let Some(Queued { asker, take, timeout_us }) = self.queue.pop(at_us) else { return };
            let wait = self.wait(timeout_us, now_us);
            self.send_take(Asker::Waiting(asker), take, Script::Hash, wait);
        }
    }

    /// Notes that the stream is closed, or could not be opened.
    pub fn closed(&mut self, detail: &str, now_us: u64) {
        if self.is_on_stream() {
            if self.sent.is_empty() && self.state == SessionState::Open {
                // Redis may close what has been idle. The next question finds out more.
                self.drop_stream();
                self.state = SessionState::Idle;
            } else {
                let failure = Failure { reason: FailureKind::Disconnected, detail: detail.to_owned() };
                self.break_off(failure, now_us);
            }
        }
        self.effects.close = false;
    }

    /// Closes the stream if no question waits for a reply, and leaves it to the next question to find out
    /// whether Redis is there again. For an owner that does nothing of its own accord; called before each
    /// [`Session::tick`].
    pub fn release_if_idle(&mut self, now_us: u64) {
        match self.state {
            SessionState::Idle => {}
            SessionState::Broken { until_us } if now_us < until_us => {}
            SessionState::Broken { .. } => self.state = SessionState::Idle,
            SessionState::Open | SessionState::Probing(_) => {
                let is_idle = !self.sent.iter().any(|sent| matches!(sent.asker, Asker::Waiting(_)));
                if is_idle && self.queue.is_empty() {
                    self.sent.clear();
                    self.drop_stream();
                    self.state = SessionState::Idle;
                }
            }
        }
    }

    /// Gives up on questions whose time is over, and probes when it is time to.
    pub fn tick(&mut self, now_us: u64) {
        if let SessionState::Broken { until_us } = self.state {
            if now_us >= until_us {
                self.state = SessionState::Probing(Probe::Connecting);
                self.open_stream(now_us);
                self.send_probe(CONNECT_TIMEOUT_US, now_us);
            }
            return;
        }
        if self.sent.is_empty() {
            return;
        }
        let charged_us = self.clock.check(now_us);
        // What Redis has not been asked yet has not used up any of its time.
        let is_new = |sent: &&mut Sent<T>| !matches!(sent.question, Expected::Take(_, Script::Text));
        let unsent = self.sent.iter_mut().rev().take(self.unsent).filter(is_new);
        let mut is_all_sent = true;
        for sent in unsent {
            sent.wait = Wait { charged_us, at_us: now_us, ..sent.wait };
            is_all_sent &= !matches!(sent.question, Expected::Take(..));
        }
        let mut late = 0_usize;
        for Sent { asker, wait, .. } in &mut self.sent {
            // Neither has what was asked while the worker was busy.
            wait.charged_us = wait.charged_us.min(charged_us);
            if !wait.is_over(charged_us, now_us, self.timeout_us) {
                continue;
            }
            match std::mem::replace(asker, Asker::Gone) {
                Asker::Waiting(asker) => self.answers.push_back((asker, Err(timeout()))),
                Asker::Session => {}
                Asker::Gone => continue,
            }
            late += 1;
        }
        self.queue.check(charged_us, is_all_sent);
        if self.queue.is_stuck(charged_us) {
            late += self.queue.len();
            self.answers.extend(self.queue.drain().map(|asker| (asker, Err(timeout()))));
        }
        if late == 0 {
            return;
        }
        self.breaker.record_timeout(self.timeout_us, now_us);
        if self.has_failed() {
            self.trip(timeout(), now_us);
        }
    }

    /// What the owner of the stream has to do since it was last asked.
    pub fn take_effects(&mut self) -> Effects {
        self.unsent = 0;
        std::mem::take(&mut self.effects)
    }

    /// Whether there is anything to be done.
    pub fn has_effects(&self) -> bool {
        self.effects.close || self.effects.open || !self.effects.send.is_empty()
    }

    /// Whether there are answers to be taken.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The next answer, and who asked.
    pub fn next_answer(&mut self) -> Option<(T, Result<Answer, Failure>)> {
        self.answers.pop_front()
    }

    /// What has become of Redis, if that changed.
    pub fn take_event(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// Whether what comes belongs to the stream that questions go out on, and not to one that is to be closed.
    fn is_on_stream(&self) -> bool {
        matches!(self.state, SessionState::Open | SessionState::Probing(_)) && !self.effects.open
    }

    fn connect(&mut self, now_us: u64) {
        if self.state == SessionState::Idle {
            self.state = SessionState::Open;
            self.open_stream(now_us);
        }
    }

    fn open_stream(&mut self, now_us: u64) {
        self.effects.open = true;
        if push_auth(&mut self.effects.send, &self.credentials) {
            let wait = self.wait(CONNECT_TIMEOUT_US, now_us);
            self.expect(Asker::Session, Expected::Auth, wait);
        }
    }

    fn send_probe(&mut self, timeout_us: u64, now_us: u64) {
        let wait = self.wait(timeout_us, now_us);
        self.send_take(Asker::Session, self.probe.clone(), Script::Hash, wait);
    }

    fn send_take(&mut self, asker: Asker<T>, take: Take, script: Script, wait: Wait) {
        self.sequence = self.sequence.wrapping_add(1);
        take.push(&mut self.effects.send, self.sequence, script);
        self.expect(asker, Expected::Take(take, script), wait);
    }

    /// Notes what has just been sent: its reply is the next after those that are expected already.
    fn expect(&mut self, asker: Asker<T>, question: Expected, wait: Wait) {
        self.sent.push_back(Sent { asker, question, sequence: self.sequence, wait });
        self.unsent += 1;
    }

    /// A wait that begins now.
    fn wait(&mut self, timeout_us: u64, now_us: u64) -> Wait {
        if self.sent.is_empty() {
            self.clock.start(now_us);
        }
        Wait { charged_us: self.clock.at(now_us), at_us: now_us, timeout_us }
    }

    /// Whether the breaker has to open; a probe has one try.
    fn has_failed(&self) -> bool {
        self.breaker.is_spent() || matches!(self.state, SessionState::Probing(_))
    }

    /// Gives the reply to the request that asked.
    fn settle(&mut self, sent: Sent<T>, read: Read, now_us: u64) {
        match read {
            Read::Answer(answer) => match sent.asker {
                Asker::Waiting(asker) => {
                    match answer {
                        Answer::Taken(_) => {
                            self.breaker.record_token();
                            self.is_connected();
                        }
                        Answer::Text(_) | Answer::Done => self.breaker.record_answer(),
                    }
                    self.answers.push_back((asker, Ok(answer)));
                }
                Asker::Session => self.probe_succeeded(now_us),
                Asker::Gone => {}
            },
            Read::Authenticated => {}
            Read::UnknownScript(take) => match sent.asker {
                Asker::Gone => {}
                asker => self.send_take(asker, take, Script::Text, sent.wait),
            },
            Read::Refused(failure, scope) => {
                if let Asker::Waiting(asker) = sent.asker {
                    self.answers.push_back((asker, Err(failure.clone())));
                    // What is wrong with other questions, such as a right to read health, is no reason to stop.
                    if matches!(sent.question, Expected::Take(..)) {
                        self.breaker.record_refusal(scope);
                    }
                }
                if self.has_failed() || matches!(sent.question, Expected::Auth) {
                    self.trip(failure, now_us);
                }
            }
        }
    }

    fn is_connected(&mut self) {
        if self.connected != Some(true) {
            self.connected = Some(true);
            self.event = Some(Event::Connected);
        }
    }

    fn probe_succeeded(&mut self, now_us: u64) {
        match self.state {
            SessionState::Probing(Probe::Connecting) => {
                self.state = SessionState::Probing(Probe::Timed);
                self.send_probe(self.timeout_us, now_us);
            }
            SessionState::Probing(Probe::Timed) => {
                self.state = SessionState::Open;
                self.breaker.close(now_us);
                self.is_connected();
            }
            SessionState::Idle | SessionState::Open | SessionState::Broken { .. } => {}
        }
    }

    /// Closes the stream and fails all that wait.
    fn break_off(&mut self, failure: Failure, now_us: u64) {
        self.breaker.record_loss();
        if self.has_failed() {
            return self.trip(failure, now_us);
        }
        self.fail_all(&failure);
        self.drop_stream();
        self.state = SessionState::Idle;
    }

    /// Opens the breaker.
    fn trip(&mut self, failure: Failure, now_us: u64) {
        self.fail_all(&failure);
        self.drop_stream();
        let pause_us = self.breaker.open(matches!(self.state, SessionState::Probing(_)), now_us);
        self.state = SessionState::Broken { until_us: now_us.saturating_add(pause_us) };
        if self.connected != Some(false) {
            self.connected = Some(false);
            self.event = Some(Event::Lost(failure));
        }
    }

    fn fail_all(&mut self, failure: &Failure) {
        for sent in self.sent.drain(..) {
            if let Asker::Waiting(asker) = sent.asker {
                self.answers.push_back((asker, Err(failure.clone())));
            }
        }
        self.answers.extend(self.queue.drain().map(|asker| (asker, Err(failure.clone()))));
    }

    /// The stream is closed before another is opened, and nothing that was to go out on it goes out.
    fn drop_stream(&mut self) {
        // A stream that was not even opened needs no closing.
        let was_opened = !self.effects.open;
        self.effects = Effects { close: self.effects.close || was_opened, ..Effects::default() };
        self.decoder = Decoder::default();
        self.unsent = 0;
    }
}
