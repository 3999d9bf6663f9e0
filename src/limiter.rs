//! The one place where a request's fate branches.
//!
//! Reads what it needs of a request, once and as bytes, through [`Request`]; keeps buckets through
//! [`SharedData`]; knows nothing of Envoy. Everything here belongs to one worker: what workers share is in
//! shared data alone.

use std::rc::Rc;

use crate::admin::{self, Answered, PendingChange, Reply};
use crate::bucket::{Outcome, Verdict};
use crate::config::{Config, ConfigSource, Documents, Plugin};
use crate::control::Control;
use crate::documents::{self, Failure, Fetched, Texts};
use crate::health::Health;
use crate::identity::{MAX_KEY_BYTES, Network, Secret};
use crate::metrics::{self, Metrics, Status};
use crate::reply::Answer;
use crate::request::Request;
use crate::store::{self, AddressTable, Contended, SharedData, Taken, Updated};
use crate::tier::{Allowance, Limit, Tier};

/// What a caller whose tier is blocked is told to wait, in microseconds: nothing will change by itself.
const BLOCKED_WAIT_US: u64 = 60_000_000;

/// What a caller is told to wait when the store gave no answer, in microseconds.
const CONTENDED_WAIT_US: u64 = 1_000_000;

/// What happens to a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes on, and its response is left alone.
    Exempt,
    /// It goes on, and its response gets the answer's headers.
    Admitted(Answer),
    /// It is refused, with the answer's headers.
    Refused(Answer),
    /// The filter answers it.
    Replied(Reply),
    /// The filter answers it once its body is there: pass it to [`Limiter::change_health`].
    AwaitsBody(PendingChange),
}

/// The limiter of one worker.
#[derive(Debug)]
pub struct Limiter {
    plugin: Plugin,
    config: Rc<Config>,
    table: AddressTable,
    control_key: String,
    /// What all workers agreed on when that many changes were announced.
    control: Option<(u64, Control)>,
    /// The documents that `config` was made with.
    documents: u32,
    /// Turns the store's clock into Unix time.
    unix_offset_us: u64,
    /// What was counted and not yet handed to Envoy.
    pub metrics: Metrics,
}

impl Limiter {
    /// A limiter with this plugin configuration and whatever documents are published already.
    pub fn new(plugin: Plugin, data: &impl SharedData, hash_key: (u64, u64)) -> Result<Self, String> {
        let config = Config::new(&plugin, &Documents::default())?;
        let settings = config.settings.clone();
        let table = AddressTable::open(data, &settings.namespace, settings.max_buckets, hash_key).map_err(
            |Contended| "the address table could not be opened: shared data is contended".to_owned(),
        )?;
        let mut limiter = Self {
            plugin,
            config: Rc::new(config),
            table,
            control_key: Control::key(&settings.namespace),
            control: None,
            documents: 0,
            unix_offset_us: 0,
            metrics: Metrics::default(),
        };
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

    /// Decides about a request.
    pub fn decide(&mut self, request: &impl Request, data: &impl SharedData) -> Decision {
        let control = self.control(data);
        let config = self.config.clone();
        // CONNECT has no path, and then no endpoint or exemption to match.
        let target = request.header(":path").unwrap_or_default();
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();

        if let Some(decision) = self.endpoint(path, request, &config, control, data) {
            return decision;
        }
        if config.settings.exempt_paths.iter().any(|exempt| exempt.matches(path))
            || config.settings.exempt_preflight && is_preflight(request)
        {
            self.metrics.request(&config.default_tier, Status::Exempt, None);
            return Decision::Exempt;
        }
        self.limit(request, &config, control.health, data)
    }

    /// Carries out a change of health whose body has come.
    pub fn change_health(&mut self, pending: &PendingChange, body: &[u8], data: &impl SharedData) -> Reply {
        let unix_us = self.unix_us(data.now_us());
        let reply = if body.len() > admin::MAX_BODY_BYTES {
            admin::body_too_large()
        } else {
            admin::change_health(pending, body, &self.control_key, data, unix_us)
        };
        self.count_admin(&reply);
        reply
    }

    /// Puts documents fetched from `source` into force for all workers, and says what is wrong with those that it
    /// leaves out.
    pub fn publish(&mut self, source: &ConfigSource, fetched: Fetched, data: &impl SharedData) {
        let settings = self.config.settings.clone();
        let namespace = &settings.namespace;
        let last = Texts::published(data, namespace, source).unwrap_or_default();
        let (texts, mut failure) = fetched.good_ones(last);
        match self.check_and_publish(texts, namespace, source, data) {
            Ok(true) => {
                self.refresh(data);
                log::info!("documents applied: {}", self.summary());
                self.metrics.count(metrics::CONFIG_APPLIED, 1);
            }
            Ok(false) => {}
            Err(misfit) => failure = failure.or(Some(misfit)),
        }
        let Some(failure) = failure else {
            return documents::note_success(data, namespace, source);
        };
        if documents::note_failure(data, namespace, source, &failure) {
            log::warn!("documents rejected, the last good ones stay: {}", failure.reason);
            self.metrics.count(metrics::CONFIG_REJECTED, 1);
        }
    }

    /// How many tiers and keys are in force.
    pub fn summary(&self) -> String {
        let config = &self.config;
        format!(
            "{} tiers, {} keys, default tier {}",
            config.tiers.len(),
            config.callers(),
            config.default_tier.name
        )
    }

    /// Looks at what all workers agreed on, announced or not.
    pub fn refresh(&mut self, data: &impl SharedData) {
        self.control = None;
        self.control(data);
    }

    /// What all workers agreed on; takes over documents that this worker has not seen yet.
    fn control(&mut self, data: &impl SharedData) -> Control {
        // Counted before the record is read: a change in between is announced later, and read again.
        let changes = data.changes();
        if let (Some(changes), Some((seen, control))) = (changes, self.control)
            && changes == seen
        {
            return control;
        }
        let control = Control::read(data, &self.control_key);
        self.control = changes.map(|changes| (changes, control));
        if control.documents != self.documents {
            self.documents = control.documents;
            self.adopt_documents(data);
        }
        self.metrics.health(control.health);
        control
    }

    fn adopt_documents(&mut self, data: &impl SharedData) {
        let settings = &self.config.settings;
        let source = settings.config_source.as_ref();
        let published = source.and_then(|source| Texts::published(data, &settings.namespace, source));
        let Some(texts) = published else { return };
        match texts.parse().and_then(|documents| Config::new(&self.plugin, &documents)) {
            Ok(config) => self.config = Rc::new(config),
            // They fitted the plugin configuration they were fetched with, and do not fit this newer one.
            Err(error) => {
                log::warn!("published documents do not fit this configuration and are left out: {error}")
            }
        }
    }

    /// Publishes texts that fit each other and the plugin configuration; false where they are published already.
    fn check_and_publish(
        &self,
        texts: Texts,
        namespace: &str,
        source: &ConfigSource,
        data: &impl SharedData,
    ) -> Result<bool, Failure> {
        if texts == Texts::default() {
            return Ok(false);
        }
        let wrong = |reason| Failure::wrong(reason, &texts);
        let documents = texts.parse().map_err(wrong)?;
        Config::new(&self.plugin, &documents).map_err(wrong)?;
        let contended = |Contended| Failure::unreachable("shared data is contended".to_owned());
        let changed = texts.without_keys(&documents).publish(data, namespace, source).map_err(contended)?;
        if changed {
            let next =
                |control: Control| Control { documents: control.documents.wrapping_add(1).max(1), ..control };
            Control::change(data, &self.control_key, next).map_err(contended)?;
        }
        Ok(changed)
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
            Answered::Now(admin::health(&method(request), control))
        } else if is(&paths.system_health_path) {
            let unix_us = self.unix_us(data.now_us());
            admin::system_health(&method(request), request, config, &self.table, control, data, unix_us)
        } else {
            return None;
        };
        Some(match answered {
            Answered::Now(reply) => {
                self.count_admin(&reply);
                Decision::Replied(reply)
            }
            Answered::AfterBody(pending) => Decision::AwaitsBody(pending),
        })
    }

    fn limit(
        &mut self,
        request: &impl Request,
        config: &Config,
        health: Health,
        data: &impl SharedData,
    ) -> Decision {
        let key = request.header("x-api-key");
        let known = key.filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()));
        let caller = known.and_then(|key| config.caller(Secret::of(&key)));
        let tier = caller.as_ref().map_or(&config.default_tier, |caller| &caller.tier);
        let answer = |verdict, now_us| Answer { tier: tier.clone(), health, verdict, now_us };
        let limit = match tier.allowance(health) {
            Allowance::Limited(limit) => limit,
            Allowance::Unlimited => {
                self.metrics.request(tier, Status::Exempt, None);
                return Decision::Admitted(answer(None, data.now_us()));
            }
            Allowance::Blocked => {
                self.metrics.request(tier, Status::Blocked, Some(0));
                return Decision::Refused(answer(Some(refusal(0, BLOCKED_WAIT_US)), data.now_us()));
            }
        };
        let network = || config.network(&request.source_address().unwrap_or_default());
        let taken = match &caller {
            Some(caller) => store::take_keyed(data, &caller.shared_data_key, limit),
            None => self.take_by_address(network(), tier, limit, data),
        };
        let Taken { verdict, now_us, .. } = self.counted(taken, limit, data);
        if log::log_enabled!(log::Level::Debug) {
            let bucket =
                caller.as_ref().map_or_else(|| network().to_string(), |caller| caller.bucket.clone());
            let (outcome, left) = (verdict.outcome, verdict.remaining);
            log::debug!("{bucket} (tier {}, {health}): {outcome:?}, {left} tokens left", tier.name);
        }
        let remaining = Some(verdict.remaining);
        match verdict.outcome {
            Outcome::Admitted => {
                self.metrics.request(tier, Status::Allowed, remaining);
                Decision::Admitted(answer(Some(verdict), now_us))
            }
            Outcome::Refused => {
                self.metrics.request(tier, Status::Limited, remaining);
                Decision::Refused(answer(Some(verdict), now_us))
            }
        }
    }

    fn take_by_address(
        &self,
        network: Network,
        tier: &Tier,
        limit: Limit,
        data: &impl SharedData,
    ) -> Result<Updated<Taken>, Contended> {
        let ttl_us = u64::from(tier.ttl_seconds) * 1_000_000;
        self.table.take(data, network, limit, ttl_us)
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

    fn count_admin(&mut self, reply: &Reply) {
        if let Some(counter) = reply.counter {
            self.metrics.count(counter, 1);
        }
    }

    fn unix_us(&self, now_us: u64) -> u64 {
        now_us.wrapping_add(self.unix_offset_us)
    }
}

fn refusal(capacity: u32, wait_us: u64) -> Verdict {
    Verdict { outcome: Outcome::Refused, capacity, remaining: 0, wait_us }
}

fn method(request: &impl Request) -> Vec<u8> {
    request.header(":method").unwrap_or_default()
}

fn is_preflight(request: &impl Request) -> bool {
    method(request) == b"OPTIONS"
        && request.header("origin").is_some()
        && request.header("access-control-request-method").is_some()
}
