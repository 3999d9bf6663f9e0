//! The one place where a request's fate branches.
//!
//! Reads what it needs of a request, once and as bytes, through [`Request`]; keeps buckets through
//! [`SharedData`] or [`RedisLimiter`]; knows nothing of Envoy. Everything here belongs to one worker: what workers share
//! is in shared data, what Envoys share is in Redis.

use std::rc::Rc;

use crate::admin::{self, AdminResult, EndpointDecision, EndpointReply, PendingChange};
use crate::bucket::{self, Verdict};
use crate::callers::Callers;
use crate::charge::{BucketOwner, Charge};
use crate::config::{Caller, Config, Documents, OnFailure, PluginConfig};
use crate::control::{Control, Redis};
use crate::documents::{
    Fetched, Finished, Outdated, Publication, PublicationOutcome, Published, SourceRecords,
};
use crate::headers::HeaderValues;
use crate::health::HealthOverride;
use crate::identity::{KeyHash, MAX_KEY_BYTES, Network};
use crate::measured_health;
use crate::metrics::{self, Metrics, Status};
use crate::overload::OverloadReport;
use crate::redis_limiter::{Answered, Charged, NotAsked, RedisLimiter};
use crate::request::{Request, RequestId, RequestStart};
use crate::store::redis::queue::CommandId;
use crate::store::{self, AddressTable, Contended, ReadOnly, SharedData, Taken, Updated};
use crate::tier::{Allowance, Limit, Tier};

/// What a caller whose tier is blocked is told to wait, in microseconds: nothing will change by itself.
const BLOCKED_WAIT_US: u64 = 60_000_000;

/// What a caller is told to wait when the store gave no answer, in microseconds.
const CONTENDED_WAIT_US: u64 = 1_000_000;

/// How long requests of a worker wait for its first documents, in microseconds, counted from the first that does.
pub const HOLD_US: u64 = 1_000_000;

/// How often a key is looked up again because documents have changed meanwhile. Each time is a whole publication between
/// two host calls of one request, so that even the second is not seen in practice.
const MAX_LOOKUPS: usize = 4;

/// What happens to a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes on, and its response is left alone.
    Exempt,
    /// It goes on, and its response gets the answer's headers.
    Admitted(HeaderValues),
    /// It is refused, with the answer's headers.
    Refused(HeaderValues),
    /// The filter answers it.
    Replied(EndpointReply),
    /// Its bucket could not be asked, and `on_failure` is `deny`: 503, with the answer's headers.
    Unavailable(HeaderValues),
    /// It is shed: 503, with the answer's headers; the caller is to wait so many seconds.
    Shed(HeaderValues, u64),
    /// The first documents have to be applied or refused first; then it is decided anew.
    AwaitsDocuments,
    /// The filter answers it once its body is there: pass it to [`Limiter::change_health`].
    AwaitsBody(PendingChange),
    /// Redis is asked first, by this command; [`Limiter::next_decision`] has the rest.
    AwaitsRedis(CommandId),
}

/// A request that limits apply to, as far as its headers decide about it.
#[derive(Debug)]
pub enum Screening {
    /// Nothing more has to be known.
    Decided(Decision),
    /// It has to be charged: pass it to [`Limiter::charge`].
    Limited(LimitedRequest),
}

/// Who a request is charged to.
#[derive(Clone, Debug)]
pub struct LimitedRequest {
    /// The caller's tier.
    pub tier: Rc<Tier>,
    /// Whose bucket pays; `None` where the tier has none and the overload control does not ask either.
    pub owner: Option<BucketOwner>,
}

/// The limiter of one worker.
#[derive(Debug)]
pub struct Limiter {
    plugin: PluginConfig,
    config: Rc<Config>,
    table: AddressTable,
    control_key: String,
    /// What all workers agreed on when it was last read.
    control: Control,
    /// How many changes were announced then; `None` where it has to be read again.
    changes: Option<u64>,
    /// Other Envoys' part in it all, where there is a Redis.
    redis: Option<RedisLimiter>,
    /// The documents that `config` was made with.
    documents: u32,
    /// Where documents are published, where they are fetched.
    records: Option<SourceRecords>,
    /// Whether a document has neither been applied nor refused yet.
    lacks_documents: bool,
    /// Until when requests wait for documents, once one does.
    holds_until_us: Option<u64>,
    /// Whether they do not any more.
    has_stopped_holding: bool,
    /// Fetched documents that this worker is publishing.
    publication: Option<Publication>,
    /// The known keys.
    callers: Callers,
    /// Turns the store's clock into Unix time.
    unix_offset_us: u64,
    /// What measured health was last.
    overload_report: Option<OverloadReport>,
    /// What was counted and not yet handed to Envoy.
    pub metrics: Metrics,
}

impl Limiter {
    /// A limiter with this plugin configuration and whatever documents are published already.
    pub fn new(plugin: PluginConfig, data: &impl SharedData, hash_key: (u64, u64)) -> Result<Self, String> {
        let config = Config::new(&plugin, &Documents::default())?;
        let settings = config.settings.clone();
        let table = AddressTable::open(data, &settings.namespace, settings.max_buckets, hash_key).map_err(
            |Contended| "the address table could not be opened: shared data is contended".to_owned(),
        )?;
        let redis = settings.redis.as_ref();
        let redis = redis.map(|redis| RedisLimiter::new(redis, &settings.namespace, hash_key.0 ^ hash_key.1));
        let source = settings.config_source.as_ref();
        let records = source.map(|source| SourceRecords::new(&settings.namespace, source));
        let mut limiter = Self {
            plugin,
            config: Rc::new(config),
            table,
            control_key: Control::key(&settings.namespace),
            control: Control::default(),
            changes: None,
            redis,
            documents: 0,
            lacks_documents: records.is_some(),
            records,
            holds_until_us: None,
            has_stopped_holding: false,
            publication: None,
            callers: Callers::default(),
            unix_offset_us: 0,
            overload_report: None,
            metrics: Metrics::default(),
        };
        limiter.metrics.define_tiers(&limiter.config.tiers);
        limiter.refresh(data);
        Ok(limiter)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Rc<Config> {
        &self.config
    }

    /// Notes what the wall clock says, in Unix microseconds: headers and timestamps follow it, buckets do not.
    pub fn set_wall_clock(&mut self, unix_us: u64, now_us: u64) {
        self.unix_offset_us = unix_us.wrapping_sub(now_us);
    }

    /// What to add to the store's clock for Unix time, in microseconds.
    pub fn unix_offset_us(&self) -> u64 {
        self.unix_offset_us
    }

    /// Decides about a request whose upstream is not protected from overload.
    pub fn decide(
        &mut self,
        request: &impl Request,
        data: &impl SharedData,
        start: RequestStart,
    ) -> Decision {
        let may_wait = true;
        self.screen_and_charge(request, data, start, may_wait)
    }

    /// The same although documents are missing.
    pub fn decide_without_documents(
        &mut self,
        request: &impl Request,
        data: &impl SharedData,
        start: RequestStart,
    ) -> Decision {
        let may_wait = false;
        self.screen_and_charge(request, data, start, may_wait)
    }

    fn screen_and_charge(
        &mut self,
        request: &impl Request,
        data: &impl SharedData,
        start: RequestStart,
        may_wait: bool,
    ) -> Decision {
        match self.screen(request, data, start.at_us, may_wait) {
            Screening::Decided(decision) => decision,
            Screening::Limited(limited) => self.charge(&limited, data, start),
        }
    }

    /// Decides what can be decided by a request's headers alone. `may_wait`: for documents that are missing.
    pub fn screen(
        &mut self,
        request: &impl Request,
        data: &impl SharedData,
        now_us: u64,
        may_wait: bool,
    ) -> Screening {
        let control = self.control(data);
        let config = self.config.clone();
        // CONNECT has no path, and then no endpoint or exemption to match.
        let target = request.header(":path").unwrap_or_default();
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();

        if let Some(decision) = self.endpoint(path, request, &config, control, data) {
            return Screening::Decided(decision);
        }
        if config.settings.exempt_paths.iter().any(|exempt| exempt.matches(path))
            || config.settings.exempt_preflight && is_preflight(request)
        {
            self.metrics.request(&config.default_tier, Status::Exempt, None);
            return Screening::Decided(Decision::Exempt);
        }
        if self.lacks_documents && may_wait && self.must_hold(now_us, data) {
            return Screening::Decided(Decision::AwaitsDocuments);
        }
        let key = request.header("x-api-key").filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()));
        let caller = key.and_then(|key| self.caller(KeyHash::of(&key), data));
        let tier = caller.as_ref().map_or(&config.default_tier, |caller| &caller.tier).clone();
        if let Err(blocked) = self.allowance(&tier, data) {
            return Screening::Decided(blocked);
        }
        let has_owner = !tier.unlimited || config.settings.health_thresholds.is_some();
        let owner = has_owner.then(|| match caller {
            Some(caller) => BucketOwner::Key(caller),
            None => BucketOwner::Address(config.network(&request.source_address().unwrap_or_default())),
        });
        Screening::Limited(LimitedRequest { tier, owner })
    }

    /// Takes a request's token, and decides by it.
    pub fn charge(
        &mut self,
        limited: &LimitedRequest,
        data: &impl SharedData,
        start: RequestStart,
    ) -> Decision {
        let LimitedRequest { tier, owner } = limited;
        let limit = match self.allowance(tier, data) {
            Err(blocked) => return blocked,
            Ok(limit) => limit,
        };
        let (tier, health) = (tier.clone(), self.control.health());
        let (Some(limit), Some(owner)) = (limit, owner.clone()) else {
            self.count(&tier, Status::Exempt, None);
            return Decision::Admitted(HeaderValues { tier, health, verdict: None, now_us: data.now_us() });
        };
        let charge = Charge { owner, tier, health, limit };
        let Some(redis) = &mut self.redis else {
            return self.charge_here(&charge, data);
        };
        match redis.charge(start, charge, &mut self.metrics) {
            Charged::Waits(command) => Decision::AwaitsRedis(command),
            Charged::Denied(charge, verdict) => self.decided(&charge, verdict, start.at_us),
            Charged::Declined(charge) => self.fall_back(&charge, data),
        }
    }

    /// Refuses a request whose bucket is known to be empty, and charges nothing.
    pub fn refuse_if_empty(
        &mut self,
        limited: &LimitedRequest,
        data: &impl SharedData,
        start: RequestStart,
    ) -> Option<Decision> {
        let LimitedRequest { tier, owner: Some(owner) } = limited else { return None };
        let health = self.control.health();
        let Allowance::Limited(limit) = tier.allowance(health) else { return None };
        let charge = Charge { owner: owner.clone(), tier: tier.clone(), health, limit };
        let (verdict, now_us) = match &mut self.redis {
            Some(redis) => (redis.known_refusal(&charge, start.at_us)?, start.at_us),
            None => {
                let taken = self.take(&charge, &ReadOnly(data)).ok()?.value;
                (taken.verdict, taken.now_us)
            }
        };
        (verdict.outcome == bucket::Outcome::Refused).then(|| self.decided(&charge, verdict, now_us))
    }

    /// Sheds a request: it is charged nothing.
    pub fn shed(
        &mut self,
        limited: &LimitedRequest,
        cluster: &[u8],
        retry_after_seconds: u64,
        now_us: u64,
    ) -> Decision {
        let tier = limited.tier.clone();
        self.count(&tier, Status::Shed, None);
        self.metrics.shed(cluster);
        let answer = HeaderValues { tier, health: self.control.health(), verdict: None, now_us };
        Decision::Shed(answer, retry_after_seconds)
    }

    /// Whether requests wait for documents now: from the first one on, for as long as a document is missing, but for
    /// [`HOLD_US`] at most.
    pub fn must_hold(&mut self, now_us: u64, data: &impl SharedData) -> bool {
        self.control(data);
        if !self.lacks_documents {
            return false;
        }
        let until_us = *self.holds_until_us.get_or_insert(now_us.saturating_add(HOLD_US));
        let is_over = now_us >= until_us;
        if is_over && !self.has_stopped_holding {
            self.has_stopped_holding = true;
            if self.records.as_ref().is_some_and(|records| records.first_to_miss(data)) {
                log::warn!("documents are missing: the plugin configuration decides until they are there");
            }
        }
        !is_over
    }

    /// Carries out a change of health whose body has come.
    pub fn change_health(
        &mut self,
        pending: &PendingChange,
        body: &[u8],
        data: &impl SharedData,
        start: RequestStart,
    ) -> Decision {
        let network = pending.network;
        let reply =
            match (admin::requested_health(body, self.config.settings.health_thresholds), &mut self.redis) {
                (Err(reply), _) => reply,
                (Ok(health_override), None) => self.change_own_health(network, health_override, data),
                (Ok(health_override), Some(redis)) => match redis.set_health(start, network, health_override)
                {
                    Ok(command) => return Decision::AwaitsRedis(command),
                    Err(NotAsked) => admin::not_stored(),
                },
            };
        self.count_admin(&reply);
        Decision::Replied(reply)
    }

    /// What became of the next request that waited for Redis.
    pub fn next_decision(&mut self, now_us: u64, data: &impl SharedData) -> Option<(RequestId, Decision)> {
        let (id, answered) = self.redis.as_mut()?.next_answer(now_us, data, &mut self.metrics)?;
        let decision = match answered {
            // Redis' clock fills the bucket; what the caller is told follows this Envoy's.
            Answered::Charge(charge, Some(verdict)) => self.decided(&charge, verdict, now_us),
            Answered::Charge(charge, None) => self.fall_back(&charge, data),
            Answered::Health(network, health_override, is_stored) => {
                let reply = match is_stored {
                    true => self.change_own_health(network, health_override, data),
                    false => admin::not_stored(),
                };
                self.count_admin(&reply);
                Decision::Replied(reply)
            }
        };
        Some((id, decision))
    }

    /// This worker's part in what Envoys share through Redis, where there is one.
    pub fn redis(&mut self) -> Option<&mut RedisLimiter> {
        self.redis.as_mut()
    }

    /// Follows what was measured of the upstreams.
    pub fn follow_overload(&mut self, report: OverloadReport, data: &impl SharedData) {
        let control = self.control(data);
        measured_health::put_into_force(&report, control, &self.control_key, data, &mut self.metrics);
        self.metrics.signals(report.signals, control.health_override);
        report.clusters.iter().for_each(|cluster| self.metrics.cluster(cluster));
        self.overload_report = Some(report);
    }

    /// Where health is not measured any more, what was measured ends.
    pub fn forget_measured_health(&self, data: &impl SharedData) {
        measured_health::forget(self.control, &self.control_key, data);
    }

    /// Where documents are published, where they are fetched.
    pub fn records(&self) -> Option<&SourceRecords> {
        self.records.as_ref()
    }

    /// Whether a document has neither been applied nor refused yet.
    pub fn lacks_documents(&self) -> bool {
        self.lacks_documents
    }

    /// Begins to put fetched documents into force for all workers: [`Limiter::publish`] goes on with it.
    pub fn begin_publication(&mut self, fetched: Fetched, data: &impl SharedData) {
        if let Some(records) = self.records.clone() {
            self.publication = Some(Publication::new(fetched, &self.plugin, records, data));
        }
    }

    /// Whether there is a publication to go on with.
    pub fn is_publishing(&self) -> bool {
        self.publication.is_some()
    }

    /// Leaves a publication unfinished: nothing of it holds.
    pub fn drop_publication(&mut self) {
        self.publication = None;
    }

    /// Does a slice of the work that a publication takes, and says at its end what is wrong with documents that it leaves
    /// out.
    pub fn publish(&mut self, data: &impl SharedData) {
        let Some(outcome) =
            self.publication.as_mut().and_then(|publication| publication.work(&self.plugin, data))
        else {
            return;
        };
        self.publication = None;
        let PublicationOutcome::Finished(Finished { is_applied, is_changed, complaint }) = outcome else {
            return;
        };
        if is_changed {
            let next =
                |control: Control| Control { documents: control.documents.wrapping_add(1).max(1), ..control };
            // Where this loses every race, the next change that is announced tells of it.
            let _ = Control::change(data, &self.control_key, next);
            self.refresh(data);
        }
        if is_applied {
            log::info!("documents applied: {}", self.summary());
            self.metrics.count(metrics::CONFIG_APPLIED, 1);
        }
        if let Some(complaint) = complaint {
            log::warn!("documents rejected, the last good ones stay: {complaint}");
            self.metrics.count(metrics::CONFIG_REJECTED, 1);
        }
    }

    /// How many tiers and keys are in force.
    pub fn summary(&self) -> String {
        let config = &self.config;
        format!(
            "{} tiers, {} keys, default tier {}",
            config.tiers.len(),
            config.keys(),
            config.default_tier.name
        )
    }

    /// Looks at what all workers agreed on, announced or not.
    pub fn refresh(&mut self, data: &impl SharedData) {
        let changes = data.changes();
        self.read_control(data, changes);
    }

    /// What all workers agreed on; takes over documents that this worker has not seen yet.
    fn control(&mut self, data: &impl SharedData) -> Control {
        // Counted before the record is read: a change in between is announced later, and read again.
        let changes = data.changes();
        if changes.is_none() || changes != self.changes {
            self.read_control(data, changes);
        }
        self.control
    }

    fn read_control(&mut self, data: &impl SharedData, changes: Option<u64>) {
        let control = Control::read(data, &self.control_key);
        let previous = std::mem::replace(&mut self.control, control);
        self.changes = changes;
        if control.documents != self.documents {
            self.documents = control.documents;
            self.adopt_documents(data);
        }
        self.metrics.health(control.health());
        if let Some(redis) = &mut self.redis {
            self.metrics.redis_connected(control.redis == Redis::Connected);
            let limits = |control: Control| (control.health_changes, control.health(), control.documents);
            if limits(previous) != limits(control) {
                redis.forget_denied();
            }
        }
    }

    fn adopt_documents(&mut self, data: &impl SharedData) {
        let Some(records) = &self.records else { return };
        let published = Published::read(data, records);
        self.lacks_documents = published.is_missing(records);
        if published.tiers.is_none() && published.keys.is_none() {
            return;
        }
        match Config::new(&self.plugin, &published.documents()) {
            Ok(config) => {
                self.metrics.define_tiers(&config.tiers);
                self.config = Rc::new(config);
                self.callers = Callers::new(published.keys.map(|keys| (keys.table, records.prefix.clone())));
            }
            // They fitted the plugin configuration they were fetched with, and do not fit this newer one.
            Err(error) => {
                log::warn!("published documents do not fit this configuration and are left out: {error}")
            }
        }
    }

    /// The caller whose key this is.
    fn caller(&mut self, key: KeyHash, data: &impl SharedData) -> Option<Rc<Caller>> {
        for _ in 0..MAX_LOOKUPS {
            match self.callers.find(key, &self.config, data) {
                Ok(caller) => return caller,
                // A later document is being written where this one was: so another has come into force meanwhile.
                Err(Outdated) => self.refresh(data),
            }
        }
        None
    }

    fn endpoint(
        &mut self,
        path: &[u8],
        request: &impl Request,
        config: &Config,
        control: Control,
        data: &impl SharedData,
    ) -> Option<Decision> {
        let paths = &config.settings.admin;
        let is =
            |endpoint: &Option<String>| endpoint.as_ref().is_some_and(|endpoint| path == endpoint.as_bytes());
        let answered = if is(&paths.health_path) {
            EndpointDecision::Reply(admin::health(&method(request), config, control, self.lacks_documents))
        } else if is(&paths.system_health_path) {
            let unix_us = self.unix_us(data.now_us());
            let shown = admin::ShownHealth { control, unix_us, overload: self.overload_report.as_ref() };
            admin::system_health(&method(request), request, config, &self.table, shown, data)
        } else {
            return None;
        };
        Some(match answered {
            EndpointDecision::Reply(reply) => {
                self.count_admin(&reply);
                Decision::Replied(reply)
            }
            EndpointDecision::AwaitBody(pending) => Decision::AwaitsBody(pending),
        })
    }

    /// The limit that holds for a tier now, if it has one; a refusal where it admits nothing.
    fn allowance(&mut self, tier: &Rc<Tier>, data: &impl SharedData) -> Result<Option<Limit>, Decision> {
        let health = self.control.health();
        match tier.allowance(health) {
            Allowance::Unlimited => Ok(None),
            Allowance::Limited(limit) => Ok(Some(limit)),
            Allowance::Blocked => {
                self.count(tier, Status::Blocked, Some(0));
                let verdict = Some(refusal(0, BLOCKED_WAIT_US));
                Err(Decision::Refused(HeaderValues {
                    tier: tier.clone(),
                    health,
                    verdict,
                    now_us: data.now_us(),
                }))
            }
        }
    }

    /// Takes the token from this Envoy's own bucket.
    fn charge_here(&mut self, charge: &Charge, data: &impl SharedData) -> Decision {
        let taken = self.take(charge, data);
        let Taken { verdict, now_us, .. } = self.counted(taken, charge.limit, data);
        self.decided(charge, verdict, now_us)
    }

    fn take(&self, charge: &Charge, data: &impl SharedData) -> Result<Updated<Taken>, Contended> {
        match &charge.owner {
            BucketOwner::Key(caller) => store::take_keyed(data, &caller.shared_data_key, charge.limit),
            BucketOwner::Address(network) => self.table.take(data, *network, charge.limit, charge.ttl_us()),
        }
    }

    /// Decides without Redis, as `on_failure` says.
    fn fall_back(&mut self, charge: &Charge, data: &impl SharedData) -> Decision {
        let policy = self.redis.as_ref().map_or(OnFailure::Local, RedisLimiter::on_failure);
        let Charge { tier, health, .. } = charge;
        let answer = |now_us| HeaderValues { tier: tier.clone(), health: *health, verdict: None, now_us };
        match policy {
            OnFailure::Local => {
                self.metrics.count(metrics::FALLBACK_LOCAL, 1);
                self.charge_here(charge, data)
            }
            OnFailure::Allow => {
                self.metrics.count(metrics::FALLBACK_ALLOW, 1);
                self.count(tier, Status::Allowed, None);
                Decision::Admitted(answer(data.now_us()))
            }
            OnFailure::Deny => {
                self.metrics.count(metrics::FALLBACK_DENY, 1);
                self.count(tier, Status::Blocked, None);
                Decision::Unavailable(answer(data.now_us()))
            }
        }
    }

    /// The answer that follows from a verdict, which was spoken at `now_us`.
    fn decided(&mut self, charge: &Charge, verdict: Verdict, now_us: u64) -> Decision {
        let Charge { owner, tier, health, .. } = charge;
        if log::log_enabled!(log::Level::Debug) {
            let (bucket, outcome, left) = (owner.bucket(), verdict.outcome, verdict.remaining);
            log::debug!("{bucket} (tier {}, {health}): {outcome:?}, {left} tokens left", tier.name);
        }
        let answer = HeaderValues { tier: tier.clone(), health: *health, verdict: Some(verdict), now_us };
        let remaining = Some(verdict.remaining);
        match verdict.outcome {
            bucket::Outcome::Admitted => {
                self.count(tier, Status::Allowed, remaining);
                Decision::Admitted(answer)
            }
            bucket::Outcome::Refused => {
                self.count(tier, Status::Limited, remaining);
                Decision::Refused(answer)
            }
        }
    }

    fn count(&mut self, tier: &Rc<Tier>, status: Status, tokens_remaining: Option<u32>) {
        self.metrics.request(tier, status, tokens_remaining);
    }

    /// What the store answered; where it gave no answer, a refusal, because nothing may be given out unpaid.
    fn counted(
        &mut self,
        taken: Result<Updated<Taken>, Contended>,
        limit: Limit,
        data: &impl SharedData,
    ) -> Taken {
        match taken {
            Ok(updated) => {
                self.metrics.count(metrics::CAS_RETRIES, updated.retries.into());
                self.metrics.count(metrics::BUCKET_EVICTIONS, updated.value.evicted.into());
                updated.value
            }
            Err(Contended) => {
                self.metrics.count(metrics::STORE_CONTENDED, 1);
                Taken {
                    verdict: refusal(limit.capacity(), CONTENDED_WAIT_US),
                    now_us: data.now_us(),
                    evicted: false,
                }
            }
        }
    }

    fn change_own_health(
        &self,
        network: Network,
        health_override: HealthOverride,
        data: &impl SharedData,
    ) -> EndpointReply {
        admin::change_health(network, health_override, &self.config, data, self.unix_us(data.now_us()))
    }

    fn count_admin(&mut self, reply: &EndpointReply) {
        let counter = match reply.result {
            None => return,
            Some(AdminResult::Ok) => metrics::ADMIN_OK,
            Some(AdminResult::Forbidden) => metrics::ADMIN_FORBIDDEN,
            Some(AdminResult::Invalid) => metrics::ADMIN_INVALID,
            Some(AdminResult::TooLarge) => metrics::ADMIN_TOO_LARGE,
            Some(AdminResult::Throttled) => metrics::ADMIN_THROTTLED,
            Some(AdminResult::Failed) => metrics::ADMIN_FAILED,
        };
        self.metrics.count(counter, 1);
    }

    fn unix_us(&self, now_us: u64) -> u64 {
        now_us.wrapping_add(self.unix_offset_us)
    }
}

fn refusal(capacity: u32, wait_us: u64) -> Verdict {
    Verdict { outcome: bucket::Outcome::Refused, capacity, remaining: 0, wait_us }
}

fn method(request: &impl Request) -> Vec<u8> {
    request.header(":method").unwrap_or_default()
}

fn is_preflight(request: &impl Request) -> bool {
    method(request) == b"OPTIONS"
        && request.header("origin").is_some()
        && request.header("access-control-request-method").is_some()
}
