//! A real Envoy as a [`scenarios::Host`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scenarios::{Gateway, Host, Request, Response, Served, Source};
use serde_json::Value;

use crate::client::Connection;
use crate::envoy::Envoy;
use crate::redis::Redis;
use crate::setup::Setup;
use crate::upstream::{Answer, Upstream, refusing};
use crate::{http2, lock, sha256_hex, wait};

/// Connections for each worker, so that every worker has one.
const CONNECTIONS_PER_WORKER: usize = 10;

#[derive(Clone, Copy, Debug)]
pub struct RealEnvoy;

impl Host for RealEnvoy {
    fn start(&self, setup: &scenarios::Setup) -> Box<dyn Gateway> {
        let world = World::start(setup);
        let envoys: Vec<_> = (0..setup.envoys).map(|_| world.prepare().start()).collect();
        if setup.takes_deliveries {
            // The first delivery is counted when every worker has it; a later delivery must not be mistaken for it.
            wait::until("the first delivery counted", || (envoys[0].deliveries().0 > 0).then_some(()));
        }
        Box::new(Running { envoys, world, connections: Vec::new() })
    }

    fn start_refused(&self, setup: &scenarios::Setup) -> String {
        World::start(setup).prepare().start_refused()
    }
}

/// What the cluster `config_files` serves, by path.
type Documents = Arc<Mutex<HashMap<String, Served>>>;

struct World {
    setup: scenarios::Setup,
    upstream: Upstream,
    documents: Documents,
    source: Upstream,
    redis: Option<RealRedis>,
}

struct Running {
    envoys: Vec<Envoy>,
    world: World,
    /// At least one to every worker of the first Envoy; opened when first needed.
    connections: Vec<Connection>,
}

impl World {
    fn start(setup: &scenarios::Setup) -> Self {
        for secret in scenarios::support::SECRETS {
            // This registers the hash as a secret, too.
            sha256_hex(secret);
        }
        let documents: Documents = Arc::new(Mutex::new(setup.documents.iter().cloned().collect()));
        let served = Arc::clone(&documents);
        let source = Upstream::start(move |request| match lock(&served).get(&request.target) {
            Some(Served::Document(document)) => Answer::ok(document.clone()),
            Some(Served::Status(status)) => Answer::with(*status, &[]),
            Some(Served::BreaksOff) => Answer::BreakOff,
            Some(Served::Never) => Answer::Late(Duration::from_secs(60), Box::new(Answer::ok("{}"))),
            None => Answer::with(404, &[]),
        });
        let answers = setup.clone();
        let upstream = Upstream::start(move |request| {
            let answer = answers.answer_to(&request.target);
            let respond = Answer::Respond(answer.status, answer.headers, answer.body.into());
            if answer.after > Duration::ZERO {
                Answer::Late(answer.after, Box::new(respond))
            } else {
                respond
            }
        });
        let redis = setup.has_redis.then(|| {
            let password = setup.redis_password.map(|password| format!("requirepass {password}"));
            let mut redis = Redis::not_started(&password.as_deref().into_iter().collect::<Vec<_>>());
            if setup.is_redis_up {
                redis.restart();
            }
            RealRedis(redis)
        });
        Self { setup: setup.clone(), upstream, documents, source, redis }
    }

    fn prepare(&self) -> Setup {
        let wanted = &self.setup;
        let mut setup = Setup::new().workers(wanted.workers);
        setup.ecds = wanted.takes_deliveries;
        setup.bodies = wanted.passes_bodies;
        setup.filter_stats = wanted.keeps_stats;
        setup = match wanted.source {
            Source::Serves => setup.cluster("config_files", self.source.address()),
            Source::Refuses => setup.cluster("config_files", refusing()),
            Source::Missing => setup,
        };
        setup = match wanted.is_grpc {
            true => setup.http2_upstream(http2::grpc_server()),
            false => setup.upstream(self.upstream.address()),
        };
        if let Some(config) = &wanted.config {
            setup = setup.config(config);
        }
        if wanted.has_addresses {
            setup = setup.trusted_hops(1);
        }
        if let Some(redis) = &self.redis {
            setup = setup.redis(redis.0.address());
        }
        let named = wanted.listeners.iter();
        setup = named.fold(setup, |setup, (name, config)| setup.listener(name, config));
        wanted.variables.iter().fold(setup, |setup, (name, value)| setup.env(name, value))
    }
}

impl Running {
    /// The request with its address in the header from which the connection manager takes it.
    fn addressed(&self, request: &Request) -> Request {
        match &request.from {
            Some(address) if self.world.setup.has_addresses => request.clone().forwarded_for(address),
            Some(address) => panic!("from {address}, where callers have no addresses"),
            None => request.clone(),
        }
    }

    fn lines(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let logs = self.envoys.iter().map(Envoy::log);
        logs.flat_map(|log| log.lines().filter(|line| is_wanted(line)).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

impl Gateway for Running {
    fn send(&mut self, request: &Request) -> Response {
        self.send_via(0, request)
    }

    fn send_via(&mut self, envoy: usize, request: &Request) -> Response {
        let request = self.addressed(request);
        let is_grpc = request.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("content-type") && value.starts_with(b"application/grpc")
        });
        match is_grpc && self.world.setup.is_grpc {
            true => http2::send(self.envoys[envoy].address(), &request),
            false => self.envoys[envoy].send(&request),
        }
    }

    fn send_to_listener(&mut self, listener: &str, request: &Request) -> Response {
        Connection::open(self.envoys[0].listener(listener)).send(&self.addressed(request))
    }

    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response> {
        let request = self.addressed(request);
        let workers = self.world.setup.workers as usize;
        let are_new = self.connections.is_empty();
        if are_new {
            let number = workers * CONNECTIONS_PER_WORKER;
            self.connections = (0..number).map(|_| self.envoys[0].connect()).collect();
        }
        let replies = self.connections.iter_mut().map(|connection| connection.send(&request)).collect();
        if are_new {
            let by_worker = self.envoys[0].connections_by_worker();
            assert!(by_worker.len() == workers && by_worker.iter().all(|n| *n > 0), "{by_worker:?}");
        }
        replies
    }

    fn send_and_disconnect(&mut self, request: &Request, copies: usize, after: Duration) {
        let bytes = self.addressed(request).encode();
        let mut connections: Vec<_> = (0..copies).map(|_| self.envoys[0].connect()).collect();
        for connection in &mut connections {
            connection.write(&bytes).expect("a request written");
        }
        std::thread::sleep(after);
    }

    fn advance(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn now(&self) -> f64 {
        wait::unix_now()
    }

    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.envoys[0].metric(name, labels)
    }

    fn values(&mut self, name: &str) -> Vec<f64> {
        self.envoys[0].scrape().named(name).iter().map(|sample| sample.value).collect()
    }

    fn stats(&mut self) -> Vec<String> {
        self.envoys[0].admin("/stats?filter=rate_limiter_").lines().map(str::to_owned).collect()
    }

    fn log(&mut self) -> Vec<String> {
        self.lines(|line| !line.contains("[debug]"))
    }

    fn warnings(&mut self) -> Vec<String> {
        self.lines(|line| line.contains("[warning]") || line.contains("[error]"))
    }

    fn upstream_targets(&mut self) -> Vec<String> {
        self.world.upstream.targets()
    }

    fn serve(&mut self, path: &str, served: Served) {
        lock(&self.world.documents).insert(path.to_owned(), served);
    }

    fn fetch_count(&mut self, path: &str) -> usize {
        self.world.source.targets().iter().filter(|target| *target == path).count()
    }

    fn deliver(&mut self, config: &Value) -> bool {
        self.envoys[0].deliver_and_wait(config)
    }

    fn redis(&mut self) -> &mut dyn scenarios::Redis {
        self.world.redis.as_mut().expect("a setup with a Redis")
    }
}

const HEALTH: &str = "system:health:status";

struct RealRedis(Redis);

impl scenarios::Redis for RealRedis {
    fn buckets(&mut self) -> Vec<String> {
        self.0.keys().into_iter().filter(|key| key != HEALTH).collect()
    }

    fn delete_bucket(&mut self, name: &str) {
        assert_eq!(self.0.command(&["DEL", name]).integer(), 1, "no bucket {name}");
    }

    fn health(&mut self) -> Option<String> {
        self.0.command(&["GET", HEALTH]).optional_text()
    }

    fn keeps_health(&mut self) -> bool {
        self.0.command(&["PTTL", HEALTH]).integer() == -1
    }

    fn set_health(&mut self, health: &str) {
        self.0.command(&["SET", HEALTH, health]);
    }

    fn scripts(&mut self) -> u64 {
        self.0.calls("evalsha") + self.0.calls("eval")
    }

    fn freeze(&mut self) {
        self.0.freeze();
    }

    fn thaw(&mut self) {
        self.0.thaw();
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    fn restart(&mut self) {
        self.0.restart();
    }
}
