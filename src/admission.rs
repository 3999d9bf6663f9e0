//! Decides about a request, and does nothing else.
//!
//! The checks, in this order: Is it for an endpoint? Is it exempt? Are the documents there? Which caller has the key?
//! Which limit holds? With overload control, the worker then takes a place in flight for it. The last check is whether
//! its bucket has a token.

use std::rc::Rc;
use std::time::Duration;

use crate::admin::{self, EndpointDecision, EndpointReply, PendingChange, ShownHealth};
use crate::bucket::{Outcome, Verdict};
use crate::charge::{BucketOwner, Charge};
use crate::config::{KnownCaller, OnFailure, Settings};
use crate::documents::Outdated;
use crate::headers::HeaderValues;
use crate::identity::{KeyHash, MAX_KEY_BYTES};
use crate::in_force::InForce;
use crate::limit::Limit;
use crate::metrics::{self, Metrics, Status};
use crate::overload::OverloadReport;
use crate::redis_limiter::{ChargeAttempt, RedisLimiter};
use crate::request::{DecisionStart, Request};
use crate::store::redis::command::CommandId;
use crate::store::{self, AddressTable, Contended, ReadOnly, SharedData, Taken, Updated};
use crate::tier::{Allowance, Tier};
use crate::time::{StoreTime, WallClock, whole_micros};

/// When a caller whose tier is blocked may try again: health may change.
const BLOCKED_WAIT: Duration = Duration::from_secs(60);

/// `Retry-After` where shared data was contended.
const CONTENDED_WAIT: Duration = Duration::from_secs(1);

/// Most lookups of a key. A second one needs a whole publication between two host calls of one request, which does not
/// happen in practice.
const MAX_LOOKUPS: usize = 4;

/// What happens to a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes on, and its response is left alone.
    Exempt,
    /// It goes on, and its response gets these headers.
    Admitted(HeaderValues),
    /// It is rejected with 429 and these headers.
    Rejected(HeaderValues),
    /// The filter answers it.
    Replied(EndpointReply),
    /// Redis did not decide, and `on_failure` is `deny`: 503, with these headers.
    Unavailable(HeaderValues),
    /// It is shed: 503, with these headers; the caller is to wait so many seconds.
    Shed(HeaderValues, u64),
    /// The first documents have to be applied or rejected first; then it is decided anew.
    AwaitsDocuments,
    /// The filter answers it once its body is there: pass it to `Limiter::change_health`.
    AwaitsBody(PendingChange),
    /// Redis decides, by the reply to this command; `Limiter::poll_output` has the rest.
    AwaitsRedis(CommandId),
}

/// What a request's headers decide about it.
#[derive(Debug)]
pub enum Screening {
    /// Nothing more has to be known.
    Decided(Decision),
    /// It has to be charged: pass it to [`Decider::charge`].
    Undecided(ScreenedRequest),
}

/// A request that is no endpoint's and not exempt: its tier, and the bucket that is charged.
#[derive(Clone, Debug)]
pub struct ScreenedRequest {
    /// The caller's tier.
    pub tier: Rc<Tier>,
    /// Whose bucket is charged; `None` where the tier has no bucket and overload control is off.
    pub owner: Option<BucketOwner>,
    /// The version of the limits that the tier belongs to, where Redis keeps the buckets.
    pub limits_version: u32,
}

/// Decides about the requests of one worker, with the parts of its limiter.
#[derive(Debug)]
pub struct Decider<'a, D> {
    pub(crate) in_force: &'a mut InForce,
    pub(crate) table: &'a AddressTable,
    pub(crate) redis: Option<&'a mut RedisLimiter>,
    pub(crate) overload_report: Option<&'a OverloadReport>,
    pub(crate) wall_clock: WallClock,
    pub(crate) metrics: &'a mut Metrics,
    pub(crate) data: &'a D,
}

impl<D: SharedData> Decider<'_, D> {
    /// Decides what can be decided by a request's headers alone. `may_wait`: for missing documents.
    pub fn screen(&mut self, request: &impl Request, now: StoreTime, may_wait: bool) -> Screening {
        self.in_force.follow(self.data, self.redis.as_deref_mut(), self.metrics);
        let config = self.in_force.config().clone();
        let limits_version = self.redis.as_ref().map_or(0, |redis| redis.limits_version());
        // CONNECT has no path, and then no endpoint or exemption to match.
        let target = request.header(":path").unwrap_or_default();
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();

        if let Some(decision) = self.endpoint(path, request, now) {
            return Screening::Decided(decision);
        }
        if is_exempt(path, request, &config.settings) {
            self.metrics.request(&config.default_tier, Status::Exempt, None);
            return Screening::Decided(Decision::Exempt);
        }
        if may_wait && self.in_force.holds_requests(now, self.data) {
            return Screening::Decided(Decision::AwaitsDocuments);
        }
        let caller = self.caller(request);
        let tier = caller.as_ref().map_or(&config.default_tier, |caller| &caller.tier).clone();
        if let Err(blocked) = self.limit(&tier, now) {
            return Screening::Decided(blocked);
        }
        let has_owner = !tier.unlimited || config.settings.health_thresholds.is_some();
        let owner = has_owner.then(|| match caller {
            Some(caller) => BucketOwner::Key(caller),
            None => BucketOwner::Address(config.network(&request.source_address().unwrap_or_default())),
        });
        Screening::Undecided(ScreenedRequest { tier, owner, limits_version })
    }

    /// Takes a request's token, and decides by it.
    pub fn charge(&mut self, screened: &ScreenedRequest, start: DecisionStart) -> Decision {
        let ScreenedRequest { tier, owner, limits_version } = screened;
        let limit = match self.limit(tier, start.at) {
            Err(blocked) => return blocked,
            Ok(limit) => limit,
        };
        let (Some(limit), Some(owner)) = (limit, owner.clone()) else {
            self.metrics.request(tier, Status::Exempt, None);
            return Decision::Admitted(self.header_values(tier, None, start.at));
        };
        let charge = Charge { owner, tier: tier.clone(), health: self.in_force.health(), limit };
        let Some(redis) = &mut self.redis else {
            return self.charge_here(&charge);
        };
        match redis.charge(start, charge, *limits_version, self.metrics) {
            ChargeAttempt::Sent(command) => Decision::AwaitsRedis(command),
            ChargeAttempt::KnownEmpty(charge, verdict) => self.decide_by_verdict(&charge, verdict, start.at),
            ChargeAttempt::Declined(charge) => self.fall_back(&charge, start.at),
        }
    }

    /// Decides about a charge by what Redis said; `None`: it failed.
    pub(crate) fn decide_by_reply(
        &mut self,
        charge: &Charge,
        verdict: Option<Verdict>,
        now: StoreTime,
    ) -> Decision {
        match verdict {
            // Redis' clock fills the bucket; the headers follow this Envoy's.
            Some(verdict) => self.decide_by_verdict(charge, verdict, now),
            None => self.fall_back(charge, now),
        }
    }

    /// Rejects a request whose bucket is known to be empty, and charges nothing.
    pub fn reject_if_empty(&mut self, screened: &ScreenedRequest, start: DecisionStart) -> Option<Decision> {
        let ScreenedRequest { tier, owner: Some(owner), .. } = screened else { return None };
        let health = self.in_force.health();
        let Allowance::Limited(limit) = tier.allowance(health) else { return None };
        let charge = Charge { owner: owner.clone(), tier: tier.clone(), health, limit };
        let (verdict, at) = match &mut self.redis {
            Some(redis) => (redis.known_rejection(start, &charge)?, start.at),
            None => {
                let taken = self.take(&charge, &ReadOnly(self.data)).ok()?.value;
                (taken.verdict, taken.at)
            }
        };
        (verdict.outcome == Outcome::Rejected).then(|| self.decide_by_verdict(&charge, verdict, at))
    }

    /// Sheds a request: it is charged nothing.
    pub fn shed(
        &mut self,
        screened: &ScreenedRequest,
        cluster: &[u8],
        retry_after_seconds: u64,
        now: StoreTime,
    ) -> Decision {
        self.metrics.request(&screened.tier, Status::Shed, None);
        self.metrics.shed(cluster);
        Decision::Shed(self.header_values(&screened.tier, None, now), retry_after_seconds)
    }

    /// Is it for an endpoint?
    fn endpoint(&mut self, path: &[u8], request: &impl Request, now: StoreTime) -> Option<Decision> {
        let (config, control) = (self.in_force.config(), self.in_force.control());
        let paths = &config.settings.admin;
        let is =
            |endpoint: &Option<String>| endpoint.as_ref().is_some_and(|endpoint| path == endpoint.as_bytes());
        let decision = if is(&paths.health_path) {
            let lacks_documents = self.in_force.lacks_documents();
            EndpointDecision::Reply(admin::health(&method(request), config, control, lacks_documents))
        } else if is(&paths.system_health_path) {
            let unix = self.wall_clock.at(now);
            let shown = ShownHealth { control, unix, overload: self.overload_report };
            admin::system_health(&method(request), request, config, self.table, shown, self.data)
        } else {
            return None;
        };
        Some(match decision {
            EndpointDecision::Reply(reply) => {
                reply.count(self.metrics);
                Decision::Replied(reply)
            }
            EndpointDecision::AwaitBody(pending) => Decision::AwaitsBody(pending),
        })
    }

    /// The caller with that key.
    fn caller(&mut self, request: &impl Request) -> Option<Rc<KnownCaller>> {
        let key = request.header("x-api-key").filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()))?;
        std::str::from_utf8(&key).ok()?;
        let key = KeyHash::of(&key);
        for _ in 0..MAX_LOOKUPS {
            match self.in_force.caller(key, self.data) {
                Ok(caller) => return caller,
                // A later document is written to this table, so another one has come into force.
                Err(Outdated) => {
                    self.in_force.refresh(self.data, self.redis.as_deref_mut(), self.metrics);
                }
            }
        }
        None
    }

    /// Which limit holds for a tier now? `None` where it has none; a rejection where it admits nothing.
    fn limit(&mut self, tier: &Rc<Tier>, now: StoreTime) -> Result<Option<Limit>, Decision> {
        match tier.allowance(self.in_force.health()) {
            Allowance::Unlimited => Ok(None),
            Allowance::Limited(limit) => Ok(Some(limit)),
            Allowance::Blocked => {
                self.metrics.request(tier, Status::Blocked, Some(0));
                Err(Decision::Rejected(self.header_values(tier, Some(rejection(0, BLOCKED_WAIT)), now)))
            }
        }
    }

    /// Takes the token from this Envoy's own bucket.
    fn charge_here(&mut self, charge: &Charge) -> Decision {
        let taken = match self.take(charge, self.data) {
            Ok(Updated { value, retries }) => {
                self.metrics.count(metrics::CAS_RETRIES, retries.into());
                self.metrics.count(metrics::BUCKET_EVICTIONS, value.evicted.into());
                value
            }
            // No request is admitted without a token.
            Err(Contended) => {
                self.metrics.count(metrics::STORE_CONTENDED, 1);
                let verdict = rejection(charge.limit.capacity(), CONTENDED_WAIT);
                Taken { verdict, at: self.data.now(), evicted: false }
            }
        };
        self.decide_by_verdict(charge, taken.verdict, taken.at)
    }

    fn take(&self, charge: &Charge, data: &impl SharedData) -> Result<Updated<Taken>, Contended> {
        match &charge.owner {
            BucketOwner::Key(caller) => store::take_keyed(data, &caller.shared_data_key, charge.limit),
            BucketOwner::Address(network) => self.table.take(data, *network, charge.limit, charge.ttl()),
        }
    }

    /// Decides without Redis, as `on_failure` says.
    fn fall_back(&mut self, charge: &Charge, at: StoreTime) -> Decision {
        let policy = self.redis.as_ref().map_or(OnFailure::Local, |redis| redis.on_failure());
        let Charge { tier, health, .. } = charge;
        let header_values = HeaderValues { tier: tier.clone(), health: *health, verdict: None, at };
        match policy {
            OnFailure::Local => {
                self.metrics.count(metrics::FALLBACK_LOCAL, 1);
                self.charge_here(charge)
            }
            OnFailure::Allow => {
                self.metrics.count(metrics::FALLBACK_ALLOW, 1);
                self.metrics.request(tier, Status::Allowed, None);
                Decision::Admitted(header_values)
            }
            OnFailure::Deny => {
                self.metrics.count(metrics::FALLBACK_DENY, 1);
                self.metrics.request(tier, Status::Blocked, None);
                Decision::Unavailable(header_values)
            }
        }
    }

    /// The decision that follows from a verdict given at `at`.
    fn decide_by_verdict(&mut self, charge: &Charge, verdict: Verdict, at: StoreTime) -> Decision {
        let Charge { owner, tier, health, .. } = charge;
        if log::log_enabled!(log::Level::Debug) {
            let (bucket, outcome, left) = (owner.bucket(), verdict.outcome, verdict.remaining);
            log::debug!("{bucket} (tier {}, {health}): {outcome:?}, {left} tokens left", tier.name);
        }
        let header_values = HeaderValues { tier: tier.clone(), health: *health, verdict: Some(verdict), at };
        let (status, decision) = match verdict.outcome {
            Outcome::Admitted => (Status::Allowed, Decision::Admitted(header_values)),
            Outcome::Rejected => (Status::Limited, Decision::Rejected(header_values)),
        };
        self.metrics.request(tier, status, Some(verdict.remaining));
        decision
    }

    fn header_values(&self, tier: &Rc<Tier>, verdict: Option<Verdict>, at: StoreTime) -> HeaderValues {
        HeaderValues { tier: tier.clone(), health: self.in_force.health(), verdict, at }
    }
}

fn rejection(capacity: u32, wait: Duration) -> Verdict {
    Verdict { outcome: Outcome::Rejected, capacity, remaining: 0, wait_us: whole_micros(wait) }
}

fn method(request: &impl Request) -> Vec<u8> {
    request.header(":method").unwrap_or_default()
}

fn is_exempt(path: &[u8], request: &impl Request, settings: &Settings) -> bool {
    settings.exempt_paths.iter().any(|exempt| exempt.matches(path))
        || settings.exempt_preflight && is_preflight(request)
}

fn is_preflight(request: &impl Request) -> bool {
    method(request) == b"OPTIONS"
        && request.header("origin").is_some()
        && request.header("access-control-request-method").is_some()
}
