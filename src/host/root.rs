//! The plugin in one worker: configuration, the once-a-second tick, fetched documents.

use std::cell::RefCell;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{BufferType, ContextType, LogLevel, MapType, Status};

use super::calls::{HostData, HostRequest, unix_us};
use super::http::{AwaitedBodies, HttpRequest};
use super::metrics;
use crate::config::{ConfigSource, Environment, Plugin};
use crate::documents::{self, Fetched, MAX_DOCUMENT_BYTES};
use crate::limiter::{Decision, Limiter};
use crate::metrics::{CONFIG_APPLIED, CONFIG_REJECTED, DECISION_DURATION, Sample};
use crate::store::{SharedData, record_key, update};

/// Between ticks: metrics are at most so old, and so is the wall clock.
const TICK: Duration = Duration::from_secs(1);

/// Before the first tick, so that documents are there as soon as Envoy can serve them.
const FIRST_TICK: Duration = Duration::from_millis(100);

/// How long a document may take at most; no longer than until the next fetch, which another worker may make.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// One decision in so many is timed: timing costs two host calls, which a request is better off without.
const TIMED_ONE_IN: u32 = 16;

/// What the requests of one worker share.
pub(super) struct Worker {
    pub(super) limiter: Limiter,
    pub(super) bodies: AwaitedBodies,
    decisions: u32,
    duration_histogram: Option<u32>,
}

impl Worker {
    /// Decides about the request whose headers came in at `started_us`.
    pub(super) fn decide(&mut self, request: &HostRequest, data: &HostData, started_us: u64) -> Decision {
        let decision = self.limiter.decide(request, data);
        let timed = self.duration_histogram.filter(|_| self.decisions.is_multiple_of(TIMED_ONE_IN));
        self.decisions = self.decisions.wrapping_add(1);
        if let Some(histogram) = timed {
            metrics::observe(histogram, data.now_us().saturating_sub(started_us));
        }
        decision
    }
}

/// The plugin's root context.
#[derive(Default)]
pub(super) struct Root {
    worker: Option<Rc<RefCell<Worker>>>,
    fetch: Option<Fetch>,
    /// Fingerprint of the configuration that was applied, until the first tick.
    unannounced: Option<[u8; 8]>,
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
    fn apply(&mut self, configuration: &[u8]) -> Result<(), String> {
        let plugin = Plugin::parse(configuration, &environment())?;
        let random = || RandomState::new().build_hasher().finish();
        metrics::define();
        metrics::probe_changes();
        let mut limiter = Limiter::new(plugin, &HostData, (random(), random()))?;
        limiter.set_wall_clock(unix_us(), HostData.now_us());
        self.unannounced = Some(fingerprint(configuration));
        self.worker = Some(Rc::new(RefCell::new(Worker {
            limiter,
            bodies: AwaitedBodies::default(),
            decisions: 0,
            duration_histogram: metrics::histogram(DECISION_DURATION),
        })));
        Ok(())
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
                    Call::Answered(Err(format!("there is no cluster {:?} in Envoy", source.cluster)))
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
        if let Some(source) = &settings.config_source {
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
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        follow_log_level();
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
        follow_log_level();
        let Some(worker) = self.worker.clone() else { return };
        let mut worker = worker.borrow_mut();
        let limiter = &mut worker.limiter;
        if let Some(fingerprint) = self.unannounced.take() {
            let _ = hostcalls::set_tick_period(TICK);
            announce(limiter, fingerprint);
        }
        limiter.set_wall_clock(unix_us(), HostData.now_us());
        limiter.refresh(&HostData);
        metrics::report(limiter.metrics.drain());
        let settings = limiter.config().settings.clone();
        worker.bodies.give_up(HostData.now_us());
        drop(worker);
        if let Some(source) = &settings.config_source
            && self.fetch.is_none()
            && documents::claim_fetch(&HostData, &settings.namespace, source)
        {
            self.start_fetch(source);
        }
    }

    fn create_http_context(&self, context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(HttpRequest::new(context_id, self.worker.clone())))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// Hands over what was counted since the last tick.
impl Drop for Root {
    fn drop(&mut self) {
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
        Some(status) => Err(format!("found status {}, wanted 200", String::from_utf8_lossy(status))),
        None => Err("found no response, wanted status 200".to_owned()),
    }
}

/// Says that a configuration is in force, unless another worker of this Envoy has said so: each applies it.
///
/// Called at the first tick, which a VM that Envoy merely tries a configuration in does not live to see.
fn announce(limiter: &mut Limiter, fingerprint: [u8; 8]) {
    let key = record_key(&limiter.config().settings.namespace, "plugin_configuration");
    let noted = update(&HostData, &key, |stored, _| {
        let news = stored != Some(fingerprint.as_slice());
        ((news, stored.is_none()), news.then_some(fingerprint))
    });
    let (news, first) = noted.map_or((false, false), |updated| updated.value);
    if first {
        log::info!("dynamic-rate-limiter {} started", env!("CARGO_PKG_VERSION"));
    }
    if news {
        log::info!("configuration applied: {}", limiter.summary());
        limiter.metrics.count(CONFIG_APPLIED, 1);
    }
}

fn fingerprint(configuration: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(configuration);
    hasher.finish().to_le_bytes()
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
    }
}

/// Formats no line that Envoy would throw away. The level may change while Envoy runs.
fn follow_log_level() {
    proxy_wasm::set_log_level(hostcalls::get_log_level().unwrap_or(LogLevel::Info));
}
