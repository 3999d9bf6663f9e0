//! A real Envoy as the scenarios want it: [`scenarios::Host`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use scenarios::{Gateway, Host, Request, Response};

use crate::client::Connection;
use crate::envoy::Envoy;
use crate::setup::Setup;
use crate::upstream::{Answer, Upstream};
use crate::{http2, sha256_hex, wait};

/// Connections for each worker, so that every worker has one.
const CONNECTIONS_PER_WORKER: usize = 10;

/// Starts real Envoys.
#[derive(Clone, Copy, Debug)]
pub struct RealEnvoy;

impl Host for RealEnvoy {
    fn start(&self, setup: &scenarios::Setup) -> Box<dyn Gateway> {
        let documents = Documents::default();
        let (upstream, prepared) = prepare(setup, &documents);
        let envoy = prepared.start();
        Box::new(Running { envoy, upstream, documents, setup: setup.clone(), connections: Vec::new() })
    }

    fn start_refused(&self, setup: &scenarios::Setup) -> String {
        prepare(setup, &Documents::default()).1.start_refused()
    }
}

/// What the cluster `config_files` answers, by path.
type Documents = Arc<Mutex<HashMap<String, String>>>;

struct Running {
    envoy: Envoy,
    upstream: Upstream,
    documents: Documents,
    setup: scenarios::Setup,
    /// At least one to every worker, once they are needed.
    connections: Vec<Connection>,
}

fn prepare(wanted: &scenarios::Setup, documents: &Documents) -> (Upstream, Setup) {
    for secret in scenarios::support::SECRETS {
        // Its hash is a secret, too.
        sha256_hex(secret);
    }
    let answers = wanted.clone();
    let upstream = Upstream::start(move |request| {
        let answer = answers.answer_to(&request.target);
        let respond = Answer::Respond(answer.status, answer.headers, answer.body.into());
        if answer.after > Duration::ZERO { Answer::Late(answer.after, Box::new(respond)) } else { respond }
    });
    lock(documents).extend(wanted.documents.iter().cloned());
    let served = Arc::clone(documents);
    let source = Upstream::start(move |request| match lock(&served).get(&request.target) {
        Some(document) => Answer::ok(document.clone()),
        None => Answer::with(404, &[]),
    });
    let mut setup = Setup::new().workers(wanted.workers).cluster("config_files", source.address());
    setup = match wanted.is_grpc {
        true => setup.http2_upstream(http2::grpc_server()),
        false => setup.upstream(upstream.address()),
    };
    if let Some(config) = &wanted.config {
        setup = setup.config(config);
    }
    if wanted.has_addresses {
        setup = setup.trusted_hops(1);
    }
    if !wanted.passes_bodies {
        setup = setup.without_bodies();
    }
    if !wanted.keeps_stats {
        setup = setup.without_filter_stats();
    }
    for (name, value) in &wanted.variables {
        setup = setup.env(name, value);
    }
    (upstream, setup)
}

fn lock(documents: &Documents) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
    documents.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// The request with its address where the connection manager looks for it.
    fn addressed(&self, request: &Request) -> Request {
        match &request.from {
            Some(address) if self.setup.has_addresses => request.clone().forwarded_for(address),
            Some(address) => panic!("from {address}, where callers have no addresses"),
            None => request.clone(),
        }
    }
}

impl Gateway for Running {
    fn send(&mut self, request: &Request) -> Response {
        let request = self.addressed(request);
        let is_grpc = request.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("content-type") && value.starts_with(b"application/grpc")
        });
        match is_grpc && self.setup.is_grpc {
            true => http2::send(self.envoy.address(), &request),
            false => self.envoy.send(&request),
        }
    }

    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response> {
        if self.connections.is_empty() {
            let workers = self.setup.workers as usize;
            self.connections = (0..workers * CONNECTIONS_PER_WORKER).map(|_| self.envoy.connect()).collect();
            let address = self.addressed(request);
            let replies = self.connections.iter_mut().map(|connection| connection.send(&address)).collect();
            let by_worker = self.envoy.connections_by_worker();
            assert!(by_worker.len() == workers && by_worker.iter().all(|n| *n > 0), "{by_worker:?}");
            return replies;
        }
        let request = self.addressed(request);
        self.connections.iter_mut().map(|connection| connection.send(&request)).collect()
    }

    fn pass(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn now(&self) -> f64 {
        wait::unix_now()
    }

    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.envoy.metric(name, labels)
    }

    fn stats(&mut self) -> Vec<String> {
        self.envoy.admin("/stats?filter=rate_limiter_").lines().map(str::to_owned).collect()
    }

    fn passed_on(&mut self) -> Vec<String> {
        self.upstream.targets()
    }

    fn serve(&mut self, path: &str, document: &str) {
        lock(&self.documents).insert(path.to_owned(), document.to_owned());
    }
}
