//! The compose files: valid by the specification, every mounted file exists, no secret in them; and the services of
//! `production.yml`, started on the loopback.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::load;
use e2e::port;
use e2e::shipped_files::{assert_schema, yaml};
use e2e::wait;
use serde_json::{Value, json};

use crate::manifests::changed;
use crate::production::{self, ADMIN_TOKEN, shipped};
use crate::shipped::repository_root;
use crate::support::{ONE_PER_HOUR, await_that, tier};

const FILES: [&str; 2] = ["docker-compose.yml", "deploy/compose/production.yml"];
const PRODUCTION: &str = FILES[1];

/// Shared by all limiters; so large that no single limiter, with two workers, stays below it by chance.
const CAPACITY: u64 = 60;

#[test]
fn the_compose_files_are_valid_by_the_specification() {
    for file in FILES {
        let change = ("image: redis", "image: [redis]\n    was: redis");
        assert_schema(&repository_root().join(file), "vendor.compose-spec", change, "image");
    }
}

#[test]
fn every_mounted_file_and_build_context_exists() {
    let mut found = 0;
    for file in FILES {
        let path = repository_root().join(file);
        let folder = path.parent().expect("a file in a folder");
        for (name, service) in services(&path) {
            let mounts = service["volumes"].as_array().into_iter().flatten();
            for mount in mounts.map(|mount| mount.as_str().expect("the short form")) {
                let source = mount.split(':').next().unwrap_or_default();
                if source.starts_with('.') {
                    assert!(folder.join(source).exists(), "{file}: {name} mounts {source}");
                    assert!(mount.split(':').nth(2).is_some_and(|mode| mode.starts_with("ro")), "{mount}");
                    found += 1;
                }
            }
            let build = &service["build"];
            if let Some(context) = build["context"].as_str().or(build.as_str()) {
                assert!(folder.join(context).join("Dockerfile").is_file(), "{file}: {name} builds {context}");
                found += 1;
            }
        }
    }
    assert!(found >= 11, "{found} mounts and builds");
}

#[test]
fn every_service_of_production_has_resource_limits_and_contains_no_secret() {
    let path = repository_root().join(PRODUCTION);
    let services = services(&path);
    assert_eq!(services.len(), 6);
    for (name, service) in &services {
        let image = service["image"].as_str().expect("an image");
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        assert!(tag.split('.').count() >= 3, "{name}: {image} has a full version");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert!(service["user"].as_str().is_some_and(|user| !["root", "0"].contains(&user)), "{name}");
        for limit in ["cpus", "memory"] {
            assert!(service["deploy"]["resources"]["limits"][limit].is_string(), "{name}: {limit}");
        }
        assert!(service["healthcheck"].is_object() || name == "upstream", "{name}");
    }

    // `make-secrets` creates every secret that the file uses.
    let compose = yaml(&path);
    let secrets = compose["secrets"].as_object().expect("secrets");
    let made = shipped("deploy/compose/make-secrets");
    for (name, secret) in secrets {
        assert_eq!(secret["file"], format!("secrets/{name}"));
        assert!(made.contains(&format!(" {name}")), "{name}");
    }
    for (name, service) in &services {
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let is_secret = variable.contains("PASSWORD") || variable.contains("TOKEN");
            let file = value.as_str().and_then(|value| value.strip_prefix("/run/secrets/"));
            assert!(!is_secret || file.is_some_and(|file| secrets.contains_key(file)), "{name}: {variable}");
        }
    }
    assert!(shipped(".gitignore").lines().any(|line| line == "/deploy/compose/secrets/"));
    assert!(shipped(".dockerignore").lines().any(|line| line == "deploy/compose/secrets"));
}

#[test]
fn three_limiters_behind_the_load_balancer_share_buckets_and_health() {
    let mut redis = production::redis();
    let upstream = production::upstream();
    let capacity_alone = |folder: &Path| {
        let tiers = json!({"free": tier(CAPACITY, ONE_PER_HOUR), "pro": tier(CAPACITY, ONE_PER_HOUR)});
        let keys = json!({"pro": {"tier": "pro", "id": "pro"}});
        for (name, document) in [("tiers.json", tiers), ("api_keys.json", keys)] {
            fs::write(folder.join("config").join(name), document.to_string()).expect("written");
        }
    };
    let start = || production::limiter(&redis, upstream.address(), capacity_alone).0;
    let mut limiters = vec![start(), start(), start()];
    let balancer = production::load_balancer(&limiters.iter().collect::<Vec<_>>());
    for limiter in &limiters {
        production::await_ready(limiter, "pro");
    }
    // Envoy passes the results of its health checks to its workers once a second.
    await_that("the load balancer sends to all three", || {
        balancer.send(&Request::get("/health"));
        let shares = shares(&balancer);
        shares.len() == 3 && !shares.contains(&0)
    });
    // For a refused caller, Redis is queried again after at most one second.
    await_that("a full bucket", || {
        redis.command(&["DEL", "rate_limit:pro"]);
        let reply = balancer.send(&Request::get("/test").key("pro"));
        reply.status == 200 && reply.json()["message"] == "Request successful!"
    });
    redis.command(&["DEL", "rate_limit:pro"]);

    let before = shares(&balancer);
    // A caller has the same bucket in every limiter.
    let counts = load::burst(balancer.address(), 8, 30, &Request::get("/test").key("pro"));
    assert_eq!(load::count(&counts, 200), CAPACITY, "{counts:?}");
    assert_eq!(load::count(&counts, 429), 240 - CAPACITY, "{counts:?}");
    let after = shares(&balancer);
    assert!(
        after.iter().zip(&before).all(|(after, before)| after - before > 20),
        "each limiter has its share: {after:?}"
    );

    assert_addresses_are_those_of_connections(&balancer, &redis);
    assert_health_is_shared(&balancer, &limiters);
    assert_only_metrics_and_readiness_are_exposed(&limiters[0]);
    assert_healthcheck_command_works(&balancer);

    // The loss of a limiter fails no other request, and neither does the loss of Redis.
    drop(limiters.pop());
    let after_a_loss = load::burst(balancer.address(), 4, 25, &Request::get("/test").key("unknown"));
    assert_eq!(load::count(&after_a_loss, 200) + load::count(&after_a_loss, 429), 100, "{after_a_loss:?}");
    redis.kill();
    let without_redis = load::burst(balancer.address(), 4, 25, &Request::get("/test").key("pro"));
    assert_eq!(load::count(&without_redis, 200) + load::count(&without_redis, 429), 100, "{without_redis:?}");
}

/// How many requests the load balancer has sent to each limiter.
#[track_caller]
fn shares(balancer: &Envoy) -> Vec<u64> {
    let clusters = balancer.admin("/clusters");
    let of_limiters = clusters.lines().filter(|line| line.starts_with("limiter::"));
    of_limiters.filter_map(|line| line.split_once("::rq_total::")?.1.parse().ok()).collect()
}

/// X-Forwarded-For from a client is ignored, and two clients are two callers.
#[track_caller]
fn assert_addresses_are_those_of_connections(balancer: &Envoy, redis: &e2e::redis::Redis) {
    for (last, forwarded) in [(2, "203.0.113.9"), (2, "203.0.113.10, 198.51.100.1"), (3, "127.0.0.2")] {
        let reply = Connection::open_from(last, balancer.address())
            .send(&Request::get("/test").forwarded_for(forwarded));
        assert_eq!((reply.status, reply.tier().as_str()), (200, "free"));
    }
    let tokens = |address: &str| redis.bucket(&format!("rate_limit:{address}")).map(|(tokens, _)| tokens);
    for (address, taken) in [("127.0.0.2", 2), ("127.0.0.3", 1)] {
        let left = tokens(address).unwrap_or_default();
        assert!(left.starts_with(&format!("{}.", CAPACITY - taken)), "{address} has {left:?}");
    }
    for made_up in ["203.0.113.9", "203.0.113.10", "198.51.100.1"] {
        assert_eq!(tokens(made_up), None);
    }
}

/// Health that is set through the load balancer applies to every limiter.
#[track_caller]
fn assert_health_is_shared(balancer: &Envoy, limiters: &[Envoy]) {
    let change = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
    assert_eq!(balancer.send(&change).status, 403);
    assert_eq!(balancer.send(&change.header("X-Admin-Token", ADMIN_TOKEN)).status, 200);
    for limiter in limiters {
        await_that("the same health everywhere", || {
            production::send(limiter, &Request::get("/system/health")).json()["health"] == "DEGRADED"
        });
    }
}

/// The listener that Prometheus scrapes does not expose Envoy's admin endpoint.
#[track_caller]
fn assert_only_metrics_and_readiness_are_exposed(limiter: &Envoy) {
    let send = |request: &Request| Connection::open(limiter.listener("metrics")).send(request);
    assert_eq!(send(&Request::get("/ready")).status, 200);
    let metrics = send(&Request::get("/stats/prometheus?filter=rate_limiter"));
    assert!(metrics.text().contains("rate_limiter_requests_total{"), "{}", metrics.text());
    for path in ["/", "/config_dump", "/stats", "/stats/prometheus/../../config_dump", "/ready/x"] {
        assert_eq!(send(&Request::get(path)).status, 404, "{path}");
    }
    for path in ["/quitquitquit", "/ready", "/stats/prometheus"] {
        assert_eq!(send(&Request::post(path, "")).status, 404, "{path}");
    }
}

/// The command that Docker runs in the container succeeds for an Envoy that serves, and fails for a closed port.
#[track_caller]
fn assert_healthcheck_command_works(balancer: &Envoy) {
    let compose = yaml(&repository_root().join(PRODUCTION));
    let test = &compose["services"]["lb"]["healthcheck"]["test"];
    assert_eq!(&compose["services"]["limiter"]["healthcheck"]["test"], test);
    let words: Vec<_> = test.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(words[..3], ["CMD", "bash", "-c"]);
    assert!(words[3].contains("/127.0.0.1/8000;"), "{}", words[3]);
    let is_healthy = |port: u16| {
        // As Compose passes it, with another port.
        let script = words[3].replace("$$", "$").replace("/8000;", &format!("/{port};"));
        let output = Command::new("bash").args(["-c", &script]).output().expect("bash");
        output.status.success()
    };
    assert!(is_healthy(balancer.address().port()));
    assert!(!is_healthy(e2e::upstream::refusing().port()));
}

/// The command that Docker runs in Redis' container passes the shipped file and the password to a real Redis.
#[test]
fn redis_requires_the_password_from_its_file() {
    let compose = yaml(&repository_root().join(PRODUCTION));
    let command = compose["services"]["redis"]["command"].as_array().expect("a list").clone();
    let words: Vec<_> = command.iter().filter_map(Value::as_str).collect();
    assert_eq!(words[..2], ["sh", "-c"]);
    let config = repository_root().join("deploy/compose/redis.conf").canonicalize().expect("a file");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let password = dir.path().join("redis_password");
    fs::write(&password, "from-the-file\n").expect("written");
    let port = port::reserve().port();
    let server = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    // As Compose passes it.
    let changes = [
        ("/etc/redis.conf", config.to_str().expect("text")),
        ("/run/secrets/redis_password", password.to_str().expect("text")),
        ("exec redis-server -", &format!("exec {server} - --bind 127.0.0.1 --port {port}")),
    ];
    let script = changed(&words[2].replace("$$", "$"), &changes);
    // It always ends: by `SHUTDOWN` below or by `timeout`.
    let mut redis = Command::new("timeout")
        .args(["60", "sh", "-c", &script])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("timeout");
    let mut stream = wait::until("Redis listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    stream.set_read_timeout(Some(wait::SOON)).expect("a socket");
    let mut replies = BufReader::new(stream.try_clone().expect("a socket")).lines();
    let mut send = |command: &str| {
        stream.write_all(format!("{command}\r\n").as_bytes()).expect("written");
        replies.next().expect("a reply").expect("text")
    };
    assert!(send("PING").starts_with("-NOAUTH"));
    assert!(send("AUTH wrong").starts_with("-WRONGPASS"));
    assert_eq!(send("AUTH from-the-file"), "+OK");
    assert_eq!(send("CONFIG GET maxmemory-policy"), "*2");
    let policy: Vec<_> = replies.by_ref().take(4).map(|line| line.expect("text")).collect();
    assert_eq!(policy[3], "noeviction");
    stream.write_all(b"SHUTDOWN NOSAVE\r\n").expect("written");
    assert!(redis.wait().expect("a child").success());
}

#[track_caller]
fn services(path: &Path) -> Vec<(String, Value)> {
    let compose = yaml(path);
    let services = compose["services"].as_object().expect("services").clone();
    services.into_iter().collect()
}
