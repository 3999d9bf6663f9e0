//! Four workers, many connections, one bucket: exactly as many requests are admitted as there are tokens, also on the
//! first use of a bucket.

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::{load, wait};
use serde_json::{Map, Value, json};

use crate::support::{ONE_PER_HOUR, tier, two_tiers};

const ROUNDS: usize = 20;
const CONNECTIONS: usize = 24;
const REQUESTS_EACH: usize = 20;
const CAPACITY: u64 = 137;

#[track_caller]
fn assert_exact(envoy: &Envoy, request: &Request, round: usize) {
    let counts = load::burst(envoy.address(), CONNECTIONS, REQUESTS_EACH, request);
    let all = (CONNECTIONS * REQUESTS_EACH) as u64;
    assert_eq!(load::count(&counts, 200), CAPACITY, "round {round}: {counts:?}");
    assert_eq!(load::count(&counts, 429), all - CAPACITY, "round {round}: {counts:?}");
    assert_eq!(envoy.send(request).status, 429, "round {round}, afterwards");
}

#[track_caller]
fn assert_all_workers_took_part(envoy: &Envoy) {
    let by_worker = envoy.connections_by_worker();
    assert_eq!(by_worker.len(), 4, "{by_worker:?}");
    assert!(by_worker.iter().all(|n| *n >= ROUNDS as u64), "{by_worker:?}");
}

#[test]
fn one_key_admits_exactly_capacity_across_four_workers() {
    let _alone = wait::alone();
    let api_keys: Map<String, Value> =
        (0..ROUNDS).map(|n| (format!("key-{n}"), json!({"tier": "pro", "id": format!("id-{n}")}))).collect();
    let mut config = two_tiers(1, CAPACITY);
    config["api_keys"] = Value::Object(api_keys);
    let envoy = Setup::new().config(&config).workers(4).quiet().start();
    for round in 0..ROUNDS {
        let request = Request::get("/").key(format!("key-{round}"));
        assert_exact(&envoy, &request, round);
    }
    assert_all_workers_took_part(&envoy);
}

#[test]
fn one_address_admits_exactly_capacity_across_four_workers() {
    let _alone = wait::alone();
    let envoy = Setup::new().config(&two_tiers(CAPACITY, 1)).trusted_hops(1).workers(4).quiet().start();
    for round in 0..ROUNDS {
        let address =
            if round % 2 == 0 { format!("203.0.113.{round}") } else { format!("2001:db8:0:{round:x}::1") };
        assert_exact(&envoy, &Request::get("/").forwarded_for(&address), round);
    }
    assert_all_workers_took_part(&envoy);
}

#[test]
fn a_refilling_bucket_admits_at_most_capacity_and_what_refilled() {
    let _alone = wait::alone();
    let (capacity, refill_rate) = (50, 100.0);
    let envoy = Setup::new()
        .config(&json!({"tiers": {"free": tier(capacity, refill_rate)}}))
        .workers(4)
        .quiet()
        .start();
    let started = std::time::Instant::now();
    let mut admitted = 0;
    let mut refused = 0;
    while started.elapsed().as_secs_f64() < 3.0 {
        let counts = load::burst(envoy.address(), 16, 25, &Request::get("/"));
        admitted += load::count(&counts, 200);
        refused += load::count(&counts, 429);
    }
    let most = capacity as f64 + refill_rate * started.elapsed().as_secs_f64();
    assert!(admitted as f64 <= most, "{admitted} admitted, at most {most}");
    // Under this load the bucket is never full, so almost no token is lost.
    assert!(refused > 0);
    assert!(admitted as f64 >= most * 0.8, "{admitted} admitted of {most}");
}

#[test]
fn health_changes_during_a_burst_mint_no_tokens() {
    let _alone = wait::alone();
    let mut config = two_tiers(1, 1);
    config["tiers"]["pro"] = json!({
        "base": {"capacity": 2_000, "refill_rate": ONE_PER_HOUR},
        "degraded": {"capacity": 2_000, "refill_rate": ONE_PER_HOUR * 2.0},
        "ttl": 3600,
    });
    let envoy = Setup::new().config(&config).workers(4).quiet().start();
    let request = Request::get("/").key("pro");
    let pause = std::time::Duration::from_millis(1);
    let ((), during) = load::during(envoy.address(), 16, pause, &request, || {
        for status in ["DEGRADED", "NORMAL"].repeat(20) {
            crate::support::set_health(&envoy, status);
        }
    });
    let after = load::burst(envoy.address(), 16, 200, &request);
    let admitted = load::count(&during, 200) + load::count(&after, 200);
    assert_eq!(admitted, 2_000, "{during:?} then {after:?}");
}
