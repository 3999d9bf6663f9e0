//! The behaviour of the filter, as scenarios that run in two hosts: a real Envoy, and the hostile host of
//! `tests/wasm-host`.
//!
//! A scenario is a function that starts a [`Gateway`] and checks responses to clients. It does not use sockets, threads
//! or clocks. It waits for conditions: the hostile host then advances its clock, a test with a real Envoy checks the
//! condition repeatedly. `build.rs` lists the scenarios, and each host has a test for every one.
//!
//! | end-to-end suite | here | only with a real Envoy, and why |
//! |---|---|---|
//! | `answers` | headers, their groups, an upstream's own copies, times | resets, timeouts and missing routes, which Envoy answers; a connection that stays open |
//! | `identity` | all but two | a NUL byte, which Envoy rejects itself; keys over HTTP/2 |
//! | `addresses` | grouping, prefixes, mapped addresses | trusted hops in `x-forwarded-for`; listeners for both families |
//! | `paths` | spellings without normalisation, queries | normalisation; absolute targets; HTTP/2 |
//! | `exemptions`, `grpc`, `environment`, `health_change` | all | |
//! | `endpoints` | every row of the specification's table | half a body, `100-continue` and trailers on a real connection |
//! | `brute_force` | counting, on every worker | concurrent guesses on many connections |
//! | `metrics` | counters and gauges | timings, lost races |
//! | `config_source` | [`documents`]: valid, invalid, late, aborted, missing | files that are saved, and Envoy that serves them |
//! | `redis::basics` | [`redis_buckets`]: namespaces, deletion | contents and expiry in a real Redis; HTTP/2; clients that disconnect |
//! | `redis::deny_cache` | [`redis_buckets`]: refusals, and what clears them | floods |
//! | `redis::health` | [`redis_health`] | a Redis that is a replica, full or flushed; Envoys that start later |
//! | `redis::auth` | [`redis_outages`]: valid and wrong passwords | users, ACLs and TLS of a real Redis |
//! | `redis::faults` | [`redis_outages`]: frozen, killed, recovered | every fault under load, with fault injection |

pub mod addresses;
pub mod answers;
pub mod brute_force;
pub mod deliveries;
pub mod documents;
pub mod endpoints;
pub mod environment;
pub mod exemptions;
pub mod facts;
pub mod grpc;
pub mod health_change;
pub mod identity;
pub mod measured_health;
pub mod metrics;
pub mod paths;
pub mod redis_buckets;
pub mod redis_health;
pub mod redis_outages;
pub mod support;

mod message;

pub use message::{Body, Request, Response};
use std::time::Duration;

use serde_json::Value;

// The macro `scenarios`.
include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));

/// A host of the filter.
pub trait Host {
    fn start(&self, setup: &Setup) -> Box<dyn Gateway>;

    /// Starts it with a configuration that it must reject; returns its log.
    fn start_refused(&self, setup: &Setup) -> String;
}

pub trait Gateway {
    /// Sends one request, to any worker.
    fn send(&mut self, request: &Request) -> Response;

    /// Sends the same request to every worker at least once.
    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response>;

    /// Sends `copies` at once, each on its own connection, and closes the connections after `after`.
    fn send_and_disconnect(&mut self, request: &Request, copies: usize, after: Duration);

    fn advance(&mut self, time: Duration);

    /// Unix time in seconds.
    fn now(&self) -> f64;

    /// A counter or gauge, `None` if it does not exist (yet). Workers report once a second.
    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64>;

    /// The names of all stats of the filter.
    fn stats(&mut self) -> Vec<String>;

    /// The targets of the requests that the upstream has received.
    fn upstream_targets(&mut self) -> Vec<String>;

    /// Sets the response of the cluster `config_files` to this path.
    fn serve(&mut self, path: &str, served: Served);

    /// How often the filter has fetched a document.
    fn fetch_count(&mut self, path: &str) -> usize;

    /// The values of a metric for all labels.
    fn values(&mut self, name: &str) -> Vec<f64>;

    /// The log lines at `info` or above.
    fn log(&mut self) -> Vec<String>;

    /// The warnings and errors in the log.
    fn warnings(&mut self) -> Vec<String>;

    /// Sends one request to another listener of the setup.
    fn send_to_listener(&mut self, listener: &str, request: &Request) -> Response;

    /// Sends one request to another Envoy of the setup; the first is 0.
    fn send_via(&mut self, envoy: usize, request: &Request) -> Response;

    /// Delivers a plugin configuration to all workers; returns whether it was accepted.
    fn deliver(&mut self, config: &Value) -> bool;

    fn redis(&mut self) -> &mut dyn Redis;
}

/// A Redis that the filter uses.
pub trait Redis {
    /// The names of all buckets.
    fn buckets(&mut self) -> Vec<String>;

    fn delete_bucket(&mut self, name: &str);

    /// The stored health.
    fn health(&mut self) -> Option<String>;

    /// Whether the stored health does not expire.
    fn keeps_health(&mut self) -> bool;

    /// Writes the health, as an operator would.
    fn set_health(&mut self, health: &str);

    /// How often a script was run.
    fn scripts(&mut self) -> u64;

    /// It accepts connections, but does not reply.
    fn freeze(&mut self);

    /// Ends [`Redis::freeze`].
    fn thaw(&mut self);

    /// Its connections break, and it refuses new ones.
    fn kill(&mut self);

    fn restart(&mut self);
}

/// The response of the cluster `config_files` for a document.
#[derive(Clone, Debug)]
pub enum Served {
    /// `200` with this body.
    Document(Vec<u8>),
    /// This status without a body.
    Status(u16),
    /// It aborts in the middle of the body.
    BreaksOff,
    /// It does not answer at all.
    Never,
}

/// The state of the cluster `config_files`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It serves the setup's documents.
    Serves,
    Refuses,
    /// Envoy has no such cluster.
    Missing,
}

/// The configuration of a gateway. Defaults: two workers, one client, an upstream that answers `ok`.
#[derive(Clone, Debug)]
pub struct Setup {
    pub config: Option<Value>,
    pub workers: u32,
    /// The VM's environment.
    pub variables: Vec<(String, String)>,
    /// Whether a request sets the address of its client.
    pub has_addresses: bool,
    /// Whether bodies reach a filter that waits for one: `allow_on_headers_stop_iteration`.
    pub passes_bodies: bool,
    /// Whether Envoy keeps the filter's stats.
    pub keeps_stats: bool,
    /// Whether the upstream speaks gRPC.
    pub is_grpc: bool,
    /// The answers of the upstream by path.
    pub answers: Vec<(String, Answer)>,
    /// The responses of the cluster `config_files` by path.
    pub documents: Vec<(String, Served)>,
    pub source: Source,
    /// Whether configurations can be delivered by ECDS.
    pub takes_deliveries: bool,
    /// Other listeners, each with a plugin configuration of its own.
    pub listeners: Vec<(String, Value)>,
    /// The number of Envoys, all with the same Redis.
    pub envoys: usize,
    /// Whether there is a Redis; the configuration names the cluster [`REDIS_CLUSTER`].
    pub has_redis: bool,
    /// Whether it runs from the start.
    pub is_redis_up: bool,
    /// The password that it requires.
    pub redis_password: Option<&'static str>,
}

/// The Envoy cluster in a scenario's `store`.
pub const REDIS_CLUSTER: &str = "redis";

/// An answer of the upstream.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The latency of the upstream.
    pub after: Duration,
}

impl Answer {
    /// `200` with this body.
    pub fn ok(body: &str) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.to_owned(), after: Duration::ZERO }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// The filter without any configuration.
    pub fn new() -> Self {
        Self {
            config: None,
            workers: 2,
            variables: Vec::new(),
            has_addresses: false,
            passes_bodies: true,
            keeps_stats: true,
            is_grpc: false,
            answers: Vec::new(),
            documents: Vec::new(),
            source: Source::Serves,
            takes_deliveries: false,
            listeners: Vec::new(),
            envoys: 1,
            has_redis: false,
            is_redis_up: true,
            redis_password: None,
        }
    }

    pub fn config(self, config: &Value) -> Self {
        Self { config: Some(config.clone()), ..self }
    }

    pub fn workers(self, workers: u32) -> Self {
        Self { workers, ..self }
    }

    /// Adds a variable to the VM's environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Requests set the address of their client.
    pub fn addresses(self) -> Self {
        Self { has_addresses: true, ..self }
    }

    /// Sets the upstream's answer to this path.
    pub fn answer(mut self, path: &str, answer: Answer) -> Self {
        self.answers.push((path.to_owned(), answer));
        self
    }

    /// Sets the document that the cluster `config_files` serves at this path.
    pub fn document(mut self, path: &str, document: &str) -> Self {
        self.documents.push((path.to_owned(), Served::Document(document.into())));
        self
    }

    pub fn listener(mut self, name: &str, config: &Value) -> Self {
        self.listeners.push((name.to_owned(), config.clone()));
        self
    }

    pub fn redis(self) -> Self {
        Self { has_redis: true, ..self }
    }

    /// The upstream's answer to a request target.
    pub fn answer_to(&self, target: &str) -> Answer {
        let known = self.answers.iter().find(|(path, _)| path == target);
        known.map_or_else(|| Answer::ok("ok"), |(_, answer)| answer.clone())
    }
}
