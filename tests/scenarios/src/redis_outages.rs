//! Valid and invalid passwords, and outages of Redis: the policy decides, until Redis has recovered.

use serde_json::json;

use crate::support::{RECOVERY, in_redis, two_tiers};
use crate::{Host, Redis, Request, Setup};

const PASSWORD: &str = "c4nary-password";
const WRONG: &str = "c4nary-wrong-password";
const FALLBACKS: &str = "rate_limiter_fallback_decisions_total";
const FAILURES: &str = "rate_limiter_store_failures_total";

/// Much shorter than a test waits, and much longer than a reply takes on a busy machine.
const TIMEOUT_MS: u64 = 500;

fn locked(policy: &str, password: Option<&str>) -> Setup {
    let config = in_redis(two_tiers(5, 10), TIMEOUT_MS, policy);
    let setup = Setup { redis_password: Some(PASSWORD), ..Setup::new().config(&config).redis() };
    match password {
        Some(password) => setup.variable("REDIS_PASSWORD", password),
        None => setup,
    }
}

pub fn credentials_are_sent(host: &dyn Host) {
    let mut gateway = host.start(&locked("local", Some(PASSWORD)));
    gateway.await_metric(FAILURES, &[("reason", "oom")], 0.0);
    gateway.await_metric(FALLBACKS, &[("policy", "deny")], 0.0);
    for remaining in [9, 8, 7] {
        assert_eq!(gateway.send(&Request::get("/").key("pro")).remaining(), remaining);
    }
    assert_eq!(gateway.redis().buckets(), ["rate_limit:pro"]);
    gateway.await_redis(0, "connected");
    gateway.set_health("DEGRADED");
    assert_eq!(gateway.redis().health().as_deref(), Some("DEGRADED"));
}

pub fn with_wrong_credentials_the_policy_decides(host: &dyn Host) {
    for (password, policy, status) in [
        (None, "local", 200),
        (Some(WRONG), "local", 200),
        (Some(WRONG), "allow", 200),
        (Some(WRONG), "deny", 503),
    ] {
        let mut gateway = host.start(&locked(policy, password));
        for _ in 0..6 {
            let reply = gateway.send(&Request::get("/").key("pro"));
            assert_eq!(reply.status, status, "{password:?}, {policy}");
        }
        assert_eq!(gateway.health_report(0)["redis"], "disconnected", "{password:?}, {policy}");
        gateway.await_metric(FALLBACKS, &[("policy", policy)], 6.0);
        let failures = gateway.metric(FAILURES, &[("reason", "auth")]);
        assert!(failures.is_some_and(|failures| failures > 0.0), "{password:?}, {policy}");
        assert_eq!(gateway.redis().buckets(), [""; 0]);
        let why = if password.is_some() { "WRONGPASS" } else { "NOAUTH" };
        let warnings = gateway.warnings();
        let is_logged = |line: &String| line.contains("Redis lost") && line.contains(why);
        assert!(warnings.iter().any(is_logged), "{password:?}, {policy}: {warnings:#?}");
    }
}

/// If Redis is frozen, requests wait until the breaker opens. If it is killed, they do not wait.
pub fn during_an_outage_the_policy_decides_and_afterwards_redis(host: &dyn Host) {
    type Act = fn(&mut dyn Redis);
    let frozen: (Act, Act) = (|redis| redis.freeze(), |redis| redis.thaw());
    let killed: (Act, Act) = (|redis| redis.kill(), |redis| redis.restart());
    for (policy, status) in [("local", 200), ("allow", 200), ("deny", 503)] {
        let config = in_redis(two_tiers(1_000, 1_000), 100, policy);
        let mut gateway = host.start(&Setup::new().config(&config).redis());
        for (begin, end) in [frozen, killed] {
            gateway.await_redis(0, "connected");
            begin(gateway.redis());
            for n in 0..8 {
                let reply = gateway.send(&Request::get("/").key("pro"));
                assert_eq!(reply.status, status, "{policy}, request {n}");
                assert!(reply.has("x-system-health"), "{policy}, request {n}");
            }
            gateway.await_redis(0, "disconnected");
            let report = json!({"status": "degraded", "redis": "disconnected", "health": "NORMAL"});
            assert_eq!(gateway.health_report(0), report, "{policy}");
            end(gateway.redis());
        }
        gateway.await_redis(0, "connected");
        let before = gateway.redis().scripts();
        // One worker may recover before another.
        gateway.until_within(RECOVERY, "Redis decides again", |gateway| {
            let reply = gateway.send(&Request::get("/").key("pro"));
            reply.status == 200 && gateway.redis().scripts() > before
        });
    }
}
