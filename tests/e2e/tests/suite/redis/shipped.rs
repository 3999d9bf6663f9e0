//! The shipped configurations with Redis, as a user starts them, except for ports and names.

use std::path::Path;

use e2e::certificates::Certificate;
use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::redis_cluster::RedisCluster;
use e2e::upstream::{Answer, Upstream};
use e2e::wait;
use serde_json::json;

use super::{HEALTH_PROPAGATION, await_redis, health_report};
use crate::manifests::{changed, socket_address};
use crate::shipped::{boot, on_any_ports};
use crate::support::assert_headers_complete;

const TOKEN: &str = "c4nary-token";
const PASSWORD: &str = "c4nary-shipped-password";
/// The variables that the shipped files name; those for a Redis Cluster have no password.
const WITH_PASSWORD: [(&str, &str); 2] = [("ADMIN_TOKEN", TOKEN), ("REDIS_PASSWORD", PASSWORD)];
const BUCKET: &str = "rate_limit:127.0.0.1";

/// Checks that two Envoys share a caller's bucket and health. The shipped timeout is 20 ms, which a busy machine may
/// exceed; then the test retries.
#[track_caller]
fn assert_share(envoys: [&Envoy; 2], owner: &Redis) {
    for envoy in envoys {
        await_redis(envoy, "connected");
    }
    let mut connections = envoys.map(Envoy::connect);
    wait::until("one bucket for both", || {
        owner.command(&["DEL", BUCKET]);
        let replies = connections.each_mut().map(|connection| connection.send(&Request::get("/")));
        for reply in &replies {
            assert_eq!(reply.status, 200);
            assert_headers_complete(reply, "free", 10, "NORMAL");
        }
        let (tokens, _) = owner.bucket(BUCKET)?;
        let is_one = replies.map(|reply| reply.remaining()) == [9, 8];
        (is_one && tokens.starts_with("8.")).then_some(())
    });
    let change = Request::post("/system/health", r#"{"status":"DEGRADED"}"#).header("X-Admin-Token", TOKEN);
    assert_eq!(connections[0].send(&change).status, 200);
    wait::until_within(HEALTH_PROPAGATION * 2, "one health for both", || {
        let reply = connections[1].send(&Request::get("/"));
        (reply.one("x-system-health") == "DEGRADED").then_some(())
    });
    let report = json!({"status": "healthy", "redis": "connected", "health": "DEGRADED"});
    assert_eq!(health_report(envoys[1]), report);
}

/// Starts two Envoys with this shipped bootstrap, after these changes. `prepare` gets the folder of each.
#[track_caller]
fn boot_two(
    path: &str,
    changes: &[(&str, &str)],
    variables: &[(&str, &str)],
    prepare: impl Fn(&Path),
) -> [Envoy; 2] {
    let bootstrap = changed(&on_any_ports(path), changes);
    [(); 2].map(|()| boot(&bootstrap, variables, &prepare).0)
}

#[test]
fn with_one_redis() {
    let redis = Redis::start_with(&[&format!("requirepass {PASSWORD}")]);
    let changes = [("{address: 127.0.0.1, port_value: 6379}", &*socket_address(redis.address()))];
    let envoys = boot_two("deploy/redis/envoy.yaml", &changes, &WITH_PASSWORD, |_| ());
    assert_share(envoys.each_ref(), &redis);
    wait::until("the demo's documents and upstream", || {
        let reply = envoys[0].send(&Request::get("/test").key("enterprise"));
        (reply.tier() == "enterprise").then(|| assert_eq!(reply.json()["message"], "Request successful!"))
    });
    wait::until("a bucket by the key's id", || {
        envoys[0].send(&Request::get("/").key("enterprise"));
        redis.bucket("rate_limit:enterprise")
    });
}

#[test]
fn with_one_redis_over_tls() {
    let upstream = Upstream::start(|_| Answer::ok("upstream"));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let certificate = Certificate::write(folder.path(), "redis.example.com");
    let redis = certificate.start_redis(&[&format!("requirepass {PASSWORD}")]);
    let changes = [
        ("{address: 127.0.0.1, port_value: 8080}", &*socket_address(upstream.address())),
        ("{address: 127.0.0.1, port_value: 6379}", &*socket_address(redis.tls_address())),
    ];
    let envoys = boot_two("deploy/redis-tls/envoy.yaml", &changes, &WITH_PASSWORD, |folder| {
        let place = folder.join("deploy/redis-tls");
        std::fs::create_dir_all(&place).expect("a folder");
        std::fs::copy(&certificate.authority, place.join("ca.pem")).expect("copied");
    });
    assert_share(envoys.each_ref(), &redis);
}

#[test]
fn with_a_redis_cluster() {
    let upstream = Upstream::start(|_| Answer::ok("upstream"));
    let cluster = RedisCluster::start();
    let nodes = cluster.addresses();
    let changes = [
        ("{address: 127.0.0.1, port_value: 8080}", &*socket_address(upstream.address())),
        ("{address: 127.0.0.1, port_value: 7000}", &*socket_address(nodes[0])),
        ("{address: 127.0.0.1, port_value: 7001}", &*socket_address(nodes[1])),
        ("{address: 127.0.0.1, port_value: 7002}", &*socket_address(nodes[2])),
    ];
    let envoys = boot_two("deploy/redis-cluster/envoy.yaml", &changes, &WITH_PASSWORD[..1], |_| ());
    assert_share(envoys.each_ref(), cluster.master(cluster.master_of(BUCKET)));
}
