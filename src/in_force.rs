//! What is in force in one worker: configuration, documents, callers, health.
//!
//! All workers follow one control record. A worker reads it at the first request after a change was announced, and then
//! takes over documents that are new to it. The worker that fetched documents publishes them here, in slices.

use std::rc::Rc;
use std::time::Duration;

use crate::callers::Callers;
use crate::config::{Config, Documents, KnownCaller, PluginConfig};
use crate::control::{Control, RedisStatus};
use crate::documents::{
    Fetched, Finished, Outdated, Publication, PublicationOutcome, Published, SourceRecords, release_fetch,
};
use crate::health::Health;
use crate::identity::KeyHash;
use crate::metrics::{self, Metrics};
use crate::redis_limiter::RedisLimiter;
use crate::store::SharedData;
use crate::time::StoreTime;

/// How long requests of a worker wait for its first documents, counted from the first that does.
pub const DOCUMENT_WAIT: Duration = Duration::from_secs(1);

/// What is in force in one worker.
#[derive(Debug)]
pub(crate) struct InForce {
    plugin: PluginConfig,
    config: Rc<Config>,
    /// The known keys.
    callers: Callers,
    control_key: String,
    /// The control record as last read.
    control: Control,
    /// How many changes were announced then; `None` where it has to be read again.
    changes: Option<u64>,
    /// Names the records that documents are published in; `None` without a `config_source`.
    records: Option<SourceRecords>,
    /// Whether a document has neither been applied nor rejected yet.
    lacks_documents: bool,
    hold: Hold,
    /// Fetched documents that this worker is publishing.
    publication: Option<Publication>,
    /// Random, for the key tables that this worker publishes.
    seed: u64,
    /// Whether this worker has published something that the control record does not announce yet.
    is_unannounced: bool,
}

/// How long requests wait for documents.
#[derive(Clone, Copy, Debug)]
enum Hold {
    /// No request has waited yet.
    Unused,
    /// Requests wait until then.
    Until(StoreTime),
    /// They do not wait any more.
    Over,
}

impl InForce {
    /// The plugin configuration alone. Documents follow when the control record is read for the first time.
    pub(crate) fn new(plugin: PluginConfig, seed: u64) -> Result<Self, String> {
        let config = Config::new(&plugin, &Documents::default())?;
        let settings = &config.settings;
        let source = settings.config_source.as_ref();
        let records = source.map(|source| SourceRecords::new(&settings.namespace, source));
        Ok(Self {
            control_key: Control::key(&settings.namespace),
            control: Control::default(),
            changes: None,
            lacks_documents: records.is_some(),
            records,
            hold: Hold::Unused,
            publication: None,
            seed,
            is_unannounced: false,
            callers: Callers::default(),
            config: Rc::new(config),
            plugin,
        })
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> &Rc<Config> {
        &self.config
    }

    /// The control record as last read.
    pub(crate) fn control(&self) -> Control {
        self.control
    }

    /// Which limits hold.
    pub(crate) fn health(&self) -> Health {
        self.control.health()
    }

    /// Names the control record.
    pub(crate) fn control_key(&self) -> &str {
        &self.control_key
    }

    /// Names the records that documents are published in; `None` without a `config_source`.
    pub(crate) fn records(&self) -> Option<&SourceRecords> {
        self.records.as_ref()
    }

    /// Whether a document has neither been applied nor rejected yet.
    pub(crate) fn lacks_documents(&self) -> bool {
        self.lacks_documents
    }

    /// How many tiers and keys are in force.
    pub(crate) fn summary(&self) -> String {
        let Config { tiers, default_tier, .. } = &*self.config;
        format!("{} tiers, {} keys, default tier {}", tiers.len(), self.config.keys(), default_tier.name)
    }

    /// Reads the control record, if a change was announced.
    pub(crate) fn follow(
        &mut self,
        data: &impl SharedData,
        redis: Option<&mut RedisLimiter>,
        metrics: &mut Metrics,
    ) {
        // Counted before the record is read: a change in between is announced later, and read again.
        let changes = data.changes();
        if changes.is_some() && changes == self.changes {
            return;
        }
        self.changes = changes;
        let control = Control::read(data, &self.control_key);
        let previous = std::mem::replace(&mut self.control, control);
        if control.documents_version != previous.documents_version {
            self.adopt_documents(data);
            metrics.define_tiers(&self.config.tiers);
        }
        metrics.health(control.health());
        if let Some(redis) = redis {
            metrics.redis_connected(control.redis == RedisStatus::Connected);
            let what_decides =
                |control: Control| (control.health_changes, control.health(), control.documents_version);
            if what_decides(previous) != what_decides(control) {
                redis.forget_denied();
            }
        }
    }

    /// Reads the control record, announced change or not.
    pub(crate) fn refresh(
        &mut self,
        data: &impl SharedData,
        redis: Option<&mut RedisLimiter>,
        metrics: &mut Metrics,
    ) {
        self.changes = None;
        self.follow(data, redis, metrics);
    }

    fn adopt_documents(&mut self, data: &impl SharedData) {
        let Some(records) = &self.records else { return };
        let published = Published::read(data, records);
        self.lacks_documents = published.is_missing(records);
        if published.tiers.is_none() && published.keys.is_none() {
            return;
        }
        let documents = published.documents();
        let config = Config::new(&self.plugin, &documents).or_else(|error| {
            // They fitted the plugin configuration they were fetched with, and do not fit this newer one.
            log::warn!(
                "documents do not fit this configuration, a missing tier means the default one: {error}"
            );
            Config::new_lenient(&self.plugin, &documents)
        });
        if let Ok(config) = config {
            self.config = Rc::new(config);
            self.callers = Callers::new(published.keys.map(|keys| (keys.table, records.prefix.clone())));
        }
    }

    /// The caller whose key this is.
    pub(crate) fn caller(
        &mut self,
        key: KeyHash,
        data: &impl SharedData,
    ) -> Result<Option<Rc<KnownCaller>>, Outdated> {
        self.callers.find(key, &self.config, data)
    }

    /// Whether requests wait for documents now: from the first one on, for as long as a document is missing, but for
    /// [`DOCUMENT_WAIT`] at most.
    pub(crate) fn holds_requests(&mut self, now: StoreTime, data: &impl SharedData) -> bool {
        if !self.lacks_documents {
            return false;
        }
        let until = match self.hold {
            Hold::Unused => now.after(DOCUMENT_WAIT),
            Hold::Until(until) => until,
            Hold::Over => return false,
        };
        if now < until {
            self.hold = Hold::Until(until);
            return true;
        }
        self.hold = Hold::Over;
        if self.records.as_ref().is_some_and(|records| records.first_to_miss(data)) {
            log::warn!("documents are missing: the plugin configuration decides until they are there");
        }
        false
    }

    /// Begins to put fetched documents into force for all workers: [`InForce::publish`] goes on with it.
    pub(crate) fn begin_publication(&mut self, fetched: Fetched, data: &impl SharedData) {
        if let Some(records) = self.records.clone() {
            self.publication = Some(Publication::new(fetched, &self.plugin, records, self.seed, data));
        }
    }

    /// Whether there is a publication to go on with.
    pub(crate) fn is_publishing(&self) -> bool {
        self.publication.is_some()
    }

    /// Leaves a publication unfinished: nothing of it holds, and its documents are fetched again.
    pub(crate) fn drop_publication(&mut self, data: &impl SharedData) {
        if self.publication.take().is_some()
            && let Some(records) = &self.records
        {
            release_fetch(data, records);
        }
    }

    /// Does a slice of the work that a publication takes, and says at its end what is wrong with documents that it
    /// leaves out. To be called at each tick.
    pub(crate) fn publish(
        &mut self,
        data: &impl SharedData,
        redis: Option<&mut RedisLimiter>,
        metrics: &mut Metrics,
    ) {
        let finished = self.work(data);
        self.is_unannounced |= finished.as_ref().is_some_and(|finished| finished.is_changed);
        self.announce(data, redis, metrics);
        let Some(Finished { is_applied, complaint, .. }) = finished else { return };
        if is_applied {
            log::info!("documents applied: {}", self.summary());
            metrics.count(metrics::CONFIG_APPLIED, 1);
        }
        if let Some(complaint) = complaint {
            log::warn!("documents rejected, the last valid ones stay: {complaint}");
            metrics.count(metrics::CONFIG_REJECTED, 1);
        }
    }

    /// Does a slice of a publication; returns its outcome, if it is finished.
    fn work(&mut self, data: &impl SharedData) -> Option<Finished> {
        let outcome = self.publication.as_mut()?.work(&self.plugin, data)?;
        self.publication = None;
        match outcome {
            PublicationOutcome::Finished(finished) => Some(finished),
            PublicationOutcome::Overtaken => None,
        }
    }

    /// Tells all workers to read what is published. If this loses every race, the next tick tries again.
    fn announce(&mut self, data: &impl SharedData, redis: Option<&mut RedisLimiter>, metrics: &mut Metrics) {
        if !self.is_unannounced {
            return;
        }
        let next = |control: Control| {
            let documents_version = control.documents_version.wrapping_add(1).max(1);
            Control { documents_version, ..control }
        };
        self.is_unannounced = Control::change(data, &self.control_key, next).is_err();
        self.refresh(data, redis, metrics);
    }
}
