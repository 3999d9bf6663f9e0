//! Outages of Redis: it starts late, stops, restarts, loses its scripts, and does not exist.

use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load::{self, Exchange, StatusCounts};
use e2e::redis::Redis;
use e2e::setup::{REDIS_CLUSTER, Setup};
use e2e::wait;
use e2e::{http2, upstream};
use serde_json::json;

use super::{
    FAILURES, FALLBACKS, LONG_TIMEOUT_MS, RECOVERY, REQUESTS, assert_no_failures, assert_statuses,
    await_counted, await_redis, client_capacity, client_request, clients, health_report, in_redis,
    long_timeout_setup, redis_setup, total, whole_tokens,
};
use crate::support::{ONE_PER_HOUR, assert_headers_complete, tier, two_tiers};

const TIMEOUT_MS: u64 = 100;

/// The maximum of `timeout_ms`.
const LONGEST_TIMEOUT_MS: u64 = 10_000;

fn short_timeout_setup(redis: &Redis, policy: &str) -> Setup {
    redis_setup(two_tiers(5, 10), TIMEOUT_MS, policy, redis.address())
}

#[test]
fn redis_is_killed_and_restarted_twenty_times_under_load() {
    let _alone = wait::alone();
    let mut redis = Redis::start();
    let envoy = redis_setup(clients(8), TIMEOUT_MS, "local", redis.address()).quiet().start();
    let pause = Duration::from_millis(5);
    let request = |client, _: &[Exchange]| client_request(client);
    let ((), exchanges) = load::observe(&[envoy.address()], 8, pause, request, || {
        for round in 0..20 {
            redis.kill();
            sleep(Duration::from_millis(20 * (round % 5)));
            redis.restart();
            sleep(Duration::from_millis(50 * (round % 7)));
        }
        await_redis(&envoy, "connected");
    });
    assert_statuses(&exchanges, &[200]);
    for exchange in &exchanges {
        let reply = exchange.answer.as_ref().expect("checked above");
        let capacity = client_capacity(exchange.connection);
        assert_headers_complete(reply, &format!("client-{}", exchange.connection), capacity, "NORMAL");
        assert!((capacity - 50_000..capacity).contains(&reply.remaining()), "{reply:?}");
    }
    let (p99, worst) = load::p99_and_longest(exchanges.iter().map(Exchange::delay).collect());
    let timeout = Duration::from_millis(TIMEOUT_MS);
    assert!(p99 < timeout + Duration::from_millis(60), "the 99th percentile is {p99:?}");
    assert!(worst < timeout + Duration::from_millis(260), "the maximum is {worst:?}");
    await_counted(&envoy, exchanges.len());
    assert!(total(&envoy, FALLBACKS) > 0.0, "some were decided locally");
    // At the end Redis decides everything again.
    wait::until_within(RECOVERY, "Redis decides for every client on every worker", || {
        let tokens = |n: usize| {
            redis.bucket(&format!("rate_limit:client-{n}")).map(|(tokens, _)| tokens.parse::<f64>().ok())
        };
        let before: Vec<_> = (0..8).map(tokens).collect();
        for n in 0..8 {
            envoy.send(&client_request(n));
        }
        (0..8).all(|n| tokens(n).is_some() && tokens(n) < before[n].or(Some(Some(f64::MAX)))).then_some(())
    });
}

#[test]
fn repeated_loss_of_the_script_affects_no_request() {
    let _alone = wait::alone();
    let redis = Redis::start();
    let envoy = long_timeout_setup(clients(4), &redis).start();
    let request = |client, _: &[Exchange]| client_request(client);
    let pause = Duration::from_millis(1);
    let (flushes, exchanges) = load::observe(&[envoy.address()], 4, pause, request, || {
        let (began, mut flushes) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(3) {
            redis.command(&["SCRIPT", "FLUSH"]);
            flushes += 1;
        }
        flushes
    });
    assert!(flushes > 100, "{flushes} flushes");
    assert_statuses(&exchanges, &[200]);
    for client in 0..4 {
        let mine = exchanges.iter().filter(|exchange| exchange.connection == client);
        for (nth, exchange) in (1..).zip(mine) {
            let reply = exchange.answer.as_ref().expect("checked above");
            assert_eq!(reply.remaining(), client_capacity(client) - nth, "request {nth} of client {client}");
        }
    }
    assert!(redis.calls("eval") > 20, "the script was sent again {} times", redis.calls("eval"));
    await_counted(&envoy, exchanges.len());
    assert_no_failures(&envoy);
}

#[test]
fn while_redis_loads_its_data_the_policy_decides() {
    let mut redis = Redis::start_with(&["key-load-delay 1000", "loading-process-events-interval-bytes 1024"]);
    let envoy = short_timeout_setup(&redis, "deny").start();
    let request = Request::get("/").key("pro");
    assert_eq!(envoy.send(&request).status, 200);
    // Loads for about three seconds.
    let fill = "for n = 1, 3000 do redis.call('SET', 'other:' .. n, n) end";
    redis.command(&["EVAL", fill, "0"]);
    redis.command(&["SAVE"]);
    redis.kill();
    redis.restart_loading();
    let loading = wait::until("LOADING noticed", || {
        let reply = envoy.send(&request);
        (reply.status == 503 && envoy.metric(FAILURES, &[("reason", "loading")]).is_some_and(|n| n > 0.0))
            .then_some(reply)
    });
    assert_eq!(loading.one("retry-after"), "1");
    let is_loading = redis.command(&["INFO", "persistence"]).text().contains("loading:1");
    assert!(is_loading, "the policy decided after Redis had loaded");
    wait::until("loaded", || {
        redis.command(&["INFO", "persistence"]).text().contains("loading:0").then_some(())
    });
    let loaded = Instant::now();
    await_redis(&envoy, "connected");
    wait::until_within(RECOVERY, "Redis decides", || (envoy.send(&request).status == 200).then_some(()));
    assert!(loaded.elapsed() < RECOVERY);
    assert_eq!(whole_tokens(&redis, "pro"), 8, "the bucket was kept");
}

#[test]
fn during_an_outage_local_applies_the_same_limits_exactly() {
    let _alone = wait::alone();
    let redis = Redis::start();
    let capacity = 50;
    let setup = redis_setup(two_tiers(5, capacity), TIMEOUT_MS, "local", redis.address());
    let envoy = setup.workers(4).quiet().start();
    await_redis(&envoy, "connected");
    redis.freeze();
    let request = Request::get("/").key("pro");
    let counts = load::burst(envoy.address(), 16, 20, &request);
    assert_eq!(counts, StatusCounts::from([(200, capacity), (429, 320 - capacity)]));
    assert_headers_complete(&envoy.send(&request), "pro", capacity, "NORMAL");
    assert_headers_complete(&envoy.send(&Request::get("/")), "free", 5, "NORMAL");
    await_counted(&envoy, 322);
    assert_eq!(total(&envoy, FALLBACKS), 322.0);
    redis.thaw();
}

#[test]
fn responses_of_the_policies() {
    let mut config = in_redis(two_tiers(2, 10), TIMEOUT_MS, "local");
    config["tiers"]["open"] = json!({"unlimited": true});
    config["tiers"]["closed"] = tier(0, ONE_PER_HOUR);
    config["api_keys"]["o"] = json!("open");
    config["api_keys"]["c"] = json!("closed");
    config["exempt_paths"] = json!(["/exempt"]);
    for (policy, status, grpc_status) in [("local", 429, "8"), ("allow", 200, "0"), ("deny", 503, "14")] {
        config["store"]["on_failure"] = json!(policy);
        let envoy = Setup::new()
            .config(&config)
            .redis(upstream::refusing())
            .http2_upstream(http2::grpc_server())
            .start();
        // Some before the breaker opens, some after.
        for round in 0..8 {
            let request = if round % 2 == 0 { Request::get("/") } else { Request::post("/", "body") };
            let reply = http2::send(envoy.address(), &request);
            let grpc = http2::send(envoy.address(), &http2::grpc_call("/demo.Greeter/Hello"));
            for reply in [&reply, &grpc] {
                assert_eq!((&*reply.tier(), &*reply.one("x-system-health")), ("free", "NORMAL"));
            }
            if policy == "local" && round == 0 {
                assert_headers_complete(&reply, "free", 2, "NORMAL");
                assert_eq!((reply.remaining(), grpc.remaining()), (1, 0));
                continue;
            }
            assert_eq!((reply.status, &*grpc.one("grpc-status")), (status, grpc_status), "{policy}");
            for reply in [&reply, &grpc] {
                for name in ["x-ratelimit-limit", "x-ratelimit-remaining"] {
                    assert_eq!(reply.has(name), policy == "local", "{name}, {policy}");
                }
                match policy {
                    "local" => assert!(reply.number("retry-after") >= 1),
                    "allow" => assert!(!reply.has("retry-after")),
                    _ => assert_eq!(reply.one("retry-after"), "1"),
                }
            }
            if policy == "deny" {
                assert_eq!((grpc.status, &*reply.one("content-type")), (200, "text/plain"));
                assert!(!reply.body.is_empty());
            }
        }
        // Requests without a bucket are not affected.
        assert_eq!(http2::send(envoy.address(), &Request::get("/").key("o")).status, 200);
        assert_eq!(http2::send(envoy.address(), &Request::get("/").key("c")).status, 429);
        assert_eq!(http2::send(envoy.address(), &Request::get("/exempt")).status, 200);
        assert_eq!(health_report(&envoy)["redis"], "disconnected");
        envoy.await_metric(FALLBACKS, &[("policy", policy)], 16.0);
        if policy == "deny" {
            envoy.await_metric(REQUESTS, &[("tier", "free"), ("status", "blocked")], 16.0);
        }
    }
}

#[test]
fn with_the_default_timeout_a_request_waits_for_twenty_milliseconds() {
    let _alone = wait::alone();
    let redis = Redis::start();
    let mut config = in_redis(two_tiers(5, 1_000), TIMEOUT_MS, "deny");
    config["store"].as_object_mut().expect("an object").remove("timeout_ms");
    let envoy = Setup::new().config(&config).redis(redis.address()).workers(1).quiet().start();
    let mut connection = envoy.connect();
    let request = Request::get("/").key("pro");
    let mut delays = Vec::new();
    for _ in 0..9 {
        wait::until_within(RECOVERY, "Redis decides", || {
            (connection.send(&request).status == 200).then_some(())
        });
        redis.freeze();
        let began = Instant::now();
        let reply = connection.send(&request);
        delays.push(began.elapsed());
        redis.thaw();
        assert_eq!(reply.status, 503);
    }
    delays.sort_unstable();
    let median = delays[delays.len() / 2];
    // A tick of five milliseconds, and the delay of this machine.
    let bounds = Duration::from_millis(20)..Duration::from_millis(20 + 5 + 10);
    assert!(bounds.contains(&median), "{delays:?}");
}

#[test]
fn a_thousand_waiting_requests_are_all_answered_after_the_timeout_or_recovery() {
    let _alone = wait::alone();
    for (policy, timeout_ms, status) in
        [("local", 1_500, 200), ("allow", 1_500, 200), ("deny", 1_500, 503), ("deny", LONG_TIMEOUT_MS, 200)]
    {
        let redis = Redis::start();
        let setup = redis_setup(two_tiers(5, 10_000), timeout_ms, policy, redis.address());
        let envoy = setup.workers(1).quiet().start();
        let request = Request::get("/").key("pro");
        assert_eq!(envoy.send(&request).status, 200);
        let mut waiting: Vec<_> = (0..1_000).map(|_| envoy.connect()).collect();
        redis.freeze();
        for connection in &mut waiting {
            connection.write(&request.encode()).expect("written");
        }
        if timeout_ms == LONG_TIMEOUT_MS {
            wait::until("all of them at Envoy", || {
                (envoy.stat("http.main.downstream_rq_active") >= 1_000).then_some(())
            });
            redis.thaw();
        }
        for (nth, connection) in waiting.iter_mut().enumerate() {
            let case = format!("{policy} after {timeout_ms} ms, request {nth}");
            let reply = connection.read("GET").unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!((reply.status, &*reply.tier()), (status, "pro"), "{case}");
        }
        await_counted(&envoy, 1_001);
    }
}

#[test]
fn if_the_queue_is_full_the_policy_decides_at_once() {
    let _alone = wait::alone();
    let redis = Redis::start();
    let setup = redis_setup(two_tiers(5, 100_000), LONGEST_TIMEOUT_MS, "deny", redis.address());
    let envoy = setup.workers(1).quiet().start();
    let request = Request::get("/").key("pro");
    assert_eq!(envoy.send(&request).status, 200);
    redis.freeze();
    let (connections, streams) = (170, 100);
    let requests = vec![request.clone(); streams];
    let replies = http2::send_on_each(envoy.address(), connections, &requests, || {
        wait::until("requests that the queue rejects", || {
            envoy.metric(FAILURES, &[("reason", "queue_full")]).filter(|count| *count > 0.0)
        });
        redis.thaw();
    });
    let with = |status| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!(with(200) + with(503), connections * streams);
    // The bound of the queue; it also contains commands about health.
    assert!((16_300..=16_384).contains(&with(200)), "{} of {} waited", with(200), replies.len());
    envoy.await_metric(FALLBACKS, &[("policy", "deny")], with(503) as f64);
    let left = 100_000 - 1 - with(200) as u64;
    assert_eq!(whole_tokens(&redis, "pro"), left, "each of them took a token");
    assert_eq!(envoy.send(&request).status, 200);
}

#[test]
fn a_worker_that_only_reads_health_does_not_report_redis_as_connected() {
    let redis = Redis::start();
    // With one connection, one worker has all requests; the other one may be the one that reads health, which a full
    // Redis still answers. Which worker reads it is random, so there are several Envoys.
    let envoys: Vec<_> = (0..5).map(|_| short_timeout_setup(&redis, "deny").workers(2).start()).collect();
    let mut connections: Vec<_> = envoys.iter().map(Envoy::connect).collect();
    for (envoy, connection) in envoys.iter().zip(&mut connections) {
        assert_eq!(connection.send(&Request::get("/").key("pro")).status, 200);
        await_redis(envoy, "connected");
    }
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for (nth, connection) in connections.iter_mut().enumerate() {
            assert_eq!(connection.send(&Request::get("/").key("pro")).status, 503);
            if began.elapsed() > Duration::from_secs(1) {
                let report = connection.send(&Request::get("/health")).json();
                assert_eq!(report["redis"], "disconnected", "Envoy {nth} after {:?}", began.elapsed());
            }
        }
        sleep(Duration::from_millis(50));
    }
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    envoys.iter().for_each(|envoy| await_redis(envoy, "connected"));
}

#[test]
fn with_an_unknown_cluster_the_policy_decides_and_it_is_logged() {
    // Read as a message of Envoy, the second name is valid.
    for name in [REDIS_CLUSTER, "app-redis"] {
        let mut config = in_redis(two_tiers(5, 10), TIMEOUT_MS, "local");
        config["store"]["cluster"] = json!(name);
        let envoy = Setup::new().config(&config).start();
        for remaining in (0..10).rev() {
            let reply = envoy.send(&Request::get("/").key("pro"));
            assert_eq!((reply.status, reply.remaining()), (200, remaining), "{name}");
        }
        assert_eq!(envoy.send(&Request::get("/").key("pro")).status, 429, "{name}");
        assert_eq!(health_report(&envoy)["redis"], "disconnected", "{name}");
        envoy.await_log(&["[warning][wasm]", "Redis lost", name]);
    }
}

#[test]
fn connecting_to_an_unreachable_address_times_out() {
    // A documentation address: packets to it are dropped, or the machine reports at once that there is no route.
    let nowhere = "192.0.2.1:6379".parse().expect("an address");
    let envoy = redis_setup(two_tiers(50, 10), TIMEOUT_MS, "deny", nowhere).start();
    let mut connection = envoy.connect();
    for attempt in 0..10 {
        let began = Instant::now();
        assert_eq!(connection.send(&Request::get("/")).status, 503);
        assert!(began.elapsed() < Duration::from_millis(TIMEOUT_MS + 500), "attempt {attempt}");
    }
    assert_eq!(health_report(&envoy)["redis"], "disconnected");
}

#[test]
fn deliveries_under_load_lose_no_request_where_a_replica_is_among_the_nodes() {
    let [replica, master] = [(); 2].map(|()| Redis::start());
    replica.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let nodes = [&replica, &master].map(Redis::address);
    let config = |free| in_redis(two_tiers(free, 3_000), LONG_TIMEOUT_MS, "local");
    let mut envoy = Setup::new().config(&config(10)).replica_set(&nodes).by_ecds().quiet().start();
    let address = envoy.address();
    let request = Request::get("/").key("pro");
    let pause = Duration::from_millis(5);
    let ((), during) = load::during(address, 6, pause, &request, || {
        for n in 1..=20 {
            assert!(envoy.deliver_and_wait(&config(10 + n)), "delivery {n}");
        }
    });
    let after = load::burst(address, 8, 400, &request);
    for counts in [&during, &after] {
        assert!(counts.keys().all(|status| *status == 200 || *status == 429), "{counts:?}");
    }
    let admitted = load::count(&during, 200) + load::count(&after, 200);
    assert_eq!(admitted, 3_000, "{during:?} then {after:?}");
    assert_no_failures(&envoy);
}

#[test]
fn a_delivery_while_requests_wait_for_a_frozen_redis_loses_none_of_them() {
    let redis = Redis::start();
    let config = |free| in_redis(two_tiers(free, 100), 2_000, "local");
    let mut envoy = Setup::new().config(&config(10)).redis(redis.address()).by_ecds().start();
    assert_eq!(envoy.send(&Request::get("/").key("pro")).status, 200);
    redis.freeze();
    let mut waiting: Vec<_> = (0..12).map(|_| envoy.connect()).collect();
    for connection in &mut waiting {
        connection.write(&Request::get("/").key("pro").encode()).expect("written");
    }
    assert!(envoy.deliver_and_wait(&config(11)));
    sleep(Duration::from_millis(200));
    redis.thaw();
    for connection in &mut waiting {
        connection.read_timeout(Duration::from_secs(5));
        let reply = connection.read("GET").expect("an answer");
        assert_eq!((reply.status, reply.tier().as_str(), reply.limit()), (200, "pro", 100));
    }
    await_redis(&envoy, "connected");
    assert_eq!(envoy.send(&Request::get("/").key("pro")).status, 200);
}
