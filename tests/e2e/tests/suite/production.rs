//! The processes of `deploy/compose/production.yml`, on the loopback: the shipped configurations with other addresses.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use e2e::client::{Connection, Request, Response};
use e2e::envoy::Envoy;
use e2e::port;
use e2e::redis::Redis;

use crate::shipped::{boot, repository_root};

pub(crate) const ADMIN_TOKEN: &str = "production-token";
const REDIS_PASSWORD: &str = "0123456789abcdef";

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

/// One limiter, and the folder with its `config`. Its Redis timeout is long, and it fetches its documents every second.
/// `documents` may change them before it starts.
#[track_caller]
pub(crate) fn limiter(
    redis: &Redis,
    upstream: SocketAddr,
    documents: impl FnOnce(&Path),
) -> (Envoy, PathBuf) {
    let admin = port::reserve();
    let at = |address: SocketAddr| format!("address: {}, port_value: {}}}", address.ip(), address.port());
    let changes = [
        ("address: 0.0.0.0, port_value: 8000}", "address: 127.0.0.1, port_value: 0}".to_owned()),
        ("address: 0.0.0.0, port_value: 9902}", "address: 127.0.0.1, port_value: 0}".to_owned()),
        (
            "\n  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}",
            format!("\n  address: {{socket_address: {{{}}}", at(admin)),
        ),
        ("address: 127.0.0.1, port_value: 9901}", at(admin)),
        ("address: redis, port_value: 6379}", at(redis.address())),
        ("address: upstream, port_value: 8080}", at(upstream)),
        ("\"timeout_ms\": 20,", "\"timeout_ms\": 5000,".to_owned()),
        ("\"ttl_seconds\": 20\n", "\"ttl_seconds\": 1\n".to_owned()),
    ];
    let changes = changes.each_ref().map(|(from, to)| (*from, to.as_str()));
    let env = [("ADMIN_TOKEN", ADMIN_TOKEN), ("REDIS_PASSWORD", REDIS_PASSWORD)];
    boot("deploy/compose/limiter.yaml", &changes, &env, |folder| {
        // The containers have a tmpfs here.
        fs::create_dir(folder.join("run")).expect("a folder");
        documents(folder);
    })
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

/// The stand-in for the service behind the limiters.
#[track_caller]
pub(crate) fn upstream() -> Envoy {
    let changes = [
        ("address: 0.0.0.0, port_value: 8080}", "address: 127.0.0.1, port_value: 0}"),
        // Adds an admin endpoint: the harness needs it to know when Envoy serves.
        (
            "\nstatic_resources:",
            "\nadmin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\nstatic_resources:",
        ),
    ];
    boot("deploy/compose/upstream.yaml", &changes, &[], |_| ()).0
}

/// The load balancer in front of these limiters, whose addresses replace the name `limiter`.
#[track_caller]
pub(crate) fn load_balancer(limiters: &[&Envoy]) -> Envoy {
    let endpoints: Vec<_> = limiters
        .iter()
        .map(|limiter| {
            let address = limiter.listener("service");
            let (ip, port) = (address.ip(), address.port());
            format!("{{endpoint: {{address: {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}")
        })
        .collect();
    let endpoints = endpoints.join(", ");
    let changes = [
        ("address: 0.0.0.0, port_value: 8000}", "address: 127.0.0.1, port_value: 0}"),
        ("address: 127.0.0.1, port_value: 9901}", "address: 127.0.0.1, port_value: 0}"),
        ("{endpoint: {address: {socket_address: {address: limiter, port_value: 8000}}}}", &endpoints),
    ];
    boot("deploy/compose/lb.yaml", &changes, &[], |_| ()).0
}
