//! The plugin in one worker: configuration, the once-a-second tick, fetched documents.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType};

use super::fetch::Fetch;
use super::hostcalls::{HostData, wall_clock};
use super::http::HttpRequest;
use super::worker::Worker;
use super::{metrics, random};
use crate::config::{Environment, PluginConfig};
use crate::credentials::Credentials;
use crate::documents::{claim_fetch, release_fetch};
use crate::generation::{Claimed, Generations, PluginIdentity, Role};
use crate::limiter::Limiter;
use crate::metrics::{CONFIG_REJECTED, StatUpdate};
use crate::store::SharedData;
use crate::time::StoreTime;

/// Least time between two runs of what is done once a second: a tick may come early.
const NEARLY_A_SECOND: Duration = Duration::from_millis(990);

thread_local! {
    /// The generations of all plugins in this VM.
    static GENERATIONS: RefCell<Generations> = const { RefCell::new(Generations::new()) };
}

/// The plugin's root context.
pub(super) struct Root {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
    fetch: Option<Fetch>,
    /// When to do next what is done once a second.
    next_second: StoreTime,
    /// How many requests had been decided at the last attempt to fetch.
    decisions: u32,
    /// Whether a document could not be fetched by this worker last time.
    was_unreachable: bool,
}

impl Root {
    pub(super) fn new(id: u32) -> Self {
        Self {
            id,
            worker: None,
            fetch: None,
            next_second: StoreTime::default(),
            decisions: 0,
            was_unreachable: false,
        }
    }

    fn configure(&mut self, configuration: &[u8]) -> Result<(), String> {
        let plugin = PluginConfig::parse(configuration, &environment())?;
        metrics::define(plugin.settings.redis.is_some(), plugin.settings.health_thresholds.is_some());
        metrics::probe_changes();
        let mut limiter = Limiter::new(plugin, &HostData, (random(), random()))?;
        limiter.set_wall_clock(wall_clock(HostData.now()));
        let namespace = &limiter.config().settings.namespace;
        GENERATIONS.with_borrow_mut(|generations| {
            let name = hostcalls::get_property(vec!["plugin_name"]).ok().flatten().unwrap_or_default();
            let identity = PluginIdentity { name: &name, namespace, fingerprint: fingerprint(configuration) };
            generations.add(self.id, identity, HostData.now());
        });
        self.worker = Some(Rc::new(RefCell::new(Worker::new(self.id, limiter))));
        Ok(())
    }

    fn role(&self) -> Role {
        GENERATIONS.with_borrow(|generations| generations.role(self.id, &HostData))
    }

    /// Fetches documents, if it is time and this worker's turn.
    fn fetch_if_due(&mut self) {
        let Some(worker) = &self.worker else { return };
        let worker = worker.borrow();
        let limiter = worker.limiter();
        let settings = limiter.config().settings.clone();
        let (Some(source), Some(records)) = (&settings.config_source, limiter.records()) else { return };
        if self.fetch.is_some() || limiter.is_publishing() {
            return;
        }
        // A VM that serves no requests, such as the main thread's, has the time.
        let is_busy = worker.decisions() != self.decisions || self.was_unreachable;
        let is_missing = limiter.lacks_documents();
        let grace = if is_busy && !is_missing { NEARLY_A_SECOND } else { Duration::ZERO };
        self.decisions = worker.decisions();
        if claim_fetch(&HostData, records, grace, is_missing) {
            drop(worker);
            self.fetch = Some(Fetch::start(source));
            self.finish_fetch();
        }
    }

    /// Publishes what was fetched, once every call is answered.
    fn finish_fetch(&mut self) {
        let Some(fetch) = self.fetch.take_if(|fetch| fetch.is_complete()) else {
            return;
        };
        let fetched = fetch.into_fetched();
        self.was_unreachable = [&fetched.tiers, &fetched.api_keys].into_iter().flatten().any(Result::is_err);
        let Some(worker) = &self.worker else { return };
        // It may have been superseded since it sent the requests.
        if self.role() == Role::Newest {
            worker.borrow_mut().publish(fetched);
        } else {
            self.release_fetch();
        }
    }

    fn release_fetch(&self) {
        let Some(worker) = &self.worker else { return };
        if let Some(records) = worker.borrow().limiter().records() {
            release_fetch(&HostData, records);
        }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        if self.fetch.as_mut().is_some_and(|fetch| fetch.take_answer(token, headers, body_size)) {
            if let Some(worker) = &self.worker {
                worker.borrow_mut().begin_turn();
            }
            self.finish_fetch();
        }
    }

    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        let bytes = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten();
        if let (Some(worker), Some(bytes)) = (&self.worker, bytes) {
            worker.borrow_mut().received(stream, &bytes);
        }
    }

    fn on_grpc_stream_close(&mut self, stream: u32, status: u32) {
        if let Some(worker) = &self.worker {
            worker.borrow_mut().closed(stream, status);
        }
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        super::log::follow_level();
        let configuration = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size);
        match self.configure(&configuration.ok().flatten().unwrap_or_default()) {
            Ok(()) => true,
            Err(error) => {
                log::error!("configuration rejected: {error}");
                metrics::report(vec![StatUpdate::Count(CONFIG_REJECTED.to_owned(), 1)]);
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let Some(worker) = self.worker.clone() else { return };
        let mut worker = worker.borrow_mut();
        let now = HostData.now();
        let is_due = now >= self.next_second;
        if is_due {
            let claimed = GENERATIONS.with_borrow(|generations| generations.claim(self.id, &HostData));
            announce(&mut worker, claimed);
        }
        let role = self.role();
        worker.tick(role);
        let may_fetch = role == Role::Newest && (is_due || worker.limiter().lacks_documents());
        if is_due {
            self.next_second = now.after(NEARLY_A_SECOND);
            super::log::follow_level();
            metrics::report(worker.each_second(now));
        }
        drop(worker);
        if may_fetch {
            self.fetch_if_due();
        }
    }

    fn on_queue_ready(&mut self, queue: u32) {
        if let Some(worker) = &self.worker {
            worker.borrow_mut().take_turn(queue);
        }
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        GENERATIONS.with_borrow_mut(Generations::note_request);
        Some(Box::new(HttpRequest::new(context_id, self.worker.clone())))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// Hands over what was counted since the last tick, and the documents that were on their way.
impl Drop for Root {
    fn drop(&mut self) {
        GENERATIONS.with_borrow_mut(|generations| generations.remove(self.id, &HostData));
        if self.fetch.is_some() {
            self.release_fetch();
        }
        if let Some(worker) = &self.worker {
            let mut worker = worker.borrow_mut();
            worker.drop_publication();
            metrics::report(worker.drain_metrics());
        }
    }
}

/// Says that a configuration is in force.
fn announce(worker: &mut Worker, claimed: Claimed) {
    match claimed {
        Claimed::Unchanged => return,
        Claimed::First => log::info!("dynamic-rate-limiter {} started", env!("CARGO_PKG_VERSION")),
        Claimed::Replaced => {}
    }
    worker.announce_configuration();
}

/// Differs between configurations, environments and versions of the filter.
fn fingerprint(configuration: &[u8]) -> u64 {
    let mut variables: Vec<_> = std::env::vars_os().collect();
    variables.sort();
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), configuration, variables).hash(&mut hasher);
    hasher.finish().max(1)
}

fn environment() -> Environment {
    let variable = |name: &str| {
        let value = std::env::var_os(name)?.into_encoded_bytes();
        (!value.is_empty()).then_some(value)
    };
    Environment {
        admin_token: variable("ADMIN_TOKEN"),
        default_tier: variable("DEFAULT_TIER"),
        config_ttl: variable("CONFIG_TTL"),
        redis: Credentials { username: variable("REDIS_USERNAME"), password: variable("REDIS_PASSWORD") },
    }
}
