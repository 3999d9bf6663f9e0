//! The processes of `deploy/compose/production.yml`, on the loopback: the shipped configurations with other addresses.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use e2e::client::{Connection, Request, Response};
use e2e::envoy::Envoy;
use e2e::port;
use e2e::redis::Redis;

use crate::manifests::{changed, socket_address};
use crate::shipped::{boot, repository_root};
use crate::support::await_that;

pub(crate) const ADMIN_TOKEN: &str = "production-token";
const REDIS_PASSWORD: &str = "0123456789abcdef";

/// An address whose port the system chooses.
const ANY_PORT: &str = "{address: 127.0.0.1, port_value: 0}";

/// The text of a shipped file.
#[track_caller]
pub(crate) fn shipped(file: &str) -> String {
    fs::read_to_string(repository_root().join(file)).expect(file)
}

/// The shipped Redis, which requires a password.
pub(crate) fn redis() -> Redis {
    let config = shipped("deploy/compose/redis.conf");
    let password = format!("requirepass {REDIS_PASSWORD}");
    let lines = config.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<_> = lines.chain([password.as_str()]).collect();
    Redis::start_with(&lines)
}

/// One limiter, and the folder with its `config`. `documents` may change them before it starts.
#[track_caller]
pub(crate) fn limiter(
    redis: &Redis,
    upstream: SocketAddr,
    documents: impl FnOnce(&Path),
) -> (Envoy, PathBuf) {
    let env = [("ADMIN_TOKEN", ADMIN_TOKEN), ("REDIS_PASSWORD", REDIS_PASSWORD)];
    boot(&on_this_machine(&shipped("deploy/compose/limiter.yaml"), redis, upstream), &env, |folder| {
        // The containers have a tmpfs here.
        fs::create_dir(folder.join("run")).expect("a folder");
        documents(folder);
    })
}

/// The bootstrap of a limiter with addresses of this machine. Its Redis timeout is long, and it fetches its documents
/// every second.
#[track_caller]
pub(crate) fn on_this_machine(bootstrap: &str, redis: &Redis, upstream: SocketAddr) -> String {
    // The address of the admin endpoint, and of the cluster that leads to it.
    let text = bootstrap.replace("{address: 127.0.0.1, port_value: 9901}", &socket_address(port::reserve()));
    changed(
        &text,
        &[
            ("{address: 0.0.0.0, port_value: 8000}", ANY_PORT),
            ("{address: 0.0.0.0, port_value: 9902}", ANY_PORT),
            ("{address: redis, port_value: 6379}", &socket_address(redis.address())),
            ("{address: upstream, port_value: 8080}", &socket_address(upstream)),
            ("\"timeout_ms\": 20,", "\"timeout_ms\": 5000,"),
            ("\"ttl_seconds\": 20\n", "\"ttl_seconds\": 1\n"),
        ],
    )
}

/// Opens a connection to a limiter, to the listener that the load balancer uses.
#[track_caller]
pub(crate) fn connect(limiter: &Envoy) -> Connection {
    Connection::open(limiter.listener("service"))
}

/// Sends a request to a limiter, to the listener that the load balancer uses.
#[track_caller]
pub(crate) fn send(limiter: &Envoy, request: &Request) -> Response {
    connect(limiter).send(request)
}

/// Waits until a limiter has its documents, in which this key has the tier of the same name, and is connected to Redis.
#[track_caller]
pub(crate) fn await_ready(limiter: &Envoy, key: &str) {
    await_that("the documents, and Redis", || {
        let tier = send(limiter, &Request::get("/").key(key)).tier();
        let health = send(limiter, &Request::get("/health")).json();
        tier == key && health["redis"] == "connected"
    });
}

/// The stand-in for the service behind the limiters.
#[track_caller]
pub(crate) fn upstream() -> Envoy {
    // Adds an admin endpoint: the harness needs it to know when Envoy serves.
    let admin = format!("\nadmin: {{address: {{socket_address: {ANY_PORT}}}}}\nstatic_resources:");
    let changes = [("{address: 0.0.0.0, port_value: 8080}", ANY_PORT), ("\nstatic_resources:", &admin)];
    boot(&changed(&shipped("deploy/compose/upstream.yaml"), &changes), &[], |_| ()).0
}

/// The load balancer in front of these limiters, whose addresses replace the name `limiter`.
#[track_caller]
pub(crate) fn load_balancer(limiters: &[&Envoy]) -> Envoy {
    let endpoint = |address: &str| format!("{{endpoint: {{address: {{socket_address: {address}}}}}}}");
    let addresses = limiters.iter().map(|limiter| socket_address(limiter.listener("service")));
    let endpoints: Vec<_> = addresses.map(|address| endpoint(&address)).collect();
    let changes = [
        ("{address: 0.0.0.0, port_value: 8000}", ANY_PORT),
        ("{address: 127.0.0.1, port_value: 9901}", ANY_PORT),
        (&endpoint("{address: limiter, port_value: 8000}"), &endpoints.join(", ")),
    ];
    boot(&changed(&shipped("deploy/compose/lb.yaml"), &changes), &[], |_| ()).0
}
