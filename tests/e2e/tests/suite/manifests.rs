//! Shared by the tests of the Kubernetes manifests: starting an Envoy from a manifest, and checking the limiter in it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::schemas::documents;
use e2e::client::{Connection, Request};
use e2e::envoy::{Envoy, filter_wasm};
use e2e::redis::Redis;
use e2e::upstream::{Answer, Upstream};
use e2e::wait;
use serde_json::Value;

use crate::production::shipped;
use crate::shipped::{launch, repository_root};
use crate::support::{assert_headers_complete, await_that};

pub(crate) const ADMIN_TOKEN: &str = "c4nary-manifest-token";
pub(crate) const REDIS_PASSWORD: &str = "c4nary-manifest-password";

/// The address of Redis in the manifests for Istio and Envoy Gateway.
pub(crate) const REDIS_ADDRESS: &str = "{address: redis.default.svc.cluster.local, port_value: 6379}";

/// The filter in the image of the project's Dockerfile.
const WASM_IN_IMAGE: &str = "/rate-limiter/target/dynamic_rate_limiter.wasm";

/// The documents of a shipped manifest with `changes`, as in [`changed`].
#[track_caller]
pub(crate) fn manifest(file: &str, changes: &[(&str, &str)]) -> Vec<Value> {
    documents(&changed(&shipped(file), changes))
}

/// `text` with `changes`; each must match exactly once.
#[track_caller]
pub(crate) fn changed(text: &str, changes: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        text = text.replace(from, to);
    }
    text
}

/// The one document of this kind and name.
#[track_caller]
pub(crate) fn object<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = documents.iter().filter(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    let first = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two of {kind} {name}");
    first
}

/// An address as the bootstraps write it.
pub(crate) fn socket_address(address: SocketAddr) -> String {
    format!("{{address: {}, port_value: {}}}", address.ip(), address.port())
}

/// A Redis that requires the password.
pub(crate) fn redis() -> Redis {
    Redis::start_with(&[&format!("requirepass {REDIS_PASSWORD}")])
}

pub(crate) fn upstream() -> Upstream {
    Upstream::start(|_| Answer::ok("from the service"))
}

/// The secrets in a container's environment. Every variable must refer to the Secret that the documentation creates.
#[track_caller]
pub(crate) fn environment(container: &Value) -> Vec<(&str, &'static str)> {
    let variables = container["env"].as_array().expect("variables").iter();
    let variables: Vec<_> = variables.filter(|variable| variable["value"].is_null()).collect();
    assert_eq!(variables.len(), 2);
    let value = |variable: &Value| {
        let source = &variable["valueFrom"]["secretKeyRef"];
        let key = source["key"].as_str().expect("a key");
        assert_eq!(source["name"], "rate-limiter");
        let creates = format!("--from-literal={key}=");
        assert!(shipped("docs/deploying.md").contains(&creates), "{creates}");
        match key {
            "ADMIN_TOKEN" => ADMIN_TOKEN,
            "REDIS_PASSWORD" => REDIS_PASSWORD,
            other => panic!("the limiter does not read {other}"),
        }
    };
    variables.iter().map(|variable| (variable["name"].as_str().expect("a name"), value(variable))).collect()
}

/// Checks that the init container copies the filter into the volume that the proxy's container mounts; returns the
/// mount path.
#[track_caller]
pub(crate) fn wasm_volume<'a>(init: &'a Value, proxy: &Value, volumes: &Value) -> &'a str {
    let command: Vec<_> =
        init["command"].as_array().expect("words").iter().filter_map(Value::as_str).collect();
    let ["cp", WASM_IN_IMAGE, others @ .., target] = &command[..] else { panic!("{command:?}") };
    for other in others {
        let other = other.strip_prefix("/rate-limiter/").expect("a file of the image");
        assert!(repository_root().join(other).is_file(), "{other}");
    }
    let place = target.trim_end_matches('/');
    let mount = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0]["mountPath"], place);
        mounts[0]["name"].clone()
    };
    let volume = mount(init);
    assert_eq!(mount(proxy), volume);
    assert_eq!(volumes.as_array().map(Vec::len), Some(1));
    assert_eq!(volumes[0]["name"], volume);
    place
}

/// Starts Envoy with this bootstrap and these arguments, in a new folder that replaces `place` and `{folder}` and
/// contains the filter. `prepare` may add files to it.
#[track_caller]
pub(crate) fn boot(
    bootstrap: &Value,
    place: &str,
    arguments: &[&str],
    env: &[(&str, &str)],
    prepare: impl FnOnce(&Path),
) -> Envoy {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path();
    let here = folder.display().to_string();
    let text = bootstrap.to_string().replace(place, &here).replace("{folder}", &here);
    fs::write(folder.join("envoy.json"), text).expect("written");
    std::os::unix::fs::symlink(filter_wasm(), folder.join("dynamic_rate_limiter.wasm")).expect("a link");
    prepare(folder);
    let arguments = [&["-c", "envoy.json", "--concurrency", "2"][..], arguments].concat();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.replace(place, &here)).collect();
    launch(dir, &arguments, env)
}

/// Checks that the shipped limits apply, and that the buckets are in Redis.
#[track_caller]
pub(crate) fn assert_limits(at: SocketAddr, redis: &Redis) {
    let send = |request: &Request| Connection::open(at).send(request);
    let of_pro = Request::get("/test").key("pro");
    await_that("Redis is connected", || send(&Request::get("/health")).json()["redis"] == "connected");
    let reply = wait::until("the key is known", || {
        let reply = send(&of_pro);
        (reply.tier() == "pro").then_some(reply)
    });
    assert_eq!((reply.status, reply.text().as_str()), (200, "from the service"));
    assert_headers_complete(&reply, "pro", 25, "NORMAL");
    let (tokens, _) = redis.bucket("rate_limit:pro").expect("a bucket in Redis");
    assert!(tokens.parse::<f64>().is_ok_and(|tokens| tokens < 25.0), "{tokens}");

    // Two tokens are added a second. To admit all of these would take more than twenty seconds.
    let mut connection = Connection::open(at);
    let replies: Vec<_> = (0..70).map(|_| connection.send(&of_pro)).collect();
    let refused = replies.iter().find(|reply| reply.status == 429).expect("a refusal");
    assert_headers_complete(refused, "pro", 25, "NORMAL");
    assert!(replies.iter().all(|reply| [200, 429].contains(&reply.status)));

    let keyless = send(&Request::get("/test"));
    assert_headers_complete(&keyless, "free", 10, "NORMAL");
    assert!(redis.bucket("rate_limit:127.0.0.1").is_some(), "{:?}", redis.keys());
}

/// Checks that only a request with the token changes health, and that the change is in Redis.
#[track_caller]
pub(crate) fn assert_health_is_set(at: SocketAddr, redis: &Redis) {
    let send = |request: &Request| Connection::open(at).send(request);
    let change = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    assert_eq!(send(&change).status, 403);
    let reply = send(&change.header("X-Admin-Token", ADMIN_TOKEN));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(redis.command(&["GET", "system:health:status"]).text(), "DEGRADED");
    await_degraded(at);
}

#[track_caller]
pub(crate) fn await_degraded(at: SocketAddr) {
    wait::until("health DEGRADED", || {
        let reply = Connection::open(at).send(&Request::get("/test"));
        (reply.one("x-system-health") == "DEGRADED").then(|| assert_eq!(reply.limit(), 2))
    });
}

/// Checks that the tier and the status are labels, not parts of the metric's name.
#[track_caller]
pub(crate) fn assert_labels(envoy: &Envoy) {
    for status in ["allowed", "limited"] {
        let labels = [("tier", "pro"), ("status", status)];
        wait::until("a labelled metric", || envoy.metric("rate_limiter_requests_total", &labels));
    }
}
