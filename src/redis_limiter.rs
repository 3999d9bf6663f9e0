//! What many Envoys share through one Redis: buckets, and the health that an operator sets.
//!
//! Belongs to one worker, as its [`Session`] does. One worker of each Envoy at a time looks for a changed health, by a
//! lease in shared data, several times a second and whether or not there are requests.

use crate::bucket::{Outcome, Verdict};
use crate::charge::Charge;
use crate::config::{OnFailure, RedisSettings};
use crate::control::Redis;
use crate::generation::Role;
use crate::health::HealthOverride;
use crate::health_sync::{HealthSync, Poll};
use crate::identity::Network;
use crate::metrics::{self, Metrics};
use crate::request::{RequestId, RequestStart};
use crate::store::SharedData;
use crate::store::redis::command::{Answer, Command, Declined, Event, Failure};
use crate::store::redis::deny_cache::DenyCache;
use crate::store::redis::failure::FailureKind;
use crate::store::redis::queue::CommandId;
use crate::store::redis::script::Take;
use crate::store::redis::session::{Effects, MAX_COMMANDS, Session};
use crate::store::redis::{PROBE_BUCKET, bucket_prefix};

/// How long Redis may take to store a new health, in microseconds. The operator who asked would rather wait.
const SET_HEALTH_TIMEOUT_US: u64 = 1_000_000;

/// What Envoy's `redis_proxy` says when it finds no node to pass a command on to.
const PROXY_ERRORS: [&[u8]; 2] = [b"upstream failure", b"no upstream host"];

/// Between two lines in the log about failures of one kind, in microseconds.
const LOG_INTERVAL_US: u64 = 60_000_000;

/// What became of a charge.
#[derive(Debug)]
pub enum Charged {
    /// Its bucket is known to be empty.
    Denied(Charge, Verdict),
    /// Redis is asked; [`RedisLimiter::next_answer`] has the rest.
    Waits(CommandId),
    /// Redis is not asked: the charge is for `on_failure` to decide.
    Declined(Charge),
}

/// Redis is not asked anything at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAsked;

/// An answer to a request.
#[derive(Debug)]
pub enum Answered {
    /// A charge, and what Redis said; nothing where it failed.
    Charge(Charge, Option<Verdict>),
    /// What an operator said about health, and whether Redis has it.
    Health(Network, HealthOverride, bool),
}

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    Charge {
        start: RequestStart,
        charge: Charge,
        limits: u32,
    },
    Health {
        id: RequestId,
        network: Network,
        health_override: HealthOverride,
    },
    /// This worker, looking for a new health; it knew so many changes when it asked.
    Poll {
        health_changes: u32,
    },
    /// This worker, which needs no answer.
    Internal,
}

/// One worker's part in what Envoys share through Redis.
#[derive(Debug)]
pub struct RedisLimiter {
    session: Session<Asker>,
    deny_cache: DenyCache,
    /// Counts the changes of limits: what was asked before one says nothing about who is empty after it.
    limits: u32,
    on_failure: OnFailure,
    bucket_prefix: String,
    health_sync: HealthSync,
    /// News that the host has not been told yet.
    news: Option<Event>,
    /// Whether a request has come here. The main thread's VM never sees one, may not even be able to connect, and
    /// has nothing to tell.
    is_used: bool,
    was_connected: bool,
    /// What this generation of the plugin may do, as of the last tick. Before the first one, nothing can
    /// contradict it.
    role: Role,
    /// When to log the next failure of each kind.
    next_log_us: [u64; FailureKind::COUNT],
}

impl RedisLimiter {
    /// A worker that has not connected yet. `random` names it.
    pub fn new(settings: &RedisSettings, namespace: &str, random: u64) -> Self {
        let bucket_prefix = bucket_prefix(&settings.key_prefix, namespace);
        let probe_key = format!("{bucket_prefix}{PROBE_BUCKET}");
        let timeout_us = u64::from(settings.timeout_ms) * 1_000;
        Self {
            session: Session::new(settings.credentials.clone(), probe_key, timeout_us, random)
                .with_proxy_errors(&PROXY_ERRORS),
            deny_cache: DenyCache::new(random),
            limits: 0,
            on_failure: settings.on_failure,
            bucket_prefix,
            health_sync: HealthSync::new(namespace, random),
            news: None,
            is_used: false,
            was_connected: false,
            role: Role::Newest,
            next_log_us: [0; FailureKind::COUNT],
        }
    }

    /// What decides where Redis does not.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// The refusal of a charge whose bucket is known to be empty. Asks Redis nothing.
    pub fn known_refusal(&mut self, charge: &Charge, now_us: u64) -> Option<Verdict> {
        let wait_us = self.deny_cache.wait_us(&charge.owner, now_us)?;
        let capacity = charge.limit.capacity();
        Some(Verdict { outcome: Outcome::Refused, capacity, remaining: 0, wait_us })
    }

    /// Charges, unless it is known that there is nothing to take.
    pub fn charge(&mut self, start: RequestStart, charge: Charge, metrics: &mut Metrics) -> Charged {
        self.is_used = true;
        if let Some(verdict) = self.known_refusal(&charge, start.at_us) {
            return Charged::Denied(charge, verdict);
        }
        let key = [&self.bucket_prefix, charge.owner.bucket().as_ref()].concat();
        let (other_limit, ttl_ms) = (charge.other_limit(), charge.ttl_us() / 1_000);
        let question = Command::Take(Take { key, limit: charge.limit, other_limit, ttl_ms });
        let asker = Asker::Charge { start, charge: charge.clone(), limits: self.limits };
        match self.session.send(asker, question, self.session.timeout_us(), start.at_us) {
            Ok(id) => Charged::Waits(id),
            Err(declined) => {
                if declined == Declined::QueueFull {
                    metrics.count(metrics::store_failures(FailureKind::QueueFull), 1);
                    let detail = format!("{MAX_COMMANDS} commands of this worker wait");
                    self.log_failure(&Failure { reason: FailureKind::QueueFull, detail }, start.at_us);
                }
                self.deny_cache.forget(&charge.owner);
                Charged::Declined(charge)
            }
        }
    }

    /// Stores for the fleet what an operator says about health.
    pub fn set_health(
        &mut self,
        start: RequestStart,
        network: Network,
        health_override: HealthOverride,
    ) -> Result<CommandId, NotAsked> {
        self.is_used = true;
        let asker = Asker::Health { id: start.id, network, health_override };
        let command = self.health_sync.set_command(health_override);
        let asked = self.session.send(asker, command, SET_HEALTH_TIMEOUT_US, start.at_us);
        asked.map_err(|_| NotAsked)
    }

    /// The request that waited for a command has ended.
    pub fn cancel(&mut self, id: CommandId) {
        self.session.cancel(id);
    }

    /// Forgets who is known to be empty: limits or health have changed.
    pub fn forget_denied(&mut self) {
        self.limits = self.limits.wrapping_add(1);
        self.deny_cache.forget_all();
    }

    /// Takes in what came on the stream.
    pub fn received(&mut self, bytes: &[u8], now_us: u64) {
        self.session.received(bytes, now_us);
    }

    /// Notes that the stream is closed, or could not be opened.
    pub fn closed(&mut self, detail: &str, now_us: u64) {
        self.session.closed(detail, now_us);
    }

    /// Sees to deadlines; in the newest generation to probes and the health in Redis, too.
    pub fn tick(&mut self, now_us: u64, role: Role, data: &impl SharedData) {
        self.role = role;
        if role == Role::Superseded {
            self.session.release_if_idle(now_us);
        }
        self.session.tick(now_us);
        if role == Role::Superseded {
            return;
        }
        let is_accepting = self.session.is_accepting();
        if let Some(Poll { command, health_changes, needs_probe }) =
            self.health_sync.poll(now_us, is_accepting, data)
        {
            let timeout_us = self.session.timeout_us();
            // Where the queue is full, the next poll is soon enough.
            let _ = self.session.send(Asker::Poll { health_changes }, command, timeout_us, now_us);
            if needs_probe {
                let _ = self.session.send(Asker::Internal, self.session.probe(), timeout_us, now_us);
            }
        }
    }

    /// Whether a request waits, so that [`RedisLimiter::tick`] should be called often.
    pub fn is_waiting(&self) -> bool {
        self.session.is_waiting()
    }

    /// How often to call [`RedisLimiter::tick`] while a request waits, in microseconds.
    pub fn tick_us(&self) -> u64 {
        self.session.tick_us()
    }

    /// Whether there is anything to send or to answer.
    pub fn has_work(&self) -> bool {
        self.session.has_effects() || self.session.has_answers()
    }

    /// What the owner of the stream has to do since it was last asked.
    pub fn take_effects(&mut self) -> Effects {
        self.session.take_effects()
    }

    /// The next answer to a request. Sees to the worker's own questions and to news on the way.
    pub fn next_answer(
        &mut self,
        now_us: u64,
        data: &impl SharedData,
        metrics: &mut Metrics,
    ) -> Option<(RequestId, Answered)> {
        self.tell_news(data);
        while let Some((asker, answer)) = self.session.next_answer() {
            if let Err(failure) = &answer {
                metrics.count(metrics::store_failures(failure.reason), 1);
                self.log_failure(failure, now_us);
            }
            match asker {
                Asker::Charge { start, charge, limits } => {
                    let is_current = limits == self.limits;
                    let answered = self.charged(charge, start.at_us, is_current, answer);
                    return Some((start.id, answered));
                }
                Asker::Health { id, network, health_override } => {
                    return Some((id, Answered::Health(network, health_override, answer.is_ok())));
                }
                Asker::Poll { health_changes } => match answer {
                    Ok(Answer::Text(text)) if self.role == Role::Newest => {
                        let restore = self.health_sync.found(text.as_deref(), health_changes, data);
                        if let Some(command) = restore {
                            let _ =
                                self.session.send(Asker::Internal, command, SET_HEALTH_TIMEOUT_US, now_us);
                        }
                    }
                    Err(Failure { reason: FailureKind::Auth | FailureKind::Error, detail })
                        if self.session.is_accepting() =>
                    {
                        self.health_sync.unreadable(&detail);
                    }
                    _ => {}
                },
                Asker::Internal => {}
            }
        }
        None
    }

    /// Says why a command failed: at `warn` once a minute for each kind, for many of them open no breaker.
    fn log_failure(&mut self, failure: &Failure, now_us: u64) {
        match self.next_log_us.get_mut(failure.reason as usize) {
            Some(next_us) if *next_us <= now_us => {
                *next_us = now_us.saturating_add(LOG_INTERVAL_US);
                log::warn!("Redis did not carry out a command: {}", failure.detail);
            }
            _ => log::debug!("Redis did not carry out a command: {}", failure.detail),
        }
    }

    fn charged(
        &mut self,
        charge: Charge,
        asked_us: u64,
        is_current: bool,
        answer: Result<Answer, Failure>,
    ) -> Answered {
        let Ok(Answer::Taken(taken)) = answer else {
            self.deny_cache.forget(&charge.owner);
            return Answered::Charge(charge, None);
        };
        let outcome = if taken.admitted { Outcome::Admitted } else { Outcome::Refused };
        let verdict = Verdict::new(outcome, taken.tokens_pico, charge.limit);
        match outcome {
            Outcome::Admitted => self.deny_cache.forget(&charge.owner),
            Outcome::Refused if is_current => self.deny_cache.note(&charge.owner, asked_us, verdict.wait_us),
            Outcome::Refused => {}
        }
        Answered::Charge(charge, Some(verdict))
    }

    /// Tells the other workers, and the log, what has become of Redis.
    fn tell_news(&mut self, data: &impl SharedData) {
        self.news = self.session.take_event().or(self.news.take());
        let is_known = self.is_used || self.was_connected || self.news == Some(Event::Connected);
        let is_ours_to_tell = is_known && self.role == Role::Newest;
        let Some(event) = self.news.take_if(|_| is_ours_to_tell) else {
            return;
        };
        let redis = match event {
            Event::Connected => {
                self.was_connected = true;
                Redis::Connected
            }
            Event::Lost(_) => Redis::Disconnected,
        };
        if !self.health_sync.note_redis(redis, data) {
            return;
        }
        match event {
            Event::Connected => log::info!("Redis connected"),
            Event::Lost(failure) => {
                let policy = self.on_failure.name();
                log::warn!("Redis lost, on_failure {policy:?} decides until it is back: {}", failure.detail);
            }
        }
    }
}
