//! The plugin in one worker: configuration, the once-a-second tick, fetched documents.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType, MapType, Status};

use super::calls::{HostData, unix_us};
use super::http::HttpRequest;
use super::worker::Worker;
use super::{metrics, random};
use crate::config::{ConfigSource, Environment, Plugin};
use crate::documents::{self, Fetched, MAX_DOCUMENT_BYTES};
use crate::generation::{Claimed, Generations, PluginIdentity, Role};
use crate::limiter::Limiter;
use crate::load::hand_in_us;
use crate::metrics::{CONFIG_APPLIED, CONFIG_REJECTED, DECISION_DURATION, Sample};
use crate::shown::{Shown, quoted};
use crate::store::SharedData;
use crate::store::redis::session::Credentials;

/// Between ticks without a Redis, which needs more: metrics are at most so old, and so is the wall clock.
const TICK: Duration = Duration::from_secs(1);

/// What is done once a second is due again so soon, in microseconds: a tick may come a little early.
const SECOND_US: u64 = 990_000;

/// Before the first tick, so that documents are there as soon as Envoy can serve them.
const FIRST_TICK: Duration = Duration::from_millis(100);

/// How long a document may take at most; no longer than until the next fetch, which another worker may make.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    /// The generations of all plugins in this VM.
    static GENERATIONS: RefCell<Generations> = const { RefCell::new(Generations::new()) };
}

/// The plugin's root context.
pub(super) struct Root {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
    fetch: Option<Fetch>,
    /// Whether the first tick is still to come. A VM that Envoy merely tries a configuration in does not live
    /// to see it.
    awaits_first_tick: bool,
    /// When to do next what is done once a second.
    next_second_us: u64,
}

/// Documents on their way: a call each, and what has come.
struct Fetch {
    tiers: Option<Call>,
    api_keys: Option<Call>,
}

enum Call {
    Waiting(u32),
    Answered(Result<Vec<u8>, String>),
}

impl Root {
    pub(super) fn new(id: u32) -> Self {
        Self { id, worker: None, fetch: None, awaits_first_tick: false, next_second_us: 0 }
    }

    fn apply(&mut self, configuration: &[u8]) -> Result<(), String> {
        let plugin = Plugin::parse(configuration, &environment())?;
        metrics::define(plugin.settings.redis.is_some(), plugin.settings.measured.is_some());
        metrics::probe_changes();
        let mut limiter = Limiter::new(plugin, &HostData, (random(), random()))?;
        limiter.set_wall_clock(unix_us(), HostData.now_us());
        self.awaits_first_tick = true;
        let namespace = &limiter.config().settings.namespace;
        GENERATIONS.with_borrow_mut(|generations| {
            let name = hostcalls::get_property(vec!["plugin_name"]).ok().flatten().unwrap_or_default();
            let identity = PluginIdentity { name: &name, namespace, fingerprint: fingerprint(configuration) };
            generations.add(self.id, identity, HostData.now_us());
        });
        let histogram = metrics::histogram(DECISION_DURATION);
        self.worker = Some(Rc::new(RefCell::new(Worker::new(self.id, limiter, histogram))));
        Ok(())
    }

    /// What it may do now.
    fn role(&self) -> Role {
        GENERATIONS.with_borrow(|generations| generations.role(self.id, &HostData))
    }

    fn start_fetch(&mut self, source: &ConfigSource) {
        let timeout = FETCH_TIMEOUT.min(Duration::from_secs(source.ttl_seconds.into()));
        let call = |path: &String| {
            let headers =
                vec![(":method", "GET"), (":path", path.as_str()), (":authority", source.cluster.as_str())];
            let called = hostcalls::dispatch_http_call(&source.cluster, headers, None, vec![], timeout);
            match called {
                Ok(token) => Call::Waiting(token),
                Err(Status::BadArgument) => {
                    Call::Answered(Err(format!("there is no cluster {} in Envoy", quoted(&source.cluster))))
                }
                Err(_) => Call::Answered(Err("the request could not be sent".to_owned())),
            }
        };
        self.fetch = Some(Fetch {
            tiers: source.tiers.as_ref().map(call),
            api_keys: source.api_keys.as_ref().map(call),
        });
        self.finish_fetch();
    }

    /// Publishes what was fetched, once every call is answered.
    fn finish_fetch(&mut self) {
        let Some(fetch) = self.fetch.take_if(|fetch| fetch.is_answered()) else {
            return;
        };
        let Some(worker) = &self.worker else { return };
        let limiter = &mut worker.borrow_mut().limiter;
        let settings = limiter.config().settings.clone();
        // It may have been superseded since it sent the requests.
        if let Some(source) = settings.config_source.as_ref().filter(|_| self.role() == Role::Newest) {
            limiter.publish(source, fetch.into_fetched(), &HostData);
        }
    }
}

impl Fetch {
    fn calls(&mut self) -> [Option<&mut Call>; 2] {
        [self.tiers.as_mut(), self.api_keys.as_mut()]
    }

    fn waiting(&mut self, token: u32) -> Option<&mut Call> {
        let is_it = |call: &&mut Call| matches!(call, Call::Waiting(waiting) if *waiting == token);
        self.calls().into_iter().flatten().find(is_it)
    }

    fn is_answered(&mut self) -> bool {
        self.calls().into_iter().flatten().all(|call| matches!(call, Call::Answered(_)))
    }

    fn into_fetched(self) -> Fetched {
        let answer = |call: Option<Call>, name| match call? {
            Call::Answered(answer) => Some(answer.map_err(|reason| format!("{name}: {reason}"))),
            Call::Waiting(_) => None,
        };
        Fetched { tiers: answer(self.tiers, "tiers"), api_keys: answer(self.api_keys, "api_keys") }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body_size: usize, _trailers: usize) {
        let waiting = self.fetch.as_mut().and_then(|fetch| fetch.waiting(token));
        if let Some(call) = waiting {
            *call = Call::Answered(fetched(headers, body_size));
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
        match self.apply(&configuration.ok().flatten().unwrap_or_default()) {
            Ok(()) => {
                let _ = hostcalls::set_tick_period(FIRST_TICK);
                true
            }
            Err(error) => {
                log::error!("configuration rejected: {error}");
                metrics::report(vec![Sample::Count(CONFIG_REJECTED.to_owned(), 1)]);
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let Some(worker) = self.worker.clone() else { return };
        let mut worker = worker.borrow_mut();
        let is_first = std::mem::take(&mut self.awaits_first_tick);
        if is_first && !worker.has_pipe() {
            let measured = worker.limiter.config().settings.measured;
            let tick = measured.map_or(TICK, |bounds| Duration::from_micros(hand_in_us(&bounds)));
            let _ = hostcalls::set_tick_period(tick);
        }
        let now_us = HostData.now_us();
        let is_due = now_us >= self.next_second_us;
        if is_due {
            let claimed = GENERATIONS.with_borrow(|generations| generations.claim(self.id, &HostData));
            announce(&mut worker.limiter, claimed);
        }
        let role = self.role();
        worker.tick(role);
        if !is_due {
            return;
        }
        self.next_second_us = now_us.saturating_add(SECOND_US);
        super::log::follow_level();
        let limiter = &mut worker.limiter;
        limiter.set_wall_clock(unix_us(), now_us);
        limiter.refresh(&HostData);
        metrics::report(limiter.metrics.drain());
        let settings = limiter.config().settings.clone();
        drop(worker);
        if let Some(source) = &settings.config_source
            && self.fetch.is_none()
            && role == Role::Newest
            && documents::claim_fetch(&HostData, &settings.namespace, source)
        {
            self.start_fetch(source);
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

/// Hands over what was counted since the last tick.
impl Drop for Root {
    fn drop(&mut self) {
        GENERATIONS.with_borrow_mut(|generations| generations.remove(self.id, &HostData));
        if let Some(worker) = &self.worker {
            metrics::report(worker.borrow_mut().limiter.metrics.drain());
        }
    }
}

/// The document in the response that has just come, or what is wrong with it.
fn fetched(headers: usize, body_size: usize) -> Result<Vec<u8>, String> {
    // A response that broke off half way has no headers any more, and asking for one would trap.
    if headers == 0 {
        return Err("found a response that broke off, wanted a whole one".to_owned());
    }
    let status = hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, ":status").ok().flatten();
    match status.as_deref() {
        Some(b"200") if body_size > MAX_DOCUMENT_BYTES => {
            Err(format!("found {body_size} bytes, wanted at most {MAX_DOCUMENT_BYTES}"))
        }
        Some(b"200") => {
            let body = hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, body_size);
            Ok(body.ok().flatten().unwrap_or_default())
        }
        Some(status) => Err(format!("found status {}, wanted 200", Shown(&String::from_utf8_lossy(status)))),
        None => Err("found no response, wanted status 200".to_owned()),
    }
}

/// Says that a configuration is in force.
fn announce(limiter: &mut Limiter, claimed: Claimed) {
    match claimed {
        Claimed::Unchanged => return,
        Claimed::First => log::info!("dynamic-rate-limiter {} started", env!("CARGO_PKG_VERSION")),
        Claimed::Replaced => {}
    }
    log::info!("configuration applied: {}", limiter.summary());
    limiter.metrics.count(CONFIG_APPLIED, 1);
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
