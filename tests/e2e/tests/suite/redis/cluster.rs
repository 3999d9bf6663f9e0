//! A Redis Cluster behind Envoy's `redis_proxy`: the same filter, and exact limits, also while slots move.

use std::time::Duration;

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load;
use e2e::redis_cluster::RedisCluster;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::{Map, Value, json};

use super::{
    FALLBACKS, LONG_TIMEOUT_MS, RECOVERY, assert_statuses, await_counted, await_healths, await_redis,
    in_redis, total,
};
use crate::support::{set_health, two_tiers};

const CAPACITY: u64 = 137;
/// The capacity of the key that is used while the cluster changes.
const LARGE: u64 = 4_000;

fn start(cluster: &RedisCluster, config: &Value, timeout_ms: u64, policy: &str) -> Envoy {
    let config = in_redis(config.clone(), timeout_ms, policy);
    Setup::new().config(&config).redis_nodes(&cluster.addresses()).quiet().start()
}

/// Two tiers, and keys `c4nary-key-0` and so on in the smaller one.
fn config(keys: usize) -> Value {
    let api_keys: Map<String, Value> = (0..keys)
        .map(|n| (format!("c4nary-key-{n}"), json!({"tier": "pro", "id": format!("id-{n}")})))
        .collect();
    let mut config = two_tiers(LARGE, CAPACITY);
    config["api_keys"] = Value::Object(api_keys);
    config["api_keys"]["large"] = json!({"tier": "free", "id": "large"});
    config
}

#[test]
fn limits_are_exact_for_keys_of_every_master() {
    let _alone = wait::alone();
    let cluster = RedisCluster::start();
    let rounds = 9;
    let config = config(rounds);
    let envoys = [(); 2].map(|()| start(&cluster, &config, LONG_TIMEOUT_MS, "local"));
    let addresses = envoys.each_ref().map(Envoy::address);
    for envoy in &envoys {
        // `redis_proxy` has to find the nodes first.
        await_redis(envoy, "connected");
    }
    let mut by_master = [0; 3];
    for round in 0..rounds {
        let request = Request::get("/").key(format!("c4nary-key-{round}"));
        let counts = load::burst_on_each(&addresses, 8, 16, &request);
        assert_eq!(load::count(&counts, 200), CAPACITY, "round {round}: {counts:?}");
        assert_eq!(load::count(&counts, 429), 256 - CAPACITY, "round {round}: {counts:?}");
        let bucket = format!("rate_limit:id-{round}");
        let owner = cluster.master_of(&bucket);
        by_master[owner] += 1;
        assert!(cluster.master(owner).bucket(&bucket).is_some(), "{bucket} is on the master of its slot");
    }
    assert!(by_master.iter().all(|keys| *keys > 0), "every master has keys: {by_master:?}");
    for envoy in &envoys {
        await_counted(envoy, rounds * 128);
        assert_eq!(total(envoy, FALLBACKS), 0.0, "Redis has decided all requests");
    }
    set_health(&envoys[0], "DEGRADED");
    await_healths([&envoys[1]], ["DEGRADED"]);
}

/// Sends requests of one key while `change` runs, then spends the remaining tokens.
#[track_caller]
fn assert_limit_is_exact_during(cluster: &RedisCluster, change: impl FnOnce()) {
    let envoy = start(cluster, &config(1), LONG_TIMEOUT_MS, "deny");
    let request = Request::get("/").key("large");
    assert_eq!(envoy.send(&request).status, 200);
    let pause = Duration::from_millis(5);
    let ((), during) = load::during(envoy.address(), 4, pause, &request, || {
        std::thread::sleep(Duration::from_millis(300));
        change();
        std::thread::sleep(Duration::from_millis(1_500));
    });
    assert!(load::count(&during, 200) > 200, "{during:?}");
    assert_eq!(during.len(), 1, "Redis decides all requests: {during:?}");
    let after = load::burst(envoy.address(), 8, 550, &request);
    let admitted = 1 + load::count(&during, 200) + load::count(&after, 200);
    assert_eq!(admitted, LARGE, "{during:?} then {after:?}");
}

#[test]
fn the_limit_stays_exact_while_a_slot_moves_under_load() {
    let _alone = wait::alone();
    let cluster = RedisCluster::start();
    let bucket = "rate_limit:large";
    let target = (cluster.master_of(bucket) + 1) % 3;
    assert_limit_is_exact_during(&cluster, || cluster.migrate_slot_of(bucket, target));
    assert!(cluster.master(target).bucket(bucket).is_some(), "the bucket has moved");
}

#[test]
fn the_limit_stays_exact_while_a_replica_takes_over_under_load() {
    let _alone = wait::alone();
    let cluster = RedisCluster::start();
    // The bucket must be on the first master, which fails over. The health key may be on any master.
    let bucket = "rate_limit:large";
    if cluster.master_of(bucket) != 0 {
        cluster.migrate_slot_of(bucket, 0);
    }
    assert_limit_is_exact_during(&cluster, || cluster.fail_over());
    assert!(cluster.replica().bucket(bucket).is_some(), "the replica has taken over");
}

#[test]
fn after_the_loss_of_a_master_the_policy_decides_until_its_replica_takes_over() {
    let _alone = wait::alone();
    let mut cluster = RedisCluster::start();
    let config = config(64);
    let envoy = start(&cluster, &config, 100, "deny");
    await_redis(&envoy, "connected");
    let on_first: Vec<_> =
        (0..64).filter(|n| cluster.master_of(&format!("rate_limit:id-{n}")) == 0).take(4).collect();
    assert!(!on_first.is_empty());
    let request = |client: usize, _: &[load::Exchange]| {
        Request::get("/").key(format!("c4nary-key-{}", on_first[client % on_first.len()]))
    };
    let pause = Duration::from_millis(20);
    let ((), exchanges) = load::observe(&[envoy.address()], 4, pause, request, || {
        std::thread::sleep(Duration::from_millis(300));
        cluster.kill_first_master();
        wait::until_within(RECOVERY, "the replica decides", || {
            let replies =
                on_first.iter().map(|n| envoy.send(&Request::get("/").key(format!("c4nary-key-{n}"))));
            replies.map(|reply| reply.status).all(|status| status != 503).then_some(())
        });
    });
    assert_statuses(&exchanges, &[200, 429, 503]);
    assert!(exchanges.iter().any(|exchange| exchange.status() == 503), "the policy decides for some time");
}
