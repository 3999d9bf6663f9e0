//! The last listener with the filter is removed and added again: the service in the bootstrap keeps the shared data.

use std::time::Duration;

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::shipped_files::yaml;
use serde_json::Value;

use crate::shipped::repository_root;
use crate::support::{await_that, find, health, set_health, two_tiers};

/// Longer than the drain of the old listener.
const GAP: Duration = Duration::from_secs(3);

const CAPACITY: u64 = 10;

/// Spends tokens, sets the health, and guesses the token until the endpoint refuses this address.
fn use_up(envoy: &Envoy) {
    set_health(envoy, "DEGRADED");
    for spent in 1..=4 {
        assert_eq!(envoy.send(&Request::get("/").key("pro")).remaining(), CAPACITY - spent);
    }
    assert_eq!((0..6).map(|_| guess(envoy)).collect::<Vec<_>>(), [403, 403, 403, 403, 403, 429]);
}

/// The status that a wrong token gets.
fn guess(envoy: &Envoy) -> u16 {
    let guess = Request::post("/system/health", "").header("X-Admin-Token", "c4nary-wrong");
    Connection::open_from(23, envoy.address()).send(&guess).status
}

/// Removes the listener, waits, and adds it again.
fn remove_and_add_listener(envoy: &mut Envoy) {
    let mut removed: Vec<Value> = Vec::new();
    envoy.change_listeners(|listeners| removed.append(listeners));
    std::thread::sleep(GAP);
    envoy.change_listeners(|listeners| listeners.append(&mut removed));
    await_that("it serves", || envoy.send(&Request::get("/health")).status == 200);
}

#[test]
fn buckets_health_and_the_login_throttle_outlive_the_last_listener() {
    let setup = Setup::new().config(&two_tiers(100, CAPACITY)).by_lds(1).keeps_shared_data();
    let mut envoy = setup.start();
    use_up(&envoy);
    for round in 1..=2 {
        remove_and_add_listener(&mut envoy);
        assert_eq!(health(&envoy), "DEGRADED");
        assert_eq!(envoy.send(&Request::get("/").key("pro")).remaining(), CAPACITY - 4 - round);
        assert_eq!(guess(&envoy), 429);
    }
    // The service itself applies no configuration.
    envoy.await_metric("rate_limiter_config_reloads_total", &[("result", "applied")], 3.0);
}

/// The fact about Envoy that makes the service necessary.
#[test]
fn without_the_service_shared_data_is_lost() {
    let mut envoy = Setup::new().config(&two_tiers(100, CAPACITY)).by_lds(1).start();
    use_up(&envoy);
    remove_and_add_listener(&mut envoy);
    assert_eq!(health(&envoy), "NORMAL");
    assert_eq!(envoy.send(&Request::get("/").key("pro")).remaining(), CAPACITY - 1);
    assert_eq!(guess(&envoy), 403);
}

#[test]
fn the_service_logs_nothing() {
    let setup = Setup::new().config(&two_tiers(100, CAPACITY)).by_lds(1).keeps_shared_data().quiet();
    let mut envoy = setup.start();
    envoy.await_log(&["configuration applied"]);
    let before = envoy.log_lines(&["[wasm]"]);
    envoy.change_listeners(Vec::clear);
    std::thread::sleep(GAP);
    assert_eq!(envoy.log_lines(&["[wasm]"]), before);
}

#[test]
fn the_service_of_each_shipped_bootstrap_shares_the_limiters_vm() {
    for file in [
        "envoy.yaml",
        "deploy/redis/envoy.yaml",
        "deploy/redis-tls/envoy.yaml",
        "deploy/redis-cluster/envoy.yaml",
        "deploy/compose/limiter.yaml",
    ] {
        let bootstrap = yaml(&repository_root().join(file));
        let limiters = find("$..[?(@.root_id == 'rate_limiter')].vm_config", &bootstrap);
        let services = find("$.bootstrap_extensions..[?(@.root_id == 'shared_data')].vm_config", &bootstrap);
        assert_eq!((limiters.len(), services.len()), (1, 1), "{file}");
        assert_eq!(limiters, services, "{file}");
    }
}
