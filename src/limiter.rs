//! The limiter of one worker: its parts, and what its owner does with them.
//!
//! Knows nothing of Envoy: what it needs of a request, it reads through [`Request`](crate::request::Request); what
//! workers share is in [`SharedData`], what Envoys share in Redis.

use std::rc::Rc;

use crate::admin::{self, EndpointReply, PendingChange};
use crate::admission::{Decider, Decision, ScreenedRequest};
use crate::config::{Config, PluginConfig};
use crate::documents::{Fetched, SourceRecords};
use crate::generation::Role;
use crate::health_change::HealthChange;
use crate::in_force::InForce;
use crate::measured_health;
use crate::metrics::{self, Metrics, StatUpdate};
use crate::overload::OverloadReport;
use crate::redis_limiter::{RedisAnswer, RedisLimiter, RedisOutput};
use crate::request::{DecisionStart, RequestId};
use crate::store::redis::command::CommandId;
use crate::store::redis::outbox::StreamAction;
use crate::store::{AddressTable, Contended, SharedData};
use crate::time::{StoreTime, WallClock};

/// What the owner of a limiter has to do.
#[derive(Debug)]
pub enum LimiterOutput {
    /// Something on the stream to Redis. Comes before all decisions, and only after [`Limiter::flush`].
    Stream(StreamAction),
    /// Carry out what was decided about a request that waited for Redis.
    Decided(RequestId, Decision),
}

/// The limiter of one worker.
#[derive(Debug)]
pub struct Limiter {
    in_force: InForce,
    /// The buckets of callers without a key.
    table: AddressTable,
    /// This worker's part in what Envoys share through Redis; `None` without Redis.
    redis: Option<RedisLimiter>,
    /// The last report.
    overload_report: Option<OverloadReport>,
    wall_clock: WallClock,
    /// What was counted and not yet handed to Envoy.
    metrics: Metrics,
}

impl Limiter {
    /// A limiter with this plugin configuration and whatever documents are published already.
    pub fn new(plugin: PluginConfig, data: &impl SharedData, hash_key: (u64, u64)) -> Result<Self, String> {
        let seed = hash_key.0 ^ hash_key.1;
        let in_force = InForce::new(plugin, seed)?;
        let settings = &in_force.config().settings;
        let table = AddressTable::open(data, &settings.namespace, settings.max_buckets, hash_key).map_err(
            |Contended| "the address table could not be opened: shared data is contended".to_owned(),
        )?;
        let redis = settings.redis.as_ref();
        let redis = redis.map(|redis| RedisLimiter::new(redis, &settings.namespace, seed));
        let mut metrics = Metrics::default();
        metrics.define_tiers(&in_force.config().tiers);
        let mut limiter =
            Self { in_force, table, redis, overload_report: None, wall_clock: WallClock::default(), metrics };
        limiter.refresh(data);
        Ok(limiter)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Rc<Config> {
        self.in_force.config()
    }

    /// Sets the wall clock: headers and timestamps follow it, buckets do not.
    pub fn set_wall_clock(&mut self, wall_clock: WallClock) {
        self.wall_clock = wall_clock;
    }

    /// The wall clock.
    pub fn wall_clock(&self) -> WallClock {
        self.wall_clock
    }

    /// Reads the control record, announced change or not.
    pub fn refresh(&mut self, data: &impl SharedData) {
        self.in_force.refresh(data, self.redis.as_mut(), &mut self.metrics);
    }

    /// What decides about requests.
    pub fn decider<'a, D: SharedData>(&'a mut self, data: &'a D) -> Decider<'a, D> {
        Decider {
            in_force: &mut self.in_force,
            table: &self.table,
            redis: self.redis.as_mut(),
            overload_report: self.overload_report.as_ref(),
            wall_clock: self.wall_clock,
            metrics: &mut self.metrics,
            data,
        }
    }

    /// The next thing to do because of Redis.
    pub fn poll_output(&mut self, now: StoreTime, data: &impl SharedData) -> Option<LimiterOutput> {
        let redis = self.redis.as_mut()?;
        let (id, answer) = match redis.poll_output(now, data, &mut self.metrics)? {
            RedisOutput::Stream(action) => return Some(LimiterOutput::Stream(action)),
            RedisOutput::Answer(id, answer) => (id, answer),
        };
        let decision = match answer {
            RedisAnswer::Charge(charge, verdict) => self.decider(data).decide_by_reply(&charge, verdict, now),
            RedisAnswer::Health { network, health_override, is_stored } => {
                let change = HealthChange { network, health_override };
                let reply = if is_stored { self.apply(change, data) } else { admin::not_stored() };
                reply.count(&mut self.metrics);
                Decision::Replied(reply)
            }
        };
        Some(LimiterOutput::Decided(id, decision))
    }

    /// This worker's part in what Envoys share through Redis, where there is one.
    pub fn redis(&self) -> Option<&RedisLimiter> {
        self.redis.as_ref()
    }

    /// Takes in bytes from Redis.
    pub fn handle_input(&mut self, bytes: &[u8], now: StoreTime) {
        if let Some(redis) = &mut self.redis {
            redis.handle_input(bytes, now);
        }
    }

    /// Notes that the stream to Redis is closed, or could not be opened.
    pub fn handle_close(&mut self, detail: &str, now: StoreTime) {
        if let Some(redis) = &mut self.redis {
            redis.handle_close(detail, now);
        }
    }

    /// Does what is due for Redis: deadlines, probes and polls.
    pub fn handle_timeout(&mut self, now: StoreTime, role: Role, data: &impl SharedData) {
        if let Some(redis) = &mut self.redis {
            redis.handle_timeout(now, role, data);
        }
    }

    /// Lets [`Limiter::poll_output`] return what has gathered for the stream to Redis. For the turn that sends it.
    pub fn flush(&mut self) {
        if let Some(redis) = &mut self.redis {
            redis.flush();
        }
    }

    /// The request that waited for a command has ended.
    pub fn cancel(&mut self, command: CommandId) {
        if let Some(redis) = &mut self.redis {
            redis.cancel(command);
        }
    }

    /// Leaves a recheck of its bucket to the next request: this one waited for a place in flight, and has ended.
    pub fn release(&mut self, screened: &ScreenedRequest, id: RequestId) {
        if let (Some(redis), Some(owner)) = (&mut self.redis, &screened.owner) {
            redis.release(owner, id);
        }
    }

    /// Carries out a change of health whose body is complete.
    pub fn change_health(
        &mut self,
        pending: &PendingChange,
        body: &[u8],
        data: &impl SharedData,
        start: DecisionStart,
    ) -> Decision {
        let change = HealthChange::parse(pending, body, self.config());
        let reply = match (change, &mut self.redis) {
            (Err(reply), _) => reply,
            (Ok(change), None) => self.apply(change, data),
            (Ok(change), Some(redis)) => match change.store(redis, start) {
                Ok(command) => return Decision::AwaitsRedis(command),
                Err(reply) => reply,
            },
        };
        reply.count(&mut self.metrics);
        Decision::Replied(reply)
    }

    /// Counts an answer to an admin request whose body did not come, or could not be waited for.
    pub fn count_reply(&mut self, reply: &EndpointReply) {
        reply.count(&mut self.metrics);
    }

    fn apply(&self, change: HealthChange, data: &impl SharedData) -> EndpointReply {
        change.apply(&self.in_force, data, self.wall_clock.at(data.now()))
    }

    /// Follows what was measured of the upstreams.
    pub fn follow_overload(&mut self, report: OverloadReport, data: &impl SharedData) {
        self.in_force.follow(data, self.redis.as_mut(), &mut self.metrics);
        let control = self.in_force.control();
        let namespace = &self.in_force.config().settings.namespace;
        measured_health::put_into_force(&report, control, namespace, data, &mut self.metrics);
        self.overload_report = Some(report);
    }

    /// Resets measured health when it is not measured any more.
    pub fn forget_measured_health(&self, data: &impl SharedData) {
        measured_health::forget(self.in_force.control(), self.in_force.control_key(), data);
    }

    /// Names the records that documents are published in; `None` without a `config_source`.
    pub fn records(&self) -> Option<&SourceRecords> {
        self.in_force.records()
    }

    /// Whether a document has neither been applied nor rejected yet.
    pub fn lacks_documents(&self) -> bool {
        self.in_force.lacks_documents()
    }

    /// Whether requests wait for documents now.
    pub fn holds_requests(&mut self, now: StoreTime, data: &impl SharedData) -> bool {
        self.in_force.follow(data, self.redis.as_mut(), &mut self.metrics);
        self.in_force.holds_requests(now, data)
    }

    /// Begins to put fetched documents into force for all workers: [`Limiter::publish`] goes on with it.
    pub fn begin_publication(&mut self, fetched: Fetched, data: &impl SharedData) {
        self.in_force.begin_publication(fetched, data);
    }

    /// Whether there is a publication to go on with.
    pub fn is_publishing(&self) -> bool {
        self.in_force.is_publishing()
    }

    /// Leaves a publication unfinished: nothing of it holds, and its documents are fetched again.
    pub fn drop_publication(&mut self, data: &impl SharedData) {
        self.in_force.drop_publication(data);
    }

    /// Does a slice of the work that a publication takes.
    pub fn publish(&mut self, data: &impl SharedData) {
        self.in_force.publish(data, self.redis.as_mut(), &mut self.metrics);
    }

    /// Says that the plugin configuration is in force.
    pub fn announce_configuration(&mut self) {
        log::info!("configuration applied: {}", self.in_force.summary());
        self.metrics.count(metrics::CONFIG_APPLIED, 1);
    }

    /// Takes out what was counted.
    pub fn drain_metrics(&mut self) -> Vec<StatUpdate> {
        if let Some(OverloadReport { signals, clusters, .. }) = &self.overload_report {
            self.metrics.signals(*signals, self.in_force.control().health_override);
            clusters.iter().for_each(|(name, record)| self.metrics.cluster(name, record));
        }
        self.metrics.drain()
    }
}
