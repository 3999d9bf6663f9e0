//! The hostile host as a [`scenarios::Host`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use scenarios::{Gateway, Host, REDIS_CLUSTER, Redis, Request, Response, Served, Source};
use serde_json::Value;
use wasm_host::redis::Mode;
use wasm_host::{Id, LIMITER, World};

use crate::support::HEALTH;

/// The cluster that serves documents.
const SOURCE: &str = "config_files";

/// Longer than any request takes.
const MAX_WAIT_US: u64 = 20_000_000;

/// How often the test checks for a response, and for fetches of aborted documents.
const CHECK_US: u64 = 5_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct HostileHost;

impl Host for HostileHost {
    fn start(&self, setup: &scenarios::Setup) -> Box<dyn Gateway> {
        let mut world = boot(setup);
        world.configure_all();
        let mut listeners = BTreeMap::new();
        for (name, config) in &setup.listeners {
            let (names, config) = ((LIMITER, LIMITER), config.to_string());
            let plugin = world.add_plugin(0, names, setup.passes_bodies, config.as_bytes());
            listeners.insert(name.clone(), plugin);
        }
        world.settle();
        let mut running = Running {
            world,
            setup: setup.clone(),
            turn: 0,
            listeners,
            upstream_targets: Vec::new(),
            breaks_off: BTreeSet::new(),
        };
        for (path, served) in &setup.documents {
            running.serve(path, served.clone());
        }
        Box::new(running)
    }

    fn start_refused(&self, setup: &scenarios::Setup) -> String {
        boot(setup).try_configure_all().expect_err("the configuration is invalid")
    }
}

/// Envoys without a configuration.
fn boot(wanted: &scenarios::Setup) -> World {
    let variables = wanted.variables.iter().map(|(name, value)| (name.clone(), value.clone().into()));
    let (clusters, refusing) = match wanted.source {
        Source::Serves => (vec![REDIS_CLUSTER, SOURCE], vec![]),
        Source::Refuses => (vec![REDIS_CLUSTER, SOURCE], vec![SOURCE]),
        Source::Missing => (vec![REDIS_CLUSTER], vec![]),
    };
    let mut world = World::boot(wasm_host::Setup {
        environment: variables.collect(),
        envoys: wanted.envoys,
        workers: wanted.workers as usize,
        allows_stop: wanted.passes_bodies,
        clusters,
        refusing,
        ..wasm_host::Setup::new(wanted.config.as_ref().map(Value::to_string).unwrap_or_default())
    });
    for process in &world.processes {
        process.keeps_stats.set(wanted.keeps_stats);
    }
    world.redis.model.password = wanted.redis_password.map(|password| (None, password));
    if !wanted.is_redis_up {
        world.redis.mode = Mode::Refuses;
    }
    world
}

struct Running {
    world: World,
    setup: scenarios::Setup,
    /// The worker of each Envoy that receives the next request, in turn.
    turn: usize,
    /// The number of each other listener's plugin, on the first worker.
    listeners: BTreeMap<String, usize>,
    upstream_targets: Vec<String>,
    breaks_off: BTreeSet<String>,
}

impl Running {
    fn send_to(&mut self, worker: usize, request: &Request) -> Response {
        self.prepare_upstream(request);
        let id = self.world.send(worker, request);
        if self.world.upstream.waits && self.world.response(id).is_none() {
            self.advance(self.world.upstream.answer.after);
            self.world.upstream_answers(id);
        }
        self.await_response(id, request)
    }

    fn await_response(&mut self, id: Id, request: &Request) -> Response {
        for _ in 0..MAX_WAIT_US / CHECK_US {
            if let Some(response) = self.world.response(id).cloned() {
                if self.world.forwarded(id).is_some() {
                    self.upstream_targets.push(request.target.clone());
                }
                return response;
            }
            self.advance_us(CHECK_US);
        }
        panic!("no response to {request:?}")
    }

    /// Sets the upstream's answer, as filters see it: names in lower case, no body for `HEAD`.
    fn prepare_upstream(&mut self, request: &Request) {
        assert!(request.from.is_none() || self.setup.has_addresses, "callers have no addresses: {request:?}");
        let mut answer = self.setup.answer_to(&request.target);
        if self.setup.is_grpc {
            let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            answer.headers = vec![header("content-type", "application/grpc"), header("grpc-status", "0")];
        }
        if request.method == "HEAD" {
            answer.body.clear();
        }
        answer.headers.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
        self.world.upstream.waits = answer.after > Duration::ZERO;
        self.world.upstream.answer = answer;
    }

    /// Advances the clocks, and aborts the responses of aborted documents.
    fn advance_us(&mut self, us: u64) {
        let mut left_us = us;
        while left_us > 0 {
            let step_us = left_us.min(CHECK_US);
            self.world.advance_us(step_us);
            left_us -= step_us;
            let breaks_off = |path: &String| self.breaks_off.contains(path);
            while let Some(index) = self.world.calls.iter().position(|(_, call)| breaks_off(&call.path)) {
                self.world.answer_call(index, None);
            }
        }
    }

    fn workers(&self) -> usize {
        self.setup.workers as usize
    }

    fn lines(&self, least_level: u32) -> Vec<String> {
        let mut lines = Vec::new();
        for process in &self.world.processes {
            let log = process.log.borrow();
            let shown = log.iter().filter(|(level, _)| *level >= least_level);
            lines.extend(shown.map(|(_, line)| line.clone()));
        }
        lines
    }
}

impl Gateway for Running {
    fn send(&mut self, request: &Request) -> Response {
        self.send_via(0, request)
    }

    fn send_via(&mut self, envoy: usize, request: &Request) -> Response {
        self.turn = (self.turn + 1) % self.workers();
        self.send_to(envoy * self.workers() + self.turn, request)
    }

    fn send_to_listener(&mut self, listener: &str, request: &Request) -> Response {
        self.send_to(self.listeners[listener], request)
    }

    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response> {
        (0..self.workers()).map(|worker| self.send_to(worker, request)).collect()
    }

    fn send_and_disconnect(&mut self, request: &Request, copies: usize, after: Duration) {
        self.prepare_upstream(request);
        let ids: Vec<Id> =
            (0..copies).map(|copy| self.world.begin(copy % self.workers(), request, true)).collect();
        self.world.settle();
        self.advance(after);
        ids.into_iter().for_each(|id| self.world.disconnect(id));
    }

    fn advance(&mut self, time: Duration) {
        self.advance_us(u64::try_from(time.as_micros()).expect("a short time"));
    }

    fn now(&self) -> f64 {
        self.world.clock.wall_ns.get() as f64 / 1e9
    }

    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted = Some(labels.iter().copied().collect());
        let stat = self.stats().into_iter().find(|stat| labels_of(stat, name) == wanted)?;
        Some(self.world.processes[0].stat(&stat) as f64)
    }

    fn values(&mut self, name: &str) -> Vec<f64> {
        let stats = self.stats();
        let named = stats.iter().filter(|stat| labels_of(stat, name).is_some());
        named.map(|stat| self.world.processes[0].stat(stat) as f64).collect()
    }

    fn stats(&mut self) -> Vec<String> {
        let process = &self.world.processes[0];
        if process.keeps_stats.get() { process.stat_names() } else { Vec::new() }
    }

    fn log(&mut self) -> Vec<String> {
        const INFO: u32 = 2;
        self.lines(INFO)
    }

    fn warnings(&mut self) -> Vec<String> {
        const WARNING: u32 = 3;
        self.lines(WARNING)
    }

    fn upstream_targets(&mut self) -> Vec<String> {
        self.upstream_targets.clone()
    }

    fn serve(&mut self, path: &str, served: Served) {
        self.breaks_off.remove(path);
        self.world.documents.remove(path);
        match served {
            Served::Document(document) => drop(self.world.documents.insert(path.to_owned(), (200, document))),
            Served::Status(status) => {
                self.world.documents.insert(path.to_owned(), (status.into(), Vec::new()));
            }
            Served::BreaksOff => drop(self.breaks_off.insert(path.to_owned())),
            Served::Never => {}
        }
    }

    fn fetch_count(&mut self, path: &str) -> usize {
        self.world.fetched.iter().filter(|fetched| *fetched == path).count()
    }

    fn deliver(&mut self, config: &Value) -> bool {
        let config = config.to_string();
        (0..self.workers()).all(|worker| self.world.configure(worker, config.as_bytes()))
    }

    fn redis(&mut self) -> &mut dyn Redis {
        assert!(self.setup.has_redis, "a setup with a Redis");
        self
    }
}

/// The labels in a stat's name, if it is this metric's: `name.label.value.…`
fn labels_of<'a>(stat: &'a str, name: &str) -> Option<BTreeSet<(&'a str, &'a str)>> {
    let rest = stat.strip_prefix(name)?;
    if !rest.is_empty() && !rest.starts_with('.') {
        return None;
    }
    let parts: Vec<_> = rest.split('.').skip(1).collect();
    Some(parts.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

impl Redis for Running {
    fn buckets(&mut self) -> Vec<String> {
        let names = self.world.redis.model.buckets.keys();
        let mut names: Vec<_> = names.filter(|name| !name.ends_with("#probe")).cloned().collect();
        names.sort();
        names
    }

    fn delete_bucket(&mut self, name: &str) {
        assert!(self.world.redis.model.buckets.remove(name).is_some(), "no bucket {name}");
    }

    fn health(&mut self) -> Option<String> {
        let health = self.world.redis.model.strings.get(HEALTH)?;
        Some(String::from_utf8(health.clone()).expect("text"))
    }

    fn keeps_health(&mut self) -> bool {
        // The model supports no `SET` with an expiry.
        self.world.redis.model.strings.contains_key(HEALTH)
    }

    fn set_health(&mut self, health: &str) {
        self.world.redis.model.strings.insert(HEALTH.to_owned(), health.into());
    }

    fn scripts(&mut self) -> u64 {
        self.world.redis.scripts() as u64
    }

    fn freeze(&mut self) {
        self.world.redis.mode = Mode::Frozen;
    }

    fn thaw(&mut self) {
        self.world.redis_starts();
    }

    fn kill(&mut self) {
        self.world.redis.mode = Mode::Refuses;
        let model = &mut self.world.redis.model;
        model.buckets.clear();
        model.strings.clear();
        model.knows_script = false;
        self.world.redis_disconnects();
    }

    fn restart(&mut self) {
        self.world.redis_starts();
    }
}
