//! Four workers, many connections, one bucket: exactly as many requests are admitted as there are tokens, also on the
//! first use of a bucket.

use std::net::SocketAddr;

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::{load, wait};
use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, tier, two_tiers};

const ROUNDS: usize = 20;
const CONNECTIONS: usize = 24;
const REQUESTS_EACH: usize = 20;
const CAPACITY: u64 = 137;

/// How callers are identified. Each round has another one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Identity {
    Key,
    Address,
}

impl Identity {
    pub(crate) fn config(self) -> Value {
        match self {
            Self::Key => {
                let mut config = two_tiers(1, CAPACITY);
                for round in 0..ROUNDS {
                    config["api_keys"][format!("key-{round}")] =
                        json!({"tier": "pro", "id": format!("id-{round}")});
                }
                config
            }
            Self::Address => two_tiers(CAPACITY, 1),
        }
    }

    /// The request of this round's caller, and the name of its bucket.
    fn request(self, round: usize) -> (Request, String) {
        let from = |address: &str| Request::get("/").forwarded_for(address);
        match self {
            Self::Key => (Request::get("/").key(format!("key-{round}")), format!("id-{round}")),
            Self::Address if round.is_multiple_of(2) => {
                let address = format!("203.0.113.{round}");
                (from(&address), address)
            }
            Self::Address => {
                let network = format!("2001:db8:0:{round:x}");
                (from(&format!("{network}::1")), format!("{network}::/64"))
            }
        }
    }
}

/// Checks in every round that exactly [`CAPACITY`] requests are admitted by all workers of these Envoys together.
/// `check` gets the name of the bucket after each round. Returns how many requests each Envoy has answered.
#[track_caller]
pub(crate) fn assert_exact(
    envoys: &[Envoy],
    workers: usize,
    identity: Identity,
    check: impl Fn(&str),
) -> usize {
    let addresses: Vec<SocketAddr> = envoys.iter().map(Envoy::address).collect();
    let connections = CONNECTIONS / envoys.len();
    for round in 0..ROUNDS {
        let (request, bucket) = identity.request(round);
        let counts = load::burst_on_each(&addresses, connections, REQUESTS_EACH, &request);
        assert_eq!(load::count(&counts, 200), CAPACITY, "round {round}: {counts:?}");
        let refused = (CONNECTIONS * REQUESTS_EACH) as u64 - CAPACITY;
        assert_eq!(load::count(&counts, 429), refused, "round {round}: {counts:?}");
        check(&bucket);
        for envoy in envoys {
            assert_eq!(envoy.send(&request).status, 429, "round {round}, afterwards");
        }
    }
    for envoy in envoys {
        let by_worker = envoy.connections_by_worker();
        assert_eq!(by_worker.len(), workers, "{by_worker:?}");
        assert!(by_worker.iter().all(|n| *n >= ROUNDS as u64), "every worker took part: {by_worker:?}");
    }
    ROUNDS * (connections * REQUESTS_EACH + 1)
}

#[track_caller]
fn assert_exact_across_four_workers(identity: Identity) {
    let _alone = wait::alone();
    let envoy = Setup::new().config(&identity.config()).trusted_hops(1).workers(4).quiet().start();
    assert_exact(&[envoy], 4, identity, |_| {});
}

#[test]
fn one_key_admits_exactly_capacity_across_four_workers() {
    assert_exact_across_four_workers(Identity::Key);
}

#[test]
fn one_address_admits_exactly_capacity_across_four_workers() {
    assert_exact_across_four_workers(Identity::Address);
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
