//! The same random requests are sent to the hostile host and to a real Envoy; every response must be the same.
//!
//! No bucket refills during a script, so that responses do not depend on its duration. Of times only the presence is
//! compared; everything else is compared byte by byte: the status, the limiter's headers, the body.

use std::collections::BTreeMap;

use e2e::gateway::RealEnvoy;
use harness::random::Random;
use scenarios::support::{LONG_TIMEOUT_MS, SECRETS, TOKEN, in_redis, sha256_hex};
use scenarios::{Host, Request, Response, Setup};
use serde_json::{Value, json};

use crate::gateway::HostileHost;

/// One token in about ten days.
const NEVER: f64 = 0.000_001;

const REQUESTS: usize = 400;

/// Headers of the filter whose values are the same in both hosts.
const SAME: [&str; 9] = [
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-tier",
    "x-system-health",
    "retry-after",
    "content-type",
    "allow",
    "ratelimit-policy",
    "grpc-status",
];

/// Headers of the filter with times: only their number is compared.
const TIMED: [&str; 3] = ["x-ratelimit-reset", "x-processing-time", "ratelimit"];

fn config(random: &mut Random) -> Value {
    let tier = |capacity: u64, degraded: u64| {
        json!({
            "base": {"capacity": capacity, "refill_rate": NEVER},
            "degraded": {"capacity": degraded, "refill_rate": NEVER},
            "ttl": 3600,
        })
    };
    json!({
        "tiers": {
            "free": tier(5 + random.below(40), 3),
            "pro": tier(10 + random.below(40), 8),
            "open": {"unlimited": true},
            "shut": {"base": {"capacity": 0, "refill_rate": 0}, "ttl": 60},
        },
        "api_keys": {
            "pro": {"tier": "pro", "id": "pro"},
            "legacy": "free",
            "open": "open",
            "shut": "shut",
            format!("sha256:{}", sha256_hex(SECRETS[1])): {"tier": "pro", "id": "acme"},
        },
        "admin": {"token_sha256": sha256_hex(TOKEN)},
        "headers": {"ietf": random.below(2) == 0},
        "exempt_paths": ["/metrics", "/static/*"],
        "exempt_preflight": random.below(2) == 0,
    })
}

/// A request of any kind that the filter handles differently.
fn request(random: &mut Random) -> Request {
    let request = match random.below(10) {
        0 => admin(random),
        1 => Request::new("OPTIONS", "/x")
            .header("Origin", "https://example.org")
            .header("Access-Control-Request-Method", "PUT"),
        2 => Request::post("/a.B/C", [0_u8; 5])
            .header(
                "content-type",
                random.choose(&["application/grpc", "application/grpc+proto", "application/grpc-web"]),
            )
            .header("te", "trailers"),
        _ => {
            let paths = [
                "/",
                "/",
                "/",
                "/test",
                "/metrics",
                "/metrics?x",
                "/metrics/",
                "/static/a",
                "/static",
                "/health",
                "/health?x=1",
                "/Health",
                "/system/health/",
                "//system/health",
                "/a%20b?c=/health",
                "/500",
            ];
            let methods = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE"];
            Request::new(random.choose(&methods), random.choose(&paths))
        }
    };
    let request = with_key(random, request);
    let addresses = ["203.0.113.1", "203.0.113.2", "::ffff:203.0.113.1", "2001:db8::1", "2001:db8::2"];
    match random.below(4) {
        0 => request.from(random.choose(&addresses)),
        _ => request,
    }
}

fn with_key(random: &mut Random, request: Request) -> Request {
    const KEYS: [&[u8]; 14] = [
        b"pro",
        b"pro",
        b"legacy",
        b"open",
        b"shut",
        SECRETS[1].as_bytes(),
        b"PRO",
        b"",
        b"   ",
        b"pro\xff",
        b"\xff\xfe",
        b"pro, pro",
        b"a\tb",
        &[b'k'; 257],
    ];
    match random.below(4) {
        0 => request,
        1 => request.key(random.choose(&KEYS)).key(random.choose(&KEYS)),
        _ => request.header(random.choose(&["X-API-Key", "x-api-key", "X-aPi-KEY"]), random.choose(&KEYS)),
    }
}

/// A request to the endpoints. Wrong tokens are sent from several addresses, so that the login throttle refuses only
/// some of them.
fn admin(random: &mut Random) -> Request {
    let bodies = [
        r#"{"status":"DEGRADED"}"#,
        r#"{"status":"NORMAL"}"#,
        r#" { "status" : "DEGRADED" } "#,
        r#"{"status":"normal"}"#,
        r#"{"status":1}"#,
        r#"{"health":"NORMAL"}"#,
        r#"{"status":"NORMAL"} more"#,
        "[]",
        "{",
        "",
    ];
    let long = format!("{:1$}", r#"{"status":"NORMAL"}"#, 1_020 + random.below(8) as usize);
    let body = if random.below(3) == 0 { long.as_str() } else { random.choose(&bodies) };
    let method = random.choose(&["POST", "POST", "POST", "POST", "GET", "PUT"]);
    let request = Request::new(method, random.choose(&["/system/health", "/system/health?x"]));
    let request = match random.below(2) {
        0 => request.body(body),
        _ => request.chunks(body.as_bytes().chunks(7).map(<[u8]>::to_vec).collect()),
    };
    match random.below(5) {
        0 => request.header("X-Admin-Token", "c4nary-wrong").from(&format!("198.51.100.{}", random.below(3))),
        1 => request.from(&format!("198.51.100.{}", random.below(3))),
        _ => request.header("X-Admin-Token", TOKEN),
    }
}

/// A body that is one byte too long, which is rarely generated.
fn too_long() -> Request {
    let body = format!("{:1$}", r#"{"status":"NORMAL"}"#, 1_025);
    Request::post("/system/health", body).header("X-Admin-Token", TOKEN)
}

/// The parts of a response that must be the same in both hosts.
fn comparable(response: &Response) -> (u16, Vec<(&'static str, Vec<String>)>, String) {
    let mut headers: Vec<_> = SAME.iter().map(|name| (*name, response.all(name))).collect();
    for name in TIMED {
        headers.push((name, response.all(name).iter().map(|_| "a time".to_owned()).collect()));
    }
    for (name, values) in &mut headers {
        // Whole seconds: up to ten days, or the rest of a minute.
        if *name == "retry-after" {
            values.iter_mut().for_each(|value| *value = rounded(value));
        }
    }
    let text = response.text();
    let body = match text.split_once(r#""timestamp":"#) {
        Some((before, _)) => format!("{before}a time"),
        None => text,
    };
    (response.status, headers, body)
}

/// The magnitude of a number of seconds: a script takes time in a real Envoy, but none in the hostile host.
fn rounded(seconds: &str) -> String {
    let seconds: u64 = seconds.parse().expect("whole seconds");
    match seconds {
        1..=60 => "within a minute".to_owned(),
        _ => format!("about {} hours", (seconds + 1_800) / 3_600),
    }
}

/// Runs a script on both hosts; returns the first difference.
fn difference(seed: u64, setup: impl Fn(&Value) -> [Setup; 2]) -> Option<String> {
    let mut random = Random::new(seed);
    let [one, other] = setup(&config(&mut random));
    let (mut hostile, mut real) = (HostileHost.start(&one), RealEnvoy.start(&other));
    if one.has_redis {
        // Before that, `GET /health` reports that Redis is not connected.
        for gateway in [&mut hostile, &mut real] {
            gateway.send(&Request::get("/"));
            gateway.await_redis(0, "connected");
        }
    }
    let mut seen = BTreeMap::<u16, usize>::new();
    for number in 0..REQUESTS {
        let request = if number == 0 { too_long() } else { request(&mut random) };
        let [ours, envoys] =
            [hostile.send(&request), real.send(&request)].map(|response| comparable(&response));
        if ours != envoys {
            return Some(format!(
                "seed {seed}, request {number}: {request:?}\nhostile host {ours:?}\n  real Envoy {envoys:?}"
            ));
        }
        *seen.entry(ours.0).or_default() += 1;
    }
    println!("seed {seed}: {REQUESTS} responses agree, by status {seen:?}");
    for status in [200, 400, 403, 405, 413, 429, 500] {
        assert!(seen.contains_key(&status), "seed {seed} shows no {status}: {seen:?}");
    }
    None
}

fn setup(config: &Value) -> Setup {
    let failing = scenarios::Answer { status: 500, ..scenarios::Answer::ok("failed") };
    Setup::new().config(config).addresses().answer("/500", failing)
}

#[test]
fn a_real_envoy_and_the_hostile_host_send_the_same_responses() {
    for seed in 1..=3 {
        let found = difference(seed, |config| [setup(config), setup(config)]);
        assert!(found.is_none(), "{}", found.unwrap_or_default());
    }
}

/// The hostile host uses a model of Redis, the real Envoy a real one.
#[test]
fn both_hosts_send_the_same_responses_with_buckets_in_redis() {
    let setup = |config: &Value| {
        let setup = setup(&in_redis(config.clone(), LONG_TIMEOUT_MS, "local")).redis();
        [setup.clone(), setup]
    };
    let found = difference(4, setup);
    assert!(found.is_none(), "{}", found.unwrap_or_default());
}

/// With one token more in one of the two hosts, the comparison finds a difference.
#[test]
fn a_difference_is_detected() {
    let found = difference(1, |config| {
        let mut other = config.clone();
        let capacity = config["tiers"]["pro"]["base"]["capacity"].as_u64().expect("a capacity");
        other["tiers"]["pro"]["base"]["capacity"] = json!(capacity + 1);
        [setup(config), setup(&other)]
    });
    assert!(found.is_some_and(|found| found.contains("x-ratelimit-limit")), "no difference found");
}
