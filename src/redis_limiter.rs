//! What many Envoys share through one Redis: buckets, and the health that an operator sets.
//!
//! Belongs to one worker, as its [`Session`] does. One worker of each Envoy at a time looks for a changed health, by a
//! lease in shared data, several times a second and whether or not there are requests.

use std::time::Duration;

use crate::bucket::{Outcome, Verdict};
use crate::charge::{BucketOwner, Charge};
use crate::config::{OnFailure, RedisSettings};
use crate::control::RedisStatus;
use crate::generation::Role;
use crate::health::HealthOverride;
use crate::health_sync::{HealthSync, POLL_INTERVAL, Poll};
use crate::id_map::IdMap;
use crate::identity::Network;
use crate::metrics::{self, Metrics};
use crate::request::{DecisionStart, RequestId};
use crate::store::SharedData;
use crate::store::redis::command::{Command, CommandId, Declined, Event, Failure, ReplyValue};
use crate::store::redis::deny_cache::DenyCache;
use crate::store::redis::failure::FailureKind;
use crate::store::redis::outbox::StreamAction;
use crate::store::redis::script::Take;
use crate::store::redis::session::{MAX_COMMANDS, Session, SessionOutput};
use crate::store::redis::{PROBE_BUCKET, bucket_prefix};
use crate::time::{StoreTime, whole_micros};

/// How long Redis may take to store a new health. The operator who sets it waits for the reply.
const SET_HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// What Envoy's `redis_proxy` says when it finds no node to pass a command on to.
const PROXY_ERRORS: [&[u8]; 2] = [b"upstream failure", b"no upstream host"];

/// Between two lines in the log about failures of one kind.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What became of a charge at once.
#[derive(Debug)]
pub enum ChargeAttempt {
    /// Its bucket is known to be empty.
    KnownEmpty(Charge, Verdict),
    /// Redis decides; [`RedisLimiter::poll_output`] has the rest.
    Sent(CommandId),
    /// Nothing was sent: the charge is for `on_failure` to decide.
    Declined(Charge),
}

/// What the owner of the stream has to do.
#[derive(Debug)]
pub enum RedisOutput {
    /// Something on the stream. Comes before all answers, and only after [`RedisLimiter::flush`].
    Stream(StreamAction),
    /// Answer a request.
    Answer(RequestId, RedisAnswer),
}

/// An answer to a request.
#[derive(Debug)]
pub enum RedisAnswer {
    /// A charge, and the verdict of Redis; `None` where it failed.
    Charge(Charge, Option<Verdict>),
    /// The health that an operator sets.
    Health { network: Network, health_override: HealthOverride, is_stored: bool },
}

/// Why a command was sent.
#[derive(Debug)]
enum Purpose {
    Charge {
        /// The request that waits for the reply; `None`: it has ended.
        request: Option<RequestId>,
        sent_at: StoreTime,
        charge: Charge,
        limits_version: u32,
    },
    SetHealth {
        id: RequestId,
        network: Network,
        health_override: HealthOverride,
    },
    /// To find a changed health; so many changes were known when it was sent.
    PollHealth {
        health_changes: u32,
    },
}

/// One worker's part in what Envoys share through Redis.
#[derive(Debug)]
pub struct RedisLimiter {
    session: Session,
    /// The purpose of each command that waits for its reply; probes have none.
    purposes: IdMap<CommandId, Purpose>,
    deny_cache: DenyCache,
    /// Counts the changes of limits and health. A rejection goes into the deny cache only if none came since its limit
    /// was chosen.
    limits_version: u32,
    on_failure: OnFailure,
    bucket_prefix: String,
    health_sync: HealthSync,
    /// A change of Redis' state that the other workers and the log do not have yet.
    pending_event: Option<Event>,
    /// Whether a request has come here. The main thread's VM never sees one, may not even be able to connect, and
    /// publishes nothing.
    is_used: bool,
    /// What it published last.
    published: RedisStatus,
    /// What this generation of the plugin may do, as of the last tick. Before the first one, nothing can
    /// contradict it.
    role: Role,
    /// When the next poll of the health in Redis may be due.
    next_timeout: Option<StoreTime>,
    /// When to log the next failure of each kind.
    next_log: [StoreTime; FailureKind::COUNT],
}

impl RedisLimiter {
    /// A worker that has not connected yet. `random` names it.
    pub fn new(settings: &RedisSettings, namespace: &str, random: u64) -> Self {
        let bucket_prefix = bucket_prefix(&settings.key_prefix, namespace);
        let probe_key = format!("{bucket_prefix}{PROBE_BUCKET}");
        let timeout = Duration::from_millis(settings.timeout_ms.into());
        Self {
            session: Session::new(settings.credentials.clone(), probe_key, timeout, random)
                .with_proxy_errors(&PROXY_ERRORS),
            purposes: IdMap::default(),
            deny_cache: DenyCache::new(random),
            limits_version: 0,
            on_failure: settings.on_failure,
            bucket_prefix,
            health_sync: HealthSync::new(namespace, random),
            pending_event: None,
            is_used: false,
            published: RedisStatus::default(),
            role: Role::Newest,
            next_timeout: None,
            next_log: [StoreTime::default(); FailureKind::COUNT],
        }
    }

    /// What decides where Redis does not.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// The rejection of a charge whose bucket is known to be empty. Sends nothing.
    pub fn known_rejection(&mut self, start: DecisionStart, charge: &Charge) -> Option<Verdict> {
        let wait_us = whole_micros(self.deny_cache.wait(&charge.owner, start.id, start.at)?);
        let capacity = charge.limit.capacity();
        Some(Verdict { outcome: Outcome::Rejected, capacity, remaining: 0, wait_us })
    }

    /// Charges, unless it is known that there is nothing to take. The charge's limit is of that version.
    pub fn charge(
        &mut self,
        start: DecisionStart,
        charge: Charge,
        limits_version: u32,
        metrics: &mut Metrics,
    ) -> ChargeAttempt {
        self.is_used = true;
        let now = start.at;
        if let Some(verdict) = self.known_rejection(start, &charge) {
            return ChargeAttempt::KnownEmpty(charge, verdict);
        }
        let key = [&self.bucket_prefix, charge.owner.bucket().as_ref()].concat();
        let (other_limit, ttl_ms) = (charge.other_limit(), u64::from(charge.tier.ttl_seconds) * 1_000);
        let command = Command::Take(Take { key, limit: charge.limit, other_limit, ttl_ms });
        match self.session.send(command, self.session.timeout(), now) {
            Ok(id) => {
                let request = Some(start.id);
                self.purposes.insert(id, Purpose::Charge { request, sent_at: now, charge, limits_version });
                ChargeAttempt::Sent(id)
            }
            Err(declined) => {
                if declined == Declined::QueueFull {
                    metrics.count(metrics::store_failures(FailureKind::QueueFull), 1);
                    let detail = format!("{MAX_COMMANDS} commands of this worker wait");
                    self.log_failure(&Failure { reason: FailureKind::QueueFull, detail }, now);
                }
                self.deny_cache.forget(&charge.owner);
                ChargeAttempt::Declined(charge)
            }
        }
    }

    /// Stores the health that an operator sets, for all Envoys on this Redis.
    pub fn set_health(
        &mut self,
        start: DecisionStart,
        network: Network,
        health_override: HealthOverride,
    ) -> Result<CommandId, Declined> {
        self.is_used = true;
        let command = self.health_sync.set_command(health_override);
        let id = self.session.send(command, SET_HEALTH_TIMEOUT, start.at)?;
        self.purposes.insert(id, Purpose::SetHealth { id: start.id, network, health_override });
        Ok(id)
    }

    /// The request that waited for a command has ended. Of a charge that was sent already, only the deny cache gets the
    /// reply: a caller whose clients leave at once must not cost Redis a command for each request. A change of health
    /// that was sent applies.
    pub fn cancel(&mut self, id: CommandId) {
        let Some(Purpose::Charge { request, charge, .. }) = self.purposes.get_mut(&id) else { return };
        let request = request.take();
        if self.session.cancel(id) {
            if let Some(request) = request {
                self.deny_cache.release(&charge.owner, request);
            }
            self.purposes.remove(&id);
        }
    }

    /// Leaves a recheck of that bucket to the next request, if this one was to do it and does not.
    pub fn release(&mut self, owner: &BucketOwner, id: RequestId) {
        self.deny_cache.release(owner, id);
    }

    /// The version of the limits in force.
    pub fn limits_version(&self) -> u32 {
        self.limits_version
    }

    /// Forgets which buckets are known to be empty: limits or health have changed.
    pub fn forget_denied(&mut self) {
        self.limits_version = self.limits_version.wrapping_add(1);
        self.deny_cache.forget_all();
    }

    /// Takes in the bytes received on the stream.
    pub fn handle_input(&mut self, bytes: &[u8], now: StoreTime) {
        self.session.handle_input(bytes, now);
    }

    /// Notes that the stream is closed, or could not be opened.
    pub fn handle_close(&mut self, detail: &str, now: StoreTime) {
        self.session.handle_close(detail, now);
    }

    /// Does what is due: deadlines, and in the newest generation probes and polls of the health in Redis.
    pub fn handle_timeout(&mut self, now: StoreTime, role: Role, data: &impl SharedData) {
        self.role = role;
        if role == Role::Superseded {
            self.next_timeout = Some(now.after(POLL_INTERVAL));
            self.session.release_if_idle(now);
        }
        self.session.handle_timeout(now);
        if role == Role::Superseded {
            // If it becomes the newest again, another one has published what it found since.
            self.session.forget_status();
            self.pending_event = None;
            return;
        }
        let is_accepting = self.session.is_accepting();
        if let Some(Poll { command, health_changes }) = self.health_sync.poll(now, is_accepting, data) {
            let timeout = self.session.timeout();
            // The probe goes first: what a replica says of health may be old.
            if let Some(probe) = self.session.probe() {
                let _ = self.session.send(probe, timeout, now);
            }
            if let Ok(id) = self.session.send(command, timeout, now) {
                self.purposes.insert(id, Purpose::PollHealth { health_changes });
            }
        }
        self.next_timeout = Some(self.health_sync.next_poll());
    }

    /// Lets [`RedisLimiter::poll_output`] return what has gathered for the stream.
    pub fn flush(&mut self) {
        self.session.flush();
    }

    /// Whether there is something to poll, or to flush and then to poll.
    pub fn has_output(&self) -> bool {
        self.session.has_output()
    }

    /// What is to be done next. Handles the worker's own commands and publishes events on the way.
    pub fn poll_output(
        &mut self,
        now: StoreTime,
        data: &impl SharedData,
        metrics: &mut Metrics,
    ) -> Option<RedisOutput> {
        self.publish_event(data);
        while let Some(output) = self.session.poll_output() {
            match output {
                SessionOutput::Stream(action) => return Some(RedisOutput::Stream(action)),
                SessionOutput::Event(event) => {
                    self.pending_event = Some(event);
                    self.publish_event(data);
                }
                SessionOutput::Reply(id, reply) => {
                    if let Err(failure) = &reply
                        && !self.has_request_ended(id)
                    {
                        metrics.count(metrics::store_failures(failure.reason), 1);
                        self.log_failure(failure, now);
                    }
                    if let Some((id, answer)) = self.settle(id, reply, now, data) {
                        return Some(RedisOutput::Answer(id, answer));
                    }
                }
            }
        }
        None
    }

    /// When to call [`RedisLimiter::handle_timeout`] next; the first time is the owner's choice.
    pub fn poll_timeout(&self) -> Option<StoreTime> {
        [self.next_timeout, self.session.poll_timeout()].into_iter().flatten().min()
    }

    /// Whether the request of a command has ended. A failure is then no request's.
    fn has_request_ended(&self, id: CommandId) -> bool {
        matches!(self.purposes.get(&id), Some(Purpose::Charge { request: None, .. }))
    }

    /// Does what follows from a reply; returns the answer to the request that waits for it, if one does.
    fn settle(
        &mut self,
        id: CommandId,
        reply: Result<ReplyValue, Failure>,
        now: StoreTime,
        data: &impl SharedData,
    ) -> Option<(RequestId, RedisAnswer)> {
        match self.purposes.remove(&id)? {
            Purpose::Charge { request, sent_at, charge, limits_version } => {
                let is_current = limits_version == self.limits_version;
                let answer = self.answer_to_charge(charge, sent_at, is_current, reply);
                request.map(|request| (request, answer))
            }
            Purpose::SetHealth { id, network, health_override } => {
                Some((id, RedisAnswer::Health { network, health_override, is_stored: reply.is_ok() }))
            }
            Purpose::PollHealth { health_changes } => {
                self.adopt_health(reply, health_changes, now, data);
                None
            }
        }
    }

    fn adopt_health(
        &mut self,
        reply: Result<ReplyValue, Failure>,
        health_changes: u32,
        now: StoreTime,
        data: &impl SharedData,
    ) {
        match reply {
            Ok(ReplyValue::Text(text)) if self.role == Role::Newest => {
                if let Some(restore) = self.health_sync.adopt(text.as_deref(), health_changes, data) {
                    let _ = self.session.send(restore, SET_HEALTH_TIMEOUT, now);
                }
            }
            // This worker may never connect: the main thread cannot, through an internal listener.
            Err(Failure { reason: FailureKind::Disconnected, .. }) if !self.session.has_stream() => {
                self.health_sync.release_lease(data);
            }
            Err(Failure { reason: FailureKind::Auth | FailureKind::Error, detail })
                if self.session.is_accepting() =>
            {
                self.health_sync.log_unreadable(&detail);
            }
            _ => {}
        }
    }

    /// Logs why a command failed: at `warn` once a minute for each kind, because many of them open no breaker.
    fn log_failure(&mut self, failure: &Failure, now: StoreTime) {
        match self.next_log.get_mut(failure.reason as usize) {
            Some(next) if *next <= now => {
                *next = now.after(LOG_INTERVAL);
                log::warn!("Redis did not carry out a command: {}", failure.detail);
            }
            _ => log::debug!("Redis did not carry out a command: {}", failure.detail),
        }
    }

    fn answer_to_charge(
        &mut self,
        charge: Charge,
        sent_at: StoreTime,
        is_current: bool,
        reply: Result<ReplyValue, Failure>,
    ) -> RedisAnswer {
        let Ok(ReplyValue::Taken(taken)) = reply else {
            self.deny_cache.forget(&charge.owner);
            return RedisAnswer::Charge(charge, None);
        };
        let outcome = if taken.admitted { Outcome::Admitted } else { Outcome::Rejected };
        let verdict = Verdict::new(outcome, taken.tokens_pico, charge.limit);
        match outcome {
            Outcome::Admitted => self.deny_cache.forget(&charge.owner),
            Outcome::Rejected if is_current => {
                self.deny_cache.note(&charge.owner, sent_at, verdict.wait());
            }
            Outcome::Rejected => {}
        }
        RedisAnswer::Charge(charge, Some(verdict))
    }

    /// Publishes to the other workers, and logs, that Redis is connected or lost. If they know already, it logs what has
    /// become of this worker's circuit breaker.
    fn publish_event(&mut self, data: &impl SharedData) {
        let has_published = self.published != RedisStatus::Unknown;
        let is_known = self.is_used || has_published || self.pending_event == Some(Event::Connected);
        let may_publish = is_known && self.role == Role::Newest;
        let Some(event) = self.pending_event.take_if(|_| may_publish) else {
            return;
        };
        let redis = match event {
            Event::Connected => RedisStatus::Connected,
            Event::Lost(_) => RedisStatus::Disconnected,
        };
        let previous = std::mem::replace(&mut self.published, redis);
        let is_news = self.health_sync.note_redis(redis, data);
        match event {
            Event::Connected if is_news => log::info!("Redis connected"),
            Event::Connected if previous == RedisStatus::Disconnected => {
                log::info!("one worker's circuit breaker is closed");
            }
            Event::Connected => {}
            Event::Lost(failure) if !is_news => {
                log::info!("one worker's circuit breaker is open: {}", failure.detail);
            }
            Event::Lost(failure) => {
                let policy = self.on_failure.name();
                log::warn!("Redis lost, on_failure {policy:?} decides until it is back: {}", failure.detail);
            }
        }
    }
}
