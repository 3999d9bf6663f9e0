//! Three Envoys with two workers each, one Redis, one bucket: exactly as many requests are admitted as there are
//! tokens, also on the first use of a bucket.

use std::net::SocketAddr;

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::{load, wait};
use serde_json::{Map, Value, json};

use super::{assert_no_failures, await_counted, long_timeout_setup};
use crate::support::two_tiers;

const ENVOYS: usize = 3;
const ROUNDS: usize = 20;
const CONNECTIONS: usize = 8;
const REQUESTS_EACH: usize = 16;
const CAPACITY: u64 = 137;

/// Each round has another caller; `nth` returns its request and the name of its bucket.
#[track_caller]
fn assert_exact_in_every_round(config: &Value, nth: impl Fn(usize) -> (Request, String)) {
    let redis = Redis::start();
    let start = |_| long_timeout_setup(config.clone(), &redis).trusted_hops(1).start();
    let envoys: Vec<Envoy> = (0..ENVOYS).map(start).collect();
    let addresses: Vec<SocketAddr> = envoys.iter().map(Envoy::address).collect();
    let sent = (ENVOYS * CONNECTIONS * REQUESTS_EACH) as u64;
    for round in 0..ROUNDS {
        let (request, bucket) = nth(round);
        let counts = load::burst_on_each(&addresses, CONNECTIONS, REQUESTS_EACH, &request);
        assert_eq!(load::count(&counts, 200), CAPACITY, "round {round}: {counts:?}");
        assert_eq!(load::count(&counts, 429), sent - CAPACITY, "round {round}: {counts:?}");
        let (tokens, _) = redis.bucket(&format!("rate_limit:{bucket}")).expect("a bucket in Redis");
        assert!(tokens.starts_with("0."), "round {round}: {tokens} left");
        for envoy in &envoys {
            assert_eq!(envoy.send(&request).status, 429, "round {round}, afterwards");
        }
    }
    for envoy in &envoys {
        await_counted(envoy, ROUNDS * (CONNECTIONS * REQUESTS_EACH + 1));
        assert_no_failures(envoy);
        let by_worker = envoy.connections_by_worker();
        assert!(by_worker.len() == 2 && by_worker.iter().all(|n| *n > 0), "{by_worker:?}");
    }
}

#[test]
fn one_key_admits_exactly_capacity_across_three_envoys() {
    let _alone = wait::alone();
    let keys: Map<String, Value> =
        (0..ROUNDS).map(|n| (format!("key-{n}"), json!({"tier": "pro", "id": format!("id-{n}")}))).collect();
    let mut config = two_tiers(1, CAPACITY);
    config["api_keys"] = Value::Object(keys);
    assert_exact_in_every_round(&config, |round| {
        (Request::get("/").key(format!("key-{round}")), format!("id-{round}"))
    });
}

#[test]
fn one_address_admits_exactly_capacity_across_three_envoys() {
    let _alone = wait::alone();
    assert_exact_in_every_round(&two_tiers(CAPACITY, 1), |round| {
        if round % 2 == 0 {
            let address = format!("203.0.113.{round}");
            (Request::get("/").forwarded_for(&address), address)
        } else {
            let network = format!("2001:db8:0:{round:x}");
            (Request::get("/").forwarded_for(&format!("{network}::1")), format!("{network}::/64"))
        }
    });
}
