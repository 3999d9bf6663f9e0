//! `preStop` of the manifests for Kubernetes and Istio, run as kubelet runs it, with the Envoy that it drains.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::upstream::{Answer, Upstream};
use e2e::wait;
use serde_json::Value;

use crate::shipped::repository_root;
use crate::support::{await_that, find};

/// The latency of the service behind the limiter.
const SERVICE: Duration = Duration::from_millis(300);

const CLIENTS: usize = 10;

/// The shortest and the longest drain in these tests. The script counts whole seconds, so it may end one second early.
const LEAST_S: u64 = 2;
const LIMIT_S: u64 = 6;
const ROUNDING: Duration = Duration::from_secs(1);

pub(crate) fn slow_upstream() -> Upstream {
    Upstream::start(|_| {
        thread::sleep(SERVICE);
        Answer::ok("from the service")
    })
}

/// Checks `preStop` of the only container of this pod. `start` starts its Envoy, of which `service` is the listener.
#[track_caller]
pub(crate) fn assert_pre_stop_drains(pod: &Value, service: &str, start: impl Fn() -> Envoy) {
    let container = &pod["containers"][0];
    assert_ends_in_time(container, pod);
    let envoy = start();
    assert_drains(container, &envoy, envoy.listener(service));
    let envoy = start();
    assert_ends(container, &envoy, envoy.listener(service));
}

/// After the longest drain, Envoy has some seconds left to exit.
#[track_caller]
fn assert_ends_in_time(container: &Value, pod: &Value) {
    let limit = find("$.env[?(@.name == 'DRAIN_SECONDS')].value", container);
    let limit = limit.first().and_then(|limit| limit.as_str()?.parse::<u64>().ok());
    let grace = pod["terminationGracePeriodSeconds"].as_u64();
    assert!(limit.zip(grace).is_some_and(|(limit, grace)| limit + 5 < grace), "{limit:?} {grace:?}");
}

/// Clients that keep their connections lose no request, and responses close these connections; the readiness probe
/// fails meanwhile. The drain ends when no connection is left.
#[track_caller]
fn assert_drains(container: &Value, envoy: &Envoy, service: SocketAddr) {
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = Connection::open(service);
                loop {
                    let response = connection.send(&Request::get("/test").key("pro"));
                    assert!([200, 429].contains(&response.status), "{}", response.status);
                    served.fetch_add(1, Ordering::Relaxed);
                    if response.closes_connection() {
                        break;
                    }
                }
            });
        }
        await_that("load", || served.load(Ordering::Relaxed) > 2 * CLIENTS as u64);
        let begun = Instant::now();
        let mut hook = run_pre_stop(container, envoy);
        await_that("the readiness probe fails", || {
            let ready = Connection::open(envoy.admin_address()).send(&Request::get("/ready"));
            ready.status == 503
        });
        assert!(hook.wait().expect("a child").success());
        let took = begun.elapsed();
        assert!(
            took + ROUNDING >= Duration::from_secs(LEAST_S) && took < Duration::from_secs(LIMIT_S),
            "{took:?}"
        );
        // No client waits for a response any more.
        assert!(wait::poll(SERVICE, || (connections(envoy) == 0).then_some(())).is_some());
    });
}

/// The drain does not wait longer than the limit for an idle connection that its client keeps open.
#[track_caller]
fn assert_ends(container: &Value, envoy: &Envoy, service: SocketAddr) {
    let _idle = Connection::open(service);
    let begun = Instant::now();
    assert!(run_pre_stop(container, envoy).wait().expect("a child").success());
    let took = begun.elapsed();
    let limit = Duration::from_secs(LIMIT_S);
    assert!(took + ROUNDING >= limit && took < limit + wait::SOON, "{took:?}");
}

fn connections(envoy: &Envoy) -> u64 {
    let stats = envoy.admin("/stats?filter=^http.*downstream_cx_active$");
    let clients = stats.lines().filter(|line| line.contains("service") || line.contains("outbound"));
    clients.filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum()
}

/// Starts the container's hook with the container's variables, and with this test's ports and times.
#[track_caller]
fn run_pre_stop(container: &Value, envoy: &Envoy) -> Child {
    let words = container["lifecycle"]["preStop"]["exec"]["command"].as_array().expect("a command");
    let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
    let ["bash", script] = words[..] else { panic!("{words:?}") };
    let script = repository_root().join("deploy").join(Path::new(script).file_name().expect("a file"));
    let mut command = Command::new("bash");
    command.arg(script);
    for variable in container["env"].as_array().expect("variables") {
        if let (Some(name), Some(value)) = (variable["name"].as_str(), variable["value"].as_str()) {
            command.env(name, value);
        }
    }
    command.env("DRAIN_ADMIN_PORT", envoy.admin_address().port().to_string());
    command.env("DRAIN_SECONDS", LIMIT_S.to_string()).env("DRAIN_LEAST_SECONDS", LEAST_S.to_string());
    command.spawn().expect("bash")
}
