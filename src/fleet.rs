//! What many Envoys share through one Redis: buckets, and the health that an operator sets.
//!
//! Belongs to one worker, as its [`Session`] does. One worker of each Envoy at a time looks for a changed health, by a
//! lease in shared data, several times a second and whether or not there are requests.

use std::rc::Rc;

use crate::bucket::{Outcome, Verdict};
use crate::charge::Charge;
use crate::config::{OnFailure, RedisSettings};
use crate::control::{Control, Redis};
use crate::generation::Role;
use crate::health::Told;
use crate::identity::Network;
use crate::metrics::Metrics;
use crate::request::{Arrival, Ticket};
use crate::store::redis::denied::Denied;
use crate::store::redis::failure::Reason;
use crate::store::redis::script::Take;
use crate::store::redis::session::{
    Answer, Declined, Effects, Event, Failure, MAX_QUESTIONS, Overwrite, Question, Session,
};
use crate::store::redis::{PROBE_BUCKET, bucket_prefix, health_key};
use crate::store::{SharedData, record_key, update};

/// Between two looks at the health in Redis, in microseconds. A change is to be known everywhere within a second.
pub const POLL_US: u64 = 250_000;

/// After so long without a look, another worker takes over, in microseconds.
const POLL_LEASE_US: u64 = 600_000;

/// How long Redis may take to store a new health, in microseconds. The operator who asked would rather wait.
const SET_HEALTH_TIMEOUT_US: u64 = 1_000_000;

/// Between two lines in the log about failures of one kind, in microseconds.
const LOG_INTERVAL_US: u64 = 60_000_000;

/// What became of a charge.
#[derive(Debug)]
pub enum Charged {
    /// Its bucket is known to be empty.
    Denied(Charge, Verdict),
    /// Redis is asked; [`Fleet::next_answer`] has the rest.
    Waits,
    /// Redis is not asked: the charge is for `on_failure` to decide.
    Declined(Charge),
}

/// Redis is not asked anything at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAsked;

/// An answer to somebody outside.
#[derive(Debug)]
pub enum Answered {
    /// A charge, and what Redis said; nothing where it failed.
    Charge(Charge, Option<Verdict>),
    /// What somebody said about health, and whether Redis has it.
    Health(Network, Told, bool),
}

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    Charge {
        arrival: Arrival,
        charge: Charge,
        limits: u32,
    },
    Health {
        ticket: Ticket,
        network: Network,
        told: Told,
    },
    /// This worker, looking for a new health; it knew so many changes when it asked.
    Poll {
        health_changes: u32,
    },
    /// This worker, which needs no answer.
    Nobody,
}

/// One worker's part in the fleet.
#[derive(Debug)]
pub struct Fleet {
    session: Session<Asker>,
    denied: Denied,
    /// Counts the changes of limits: what was asked before one says nothing about who is empty after it.
    limits: u32,
    on_failure: OnFailure,
    bucket_prefix: String,
    health_key: Rc<str>,
    control_key: String,
    lease_key: String,
    /// Names this worker in the lease.
    worker: u64,
    next_poll_us: u64,
    /// News that nobody has been told yet.
    news: Option<Event>,
    /// Whether a request has come here. The main thread's VM never sees one, may not even be able to connect, and
    /// has nothing to tell.
    is_used: bool,
    was_connected: bool,
    /// What this generation of the plugin may do, as of the last tick. Before the first one, nothing can
    /// contradict it.
    role: Role,
    /// When to log the next failure of each kind.
    next_log_us: [u64; Reason::COUNT],
    /// Whether it has been said that the health in Redis cannot be read.
    has_complained: bool,
}

impl Fleet {
    /// A worker that has not connected yet. `random` names it.
    pub fn new(settings: &RedisSettings, namespace: &str, random: u64) -> Self {
        let bucket_prefix = bucket_prefix(&settings.key_prefix, namespace);
        let probe_key = format!("{bucket_prefix}{PROBE_BUCKET}");
        let timeout_us = u64::from(settings.timeout_ms) * 1_000;
        Self {
            session: Session::new(settings.credentials.clone(), probe_key, timeout_us, random),
            denied: Denied::new(random),
            limits: 0,
            on_failure: settings.on_failure,
            bucket_prefix,
            health_key: health_key(namespace).into(),
            control_key: Control::key(namespace),
            lease_key: record_key(namespace, "health_poll"),
            worker: random,
            next_poll_us: 0,
            news: None,
            is_used: false,
            was_connected: false,
            role: Role::Newest,
            next_log_us: [0; Reason::COUNT],
            has_complained: false,
        }
    }

    /// What decides where Redis does not.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure
    }

    /// Charges, unless it is known that there is nothing to take.
    pub fn charge(&mut self, arrival: Arrival, charge: Charge, metrics: &mut Metrics) -> Charged {
        self.is_used = true;
        if let Some(wait_us) = self.denied.wait_us(&charge.payer, arrival.at_us) {
            let capacity = charge.limit.capacity();
            let verdict = Verdict { outcome: Outcome::Refused, capacity, remaining: 0, wait_us };
            return Charged::Denied(charge, verdict);
        }
        let key = [&self.bucket_prefix, charge.payer.bucket().as_ref()].concat();
        let (other_limit, ttl_ms) = (charge.other_limit(), charge.ttl_us() / 1_000);
        let question = Question::Take(Take { key, limit: charge.limit, other_limit, ttl_ms });
        let asker = Asker::Charge { arrival, charge, limits: self.limits };
        match self.session.ask(asker, question, self.session.timeout_us(), arrival.at_us) {
            Ok(()) => Charged::Waits,
            Err((Asker::Charge { charge, .. }, declined)) => {
                if declined == Declined::QueueFull {
                    metrics.count(Reason::QueueFull.counter(), 1);
                    let detail = format!("{MAX_QUESTIONS} commands of this worker are on their way");
                    self.log_failure(&Failure { reason: Reason::QueueFull, detail }, arrival.at_us);
                }
                self.denied.forget(&charge.payer);
                Charged::Declined(charge)
            }
            // The session hands back what it was given.
            Err(_) => Charged::Waits,
        }
    }

    /// Stores for the fleet what an operator says about health.
    pub fn set_health(&mut self, arrival: Arrival, network: Network, told: Told) -> Result<(), NotAsked> {
        self.is_used = true;
        let question = Question::Set(self.health_key.clone(), told.name(), Overwrite::Always);
        let asker = Asker::Health { ticket: arrival.ticket, network, told };
        let asked = self.session.ask(asker, question, SET_HEALTH_TIMEOUT_US, arrival.at_us);
        asked.map_err(|_| NotAsked)
    }

    /// Forgets who is known to be empty: limits or health have changed.
    pub fn forget_denied(&mut self) {
        self.limits = self.limits.wrapping_add(1);
        self.denied.forget_all();
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
        if role == Role::Superseded || now_us < self.next_poll_us {
            return;
        }
        self.next_poll_us = now_us.saturating_add(POLL_US);
        if self.session.is_asked() && self.holds_lease(data) {
            self.poll(now_us, data);
        }
    }

    /// Looks for a changed health, and whether Redis is well where that is not known.
    fn poll(&mut self, now_us: u64, data: &impl SharedData) {
        let control = Control::read(data, &self.control_key);
        let timeout_us = self.session.timeout_us();
        let asker = Asker::Poll { health_changes: control.health_changes };
        // Where the queue is full, the next poll is soon enough.
        let _ = self.session.ask(asker, Question::Get(self.health_key.clone()), timeout_us, now_us);
        if control.redis != Redis::Connected {
            let _ = self.session.ask(Asker::Nobody, self.session.probe(), timeout_us, now_us);
        }
    }

    /// Whether somebody waits, so that [`Fleet::tick`] should be called often.
    pub fn is_waiting(&self) -> bool {
        self.session.is_waiting()
    }

    /// How often to call [`Fleet::tick`] while somebody waits, in microseconds.
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

    /// The next answer for somebody outside. Sees to the worker's own questions and to news on the way.
    pub fn next_answer(
        &mut self,
        now_us: u64,
        data: &impl SharedData,
        metrics: &mut Metrics,
    ) -> Option<(Ticket, Answered)> {
        self.tell_news(data);
        while let Some((asker, answer)) = self.session.next_answer() {
            if let Err(failure) = &answer {
                metrics.count(failure.reason.counter(), 1);
                self.log_failure(failure, now_us);
            }
            match asker {
                Asker::Charge { arrival, charge, limits } => {
                    let is_current = limits == self.limits;
                    let answered = self.charged(charge, arrival.at_us, is_current, answer);
                    return Some((arrival.ticket, answered));
                }
                Asker::Health { ticket, network, told } => {
                    return Some((ticket, Answered::Health(network, told, answer.is_ok())));
                }
                Asker::Poll { health_changes } => match answer {
                    Ok(Answer::Text(text)) => {
                        self.found_health(text.as_deref(), health_changes, now_us, data);
                    }
                    Err(Failure { reason: Reason::Auth | Reason::Error, detail })
                        if self.session.is_asked() && !self.has_complained =>
                    {
                        self.has_complained = true;
                        log::warn!("the health in Redis ({}) cannot be read: {detail}", self.health_key);
                    }
                    _ => {}
                },
                Asker::Nobody => {}
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
            self.denied.forget(&charge.payer);
            return Answered::Charge(charge, None);
        };
        let outcome = if taken.admitted { Outcome::Admitted } else { Outcome::Refused };
        let verdict = Verdict::new(outcome, taken.tokens_pico, charge.limit);
        match outcome {
            Outcome::Admitted => self.denied.forget(&charge.payer),
            Outcome::Refused if is_current => self.denied.note(&charge.payer, asked_us, verdict.wait_us),
            Outcome::Refused => {}
        }
        Answered::Charge(charge, Some(verdict))
    }

    /// Takes over what Redis says about health, unless this Envoy has learnt of something newer since it asked.
    ///
    /// A Redis that says nothing has lost its data, or never had any: what this Envoy was told goes on.
    fn found_health(
        &mut self,
        text: Option<&[u8]>,
        health_changes: u32,
        now_us: u64,
        data: &impl SharedData,
    ) {
        if self.role == Role::Superseded {
            return;
        }
        let known = Control::read(data, &self.control_key);
        let Some(text) = text else {
            if known.told != Told::default() {
                let question = Question::Set(self.health_key.clone(), known.told.name(), Overwrite::Never);
                let _ = self.session.ask(Asker::Nobody, question, SET_HEALTH_TIMEOUT_US, now_us);
            }
            return;
        };
        let found = std::str::from_utf8(text).ok().and_then(Told::from_name);
        let Some(told) = found.filter(|told| *told != known.told) else {
            return;
        };
        let changed = Control::change(data, &self.control_key, |control| {
            if control.health_changes == health_changes { control.with_told(told) } else { control }
        });
        if changed.is_ok_and(|previous| previous.health_changes == health_changes) {
            log::info!("health set to {told} (it was {}) by Redis", known.health());
        }
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
        let changed = Control::change(data, &self.control_key, |control| Control { redis, ..control });
        if changed.is_ok_and(|previous| previous.redis == redis) {
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

    /// Whether it is this worker that looks for a changed health.
    fn holds_lease(&self, data: &impl SharedData) -> bool {
        let claimed = update(data, &self.lease_key, |stored, now_us| {
            let lease = stored.and_then(|bytes| {
                let (worker, until_us) = bytes.split_first_chunk()?;
                Some((u64::from_le_bytes(*worker), u64::from_le_bytes(until_us.try_into().ok()?)))
            });
            let is_free = lease.is_none_or(|(worker, until_us)| worker == self.worker || until_us <= now_us);
            let until_us = now_us.saturating_add(POLL_LEASE_US);
            let bytes = [self.worker.to_le_bytes(), until_us.to_le_bytes()].concat();
            (is_free, is_free.then_some(bytes))
        });
        claimed.is_ok_and(|updated| updated.value)
    }
}
