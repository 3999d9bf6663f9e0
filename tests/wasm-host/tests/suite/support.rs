//! Shared by the tests: a configuration whose keys and passwords are canaries.

use scenarios::Request;
use wasm_host::secrets::{ADMIN_TOKEN, API_KEY, REDIS_PASSWORD, REDIS_USER};
use wasm_host::{Setup, World};

/// Keys of three tiers, tiers with small capacities, exempt paths.
pub(crate) fn configuration(more: &str) -> String {
    format!(
        r#"{{"tiers": {{
              "free": {{"base": {{"capacity": 3, "refill_rate": 1}}, "degraded": {{"capacity": 1, "refill_rate": 1}}}},
              "pro": {{"base": {{"capacity": 5, "refill_rate": 1}}, "degraded": {{"capacity": 2, "refill_rate": 1}}}},
              "open": {{"unlimited": true}},
              "shut": {{"base": {{"capacity": 0, "refill_rate": 1}}}} }},
            "api_keys": {{"{API_KEY}": {{"tier": "pro", "id": "pro"}}, "c4nary-open": "open", "c4nary-shut": "shut"}},
            "exempt_paths": ["/metrics", "/static/*"], "exempt_preflight": true{more}}}"#
    )
}

/// [`configuration`] with buckets in Redis.
pub(crate) fn redis_configuration(on_failure: &str) -> String {
    let store = format!(
        r#", "store": {{"kind": "redis", "cluster": "redis", "timeout_ms": 20, "on_failure": "{on_failure}"}}"#
    );
    configuration(&store)
}

/// The key of the health that an operator sets in Redis.
pub(crate) const HEALTH: &str = "system:health:status";

/// One Envoy on a Redis without a password, with these fields beside the store.
pub(crate) fn plain_redis_setup(more: &str) -> Setup {
    Setup::new(format!(r#"{{"store": {{"kind": "redis", "cluster": "redis"}}{more}}}"#))
}

/// One Envoy on shared data.
pub(crate) fn world() -> World {
    World::start(Setup::new(configuration("")))
}

/// One Envoy on a Redis with a password.
pub(crate) fn redis_world(on_failure: &str) -> World {
    let mut world = World::start(redis_setup(on_failure));
    world.redis.model.password = Some((Some(REDIS_USER), REDIS_PASSWORD));
    world
}

pub(crate) fn redis_setup(on_failure: &str) -> Setup {
    Setup::new(redis_configuration(on_failure))
        .variable("REDIS_USERNAME", REDIS_USER)
        .variable("REDIS_PASSWORD", REDIS_PASSWORD)
}

pub(crate) fn keyed() -> Request {
    Request::get("/test").key(API_KEY)
}

pub(crate) fn change(status: &str) -> Request {
    Request::post("/system/health", format!(r#"{{"status":"{status}"}}"#))
        .header("x-admin-token", ADMIN_TOKEN)
}
