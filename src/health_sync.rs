//! The health that an operator sets, kept the same in all Envoys on one Redis.
//!
//! One worker of each Envoy at a time polls Redis for a changed health, by a lease in shared data, several times a
//! second and whether or not there are requests. What it finds goes into the control record, which all workers read.
//! Sends nothing itself: it says which command to send, and is given the reply.

use std::rc::Rc;
use std::time::Duration;

use crate::codec::{Reader, Writer};
use crate::control::{Control, RedisStatus};
use crate::health::HealthOverride;
use crate::record_key::record_key;
use crate::store::redis::command::{Command, Overwrite};
use crate::store::redis::health_key;
use crate::store::{SharedData, update};
use crate::time::StoreTime;

/// Between two polls. A change is to be known everywhere within a second.
pub const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// After so long without a poll, another worker takes over.
const POLL_LEASE: Duration = Duration::from_millis(600);

/// What to send for one poll.
#[derive(Debug)]
pub struct Poll {
    pub command: Command,
    /// How many changes of health this Envoy knew of; to be handed to [`HealthSync::adopt`] with the reply.
    pub health_changes: u32,
}

/// One worker's part.
#[derive(Debug)]
pub struct HealthSync {
    health_key: Rc<str>,
    control_key: String,
    lease_key: String,
    /// Names this worker in the lease.
    worker: u64,
    next_poll: StoreTime,
    is_unreadable_logged: bool,
}

impl HealthSync {
    /// A worker that has not polled yet. `worker` names it.
    pub fn new(namespace: &str, worker: u64) -> Self {
        Self {
            health_key: health_key(namespace).into(),
            control_key: Control::key(namespace),
            lease_key: record_key(namespace, "health_poll"),
            worker,
            next_poll: StoreTime::default(),
            is_unreadable_logged: false,
        }
    }

    /// The command that stores in Redis what an operator has set.
    pub fn set_command(&self, health_override: HealthOverride) -> Command {
        Command::Set(self.health_key.clone(), health_override.name(), Overwrite::Always)
    }

    /// The next poll, if it is due, commands are accepted, and this worker is the one that polls.
    pub fn poll(&mut self, now: StoreTime, is_accepting: bool, data: &impl SharedData) -> Option<Poll> {
        if now < self.next_poll {
            return None;
        }
        self.next_poll = now.after(POLL_INTERVAL);
        (is_accepting && self.take_lease(POLL_LEASE, data)).then(|| {
            let Control { health_changes, .. } = Control::read(data, &self.control_key);
            Poll { command: Command::Get(self.health_key.clone()), health_changes }
        })
    }

    /// When the next poll is due; after [`HealthSync::poll`], in the future.
    pub fn next_poll(&self) -> StoreTime {
        self.next_poll
    }

    /// Takes over what Redis says, unless health has changed in this Envoy since the poll was sent.
    ///
    /// A Redis without a health has lost its data, or never had any: then the override of this Envoy holds, and the
    /// command that is returned stores it again.
    pub fn adopt(&self, text: Option<&[u8]>, health_changes: u32, data: &impl SharedData) -> Option<Command> {
        let known = Control::read(data, &self.control_key);
        let Some(text) = text else {
            let is_set = known.health_override != HealthOverride::default();
            let restore =
                || Command::Set(self.health_key.clone(), known.health_override.name(), Overwrite::Never);
            return is_set.then(restore);
        };
        let found = std::str::from_utf8(text).ok().and_then(HealthOverride::from_name);
        let health_override = found.filter(|health_override| *health_override != known.health_override)?;
        let changed = Control::change(data, &self.control_key, |control| {
            if control.health_changes == health_changes {
                control.with_override(health_override)
            } else {
                control
            }
        });
        if changed.is_ok_and(|(previous, _)| previous.health_changes == health_changes) {
            log::info!("health set to {health_override} (it was {}) by Redis", known.health());
        }
        None
    }

    /// Logs once that the health cannot be read.
    pub fn log_unreadable(&mut self, detail: &str) {
        if !std::mem::replace(&mut self.is_unreadable_logged, true) {
            log::warn!("the health in Redis ({}) cannot be read: {detail}", self.health_key);
        }
    }

    /// Notes for all workers whether Redis works; returns whether that has changed.
    pub fn note_redis(&self, redis: RedisStatus, data: &impl SharedData) -> bool {
        let changed = Control::change(data, &self.control_key, |control| Control { redis, ..control });
        changed.is_err() || changed.is_ok_and(|(previous, now)| previous.redis != now.redis)
    }

    /// Lets another worker poll: this one could not.
    pub fn release_lease(&self, data: &impl SharedData) {
        self.take_lease(Duration::ZERO, data);
    }

    /// Whether it is this worker that polls: then for so long from now on.
    fn take_lease(&self, duration: Duration, data: &impl SharedData) -> bool {
        let taken = update(data, &self.lease_key, |stored, now| {
            let lease = stored.and_then(|bytes| {
                let mut record = Reader::new(bytes);
                let (worker, until_us) = (record.u64()?, record.u64()?);
                record.is_at_end().then_some((worker, StoreTime::from_micros(until_us)))
            });
            let is_free = lease.is_none_or(|(worker, until)| worker == self.worker || until <= now);
            let mut next = Writer::default();
            next.u64(self.worker).u64(now.after(duration).as_micros());
            (is_free, is_free.then(|| next.into_bytes()))
        });
        taken.is_ok_and(|updated| updated.value)
    }
}
