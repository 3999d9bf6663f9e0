//! A hundred reloads of each kind under load: no request is lost, no token is lost or created.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load::{self, StatusCounts};
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use scenarios::documents;
use serde_json::{Value, json};

use crate::support::{ONE_PER_HOUR, await_that, await_that_within, tier, two_tiers};

const RELOADS: u64 = 100;
const CAPACITY: u64 = 3_000;
const CONNECTIONS: usize = 8;

fn request() -> Request {
    Request::get("/").key("pro")
}

/// Spends the remaining tokens. Checks that together with the tokens spent during the reloads they are exactly the
/// capacity, and that every request was admitted or refused.
#[track_caller]
fn assert_nothing_lost(envoy: &Envoy, during: &StatusCounts) {
    let left = load::burst(envoy.address(), 16, CAPACITY as usize / 10, &request());
    for counts in [during, &left] {
        let unexpected: Vec<_> = counts.keys().filter(|s| **s != 200 && **s != 429).collect();
        assert!(unexpected.is_empty(), "{counts:?}");
    }
    let admitted = load::count(during, 200) + load::count(&left, 200);
    assert_eq!(admitted, CAPACITY, "{during:?} then {left:?}");
}

/// The `n`th configuration: every odd one is invalid, every even one differs from all earlier ones.
fn nth_config(n: u64) -> Value {
    let mut config = two_tiers(10 + n, CAPACITY);
    config["headers"] = json!({"ietf": n.is_multiple_of(4), "processing_time": n.is_multiple_of(3)});
    if n % 2 == 1 {
        config["tiers"]["free"]["base"]["refill_rate"] = json!(-1);
    }
    config
}

#[test]
fn a_hundred_valid_and_invalid_deliveries_lose_no_request_and_no_token() {
    let mut envoy = Setup::new().config(&nth_config(0)).by_ecds().workers(4).quiet().start();
    let address = envoy.address();
    let pause = Duration::from_millis(20);
    let ((), during) = load::during(address, CONNECTIONS, pause, &request(), || {
        for n in 1..=RELOADS {
            let (received, refused) = envoy.deliveries();
            envoy.deliver(&nth_config(n));
            await_that(&format!("delivery {n} handled"), || {
                envoy.deliveries() == (received + 1, refused + n % 2)
            });
        }
    });
    assert!(load::count(&during, 200) > 100, "{during:?}");
    assert_nothing_lost(&envoy, &during);
    await_that("the last valid configuration on every worker", || {
        (0..12).all(|_| envoy.send(&Request::get("/")).limit() == 10 + RELOADS)
    });
}

#[test]
fn a_hundred_valid_and_invalid_documents_lose_no_request_and_no_token() {
    // New documents every second; in every second pair, one document is invalid.
    let fetched = AtomicU64::new(0);
    let source = Upstream::start(move |request| {
        let tiers = request.target == "/tiers.json";
        let n = if tiers { fetched.fetch_add(1, Ordering::Relaxed) } else { fetched.load(Ordering::Relaxed) };
        Answer::ok(match (tiers, n % 4) {
            (true, 1) | (false, 3) => format!("{{\"free\": {n}, "),
            (true, _) => json!({
                "free": tier(10 + n, ONE_PER_HOUR),
                "pro": tier(CAPACITY, ONE_PER_HOUR),
            })
            .to_string(),
            (false, _) => json!({
                "pro": {"tier": "pro", "id": "pro"},
                format!("key-{n}"): {"tier": "free", "id": "other"},
            })
            .to_string(),
        })
    });
    let mut config = documents::config();
    config["tiers"]["pro"] = tier(CAPACITY, ONE_PER_HOUR);
    let envoy =
        Setup::new().config(&config).cluster("config_files", source.address()).workers(4).quiet().start();
    let reloads =
        |result| envoy.metric("rate_limiter_config_reloads_total", &[("result", result)]).unwrap_or(0.0);
    let pause = Duration::from_millis(200);
    let limit = Duration::from_secs(240);
    let ((), during) = load::during(envoy.address(), CONNECTIONS, pause, &request(), || {
        await_that_within(limit, "a hundred reloads", || {
            reloads("applied") + reloads("rejected") >= RELOADS as f64
        });
    });
    assert!(reloads("applied") >= 40.0 && reloads("rejected") >= 20.0);
    assert!(load::count(&during, 200) > 100, "{during:?}");
    assert_nothing_lost(&envoy, &during);
}
