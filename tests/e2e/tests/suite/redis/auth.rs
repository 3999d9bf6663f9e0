//! Passwords and TLS: valid credentials connect, with invalid ones the policy decides, and no secret is shown anywhere.

use std::net::SocketAddr;
use std::path::Path;

use e2e::certificates::Certificate;
use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::setup::Setup;
use e2e::wait;
use serde_json::json;

use super::{
    LONG_TIMEOUT_MS, RECOVERY, assert_no_failures, await_counted, await_redis, health_report, in_redis,
    redis_setup, whole_tokens,
};
use crate::support::{set_health, two_tiers};

const USER: &str = "c4nary-user";
const PASSWORD: &str = "c4nary-password";
const WRONG: &str = "c4nary-wrong-password";
const NAME: &str = "redis.test";

/// All permissions that the limiter's user needs.
const RULES: &str =
    "~rate_limit:* ~system:health:status +evalsha +eval +time +hmget +hset +pexpire +get +set";

/// An Envoy that sends this password to Redis.
fn setup_with_password(password: &str, timeout_ms: u64, redis: &Redis) -> Setup {
    redis_setup(two_tiers(5, 10), timeout_ms, "local", redis.address()).host_env("REDIS_PASSWORD", password)
}

/// An Envoy that sends the password over TLS.
fn tls_setup(timeout_ms: u64, policy: &str, address: SocketAddr, authority: &Path) -> Setup {
    Setup::new()
        .config(&in_redis(two_tiers(5, 10), timeout_ms, policy))
        .redis_tls(address, authority)
        .host_env("REDIS_PASSWORD", PASSWORD)
}

/// Checks that Redis decides every request from the first on.
#[track_caller]
fn assert_served(envoy: &Envoy, redis: &Redis) {
    for remaining in [9, 8, 7] {
        assert_eq!(envoy.send(&Request::get("/").key("pro")).remaining(), remaining);
    }
    assert_eq!(whole_tokens(redis, "pro"), 7);
    await_redis(envoy, "connected");
    set_health(envoy, "DEGRADED");
    await_counted(envoy, 3);
    assert_no_failures(envoy);
}

/// Checks that no secret appears in any output that an operator may share.
#[track_caller]
fn assert_no_secret_shown(envoy: &Envoy, redis: &Redis) {
    let places = [
        ("Envoy's log", envoy.log()),
        ("its stats", envoy.admin("/stats")),
        ("its metrics", envoy.admin("/stats/prometheus")),
        ("its configuration", envoy.admin("/config_dump?include_eds")),
        ("its clusters", envoy.admin("/clusters")),
        ("Redis' log", redis.log()),
        ("Redis' keys", format!("{:?}", redis.keys())),
    ];
    for (place, text) in places {
        assert!(!text.is_empty(), "nothing in {place}");
        for secret in [USER, PASSWORD, WRONG] {
            assert!(!text.contains(secret), "{secret} in {place}");
        }
    }
    assert!(envoy.admin("/config_dump").contains("REDIS_PASSWORD"), "the name of the variable is not secret");
}

#[test]
fn the_credentials_of_a_user_are_sent_and_stay_secret() {
    let user = format!("user {USER} on >{PASSWORD} {RULES}");
    for default_user in ["user default off", "user default on nopass -@all"] {
        eprintln!("{default_user}");
        let redis = Redis::start_with(&[&user, default_user]);
        let setup = setup_with_password(PASSWORD, LONG_TIMEOUT_MS, &redis);
        let envoy = setup.host_env("REDIS_USERNAME", USER).start();
        assert_served(&envoy, &redis);
        assert_no_secret_shown(&envoy, &redis);
    }
}

#[test]
fn with_wrong_credentials_redis_is_not_used_until_they_are_corrected() {
    for password in ["", WRONG] {
        let redis = Redis::start_with(&[&format!("requirepass {PASSWORD}")]);
        let envoy = setup_with_password(password, 500, &redis).start();
        let request = Request::get("/").key("pro");
        assert_eq!(envoy.send(&request).status, 200);
        envoy.await_log(&["[warning][wasm]", "Redis lost"]);
        assert!(redis.keys().is_empty(), "{:?}", redis.keys());
        assert_no_secret_shown(&envoy, &redis);

        redis.command(&["CONFIG", "SET", "requirepass", password]);
        wait::until_within(RECOVERY, &format!("Redis decides, password {password:?}"), || {
            envoy.send(&request);
            redis.bucket("rate_limit:pro")
        });
        await_redis(&envoy, "connected");
        assert_no_secret_shown(&envoy, &redis);
    }
}

#[test]
fn an_error_reply_to_auth_affects_no_request_and_does_not_log_the_password() {
    // One Redis requires no password: either the limiter or Redis is configured wrongly. The other one does not know
    // the command, and repeats it in its error.
    for lines in [&[][..], &["rename-command AUTH NO-AUTH"]] {
        eprintln!("{lines:?}");
        let redis = Redis::start_with(lines);
        let envoy = setup_with_password(PASSWORD, 500, &redis).start();
        for remaining in (4..10).rev() {
            let reply = envoy.send(&Request::get("/").key("pro"));
            assert_eq!((reply.status, reply.remaining()), (200, remaining), "{lines:?}");
        }
        envoy.await_log(&["[warning][wasm]", "Redis lost", "AUTH"]);
        assert_no_secret_shown(&envoy, &redis);
    }
}

#[test]
fn redis_over_tls() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let certificate = Certificate::write(folder.path(), NAME);
    let redis = certificate.start_redis(&[&format!("requirepass {PASSWORD}")]);
    let envoy = tls_setup(LONG_TIMEOUT_MS, "local", redis.tls_address(), &certificate.authority).start();
    assert_served(&envoy, &redis);
    assert_no_secret_shown(&envoy, &redis);
}

#[test]
fn a_redis_with_an_invalid_certificate_gets_no_password() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let trusted = Certificate::write(folder.path(), NAME);
    let other = Certificate::write(folder.path(), "elsewhere.test");
    let (tls, plain) = (other.start_redis(&[]), Redis::start());
    let cases = [
        ("an unknown authority", tls.tls_address(), &trusted.authority, "ssl.fail_verify_error"),
        ("another name", tls.tls_address(), &other.authority, "ssl.fail_verify_san"),
        ("no TLS", plain.address(), &trusted.authority, "upstream_cx_connect_fail"),
    ];
    for (name, address, authority, stat) in cases {
        let envoy = tls_setup(500, "deny", address, authority).start();
        // Also after several retries.
        wait::until("some attempts", || {
            assert_eq!(envoy.send(&Request::get("/").key("pro")).status, 503, "{name}");
            (envoy.stat(&format!("cluster.redis.{stat}")) >= 4).then_some(())
        });
        assert_eq!(
            envoy.stat("cluster.redis.ssl.handshake"),
            0,
            "{name}: nothing is sent before the handshake"
        );
        let report = json!({"status": "degraded", "redis": "disconnected", "health": "NORMAL"});
        assert_eq!(health_report(&envoy), report, "{name}");
    }
    for redis in [tls, plain] {
        assert_eq!(redis.calls("evalsha") + redis.calls("eval") + redis.calls("get"), 0);
    }
}
