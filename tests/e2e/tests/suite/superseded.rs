//! A delivery replaces the plugin, and an open stream keeps the superseded generation alive. It still handles that
//! stream, but it does not change shared state.

use std::thread;
use std::time::{Duration, Instant};

use e2e::client::{Connection, Request};
use e2e::envoy::Envoy;
use e2e::redis::Redis;
use e2e::setup::{REDIS_CLUSTER, Setup};
use e2e::upstream::{Answer, Upstream};
use e2e::wait;
use serde_json::{Value, json};

use crate::support::{at_once, await_that, health, route, set_health, two_tiers};

/// How long a state must not change. An active generation would change it: it polls four times a second, and measures
/// health once a second.
const STABLE: Duration = Duration::from_secs(3);

/// How long a change of health may take to reach every Envoy, on a busy machine.
const PROPAGATION: Duration = Duration::from_millis(1_500);

/// Whether a stream of the first configuration, or a request, stays open while the others are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Stream,
    /// The control.
    Nothing,
}

const BOTH: [Held; 2] = [Held::Nothing, Held::Stream];

/// An Envoy with successive configurations, each identified by the limit of the free tier.
struct Gateway {
    envoy: Envoy,
    limit: u64,
    _streams: Vec<Connection>,
}

impl Gateway {
    /// Starts it with a first configuration.
    fn start(setup: Setup, first: &Value, held: Held) -> Self {
        let upstream = upstream();
        let limit = FIRST_LIMIT;
        let envoy = setup
            .config(&numbered(first, limit))
            .cluster("upstream", upstream.address())
            .routes(&json!([route("/", "upstream", "0s")]))
            .hcm(&json!({"stream_idle_timeout": "0s"}))
            .trusted_hops(1)
            .by_ecds()
            .quiet()
            .start();
        let mut gateway = Self { envoy, limit, _streams: Vec::new() };
        if held == Held::Stream {
            gateway.hold_stream();
        }
        gateway
    }

    fn hold_stream(&mut self) {
        let mut connection = self.envoy.connect();
        assert_eq!(connection.start_stream(&caller("/stream", 0).key("pro")), 200);
        self._streams.push(connection);
    }

    /// Delivers a configuration, and waits until it applies.
    #[track_caller]
    fn deliver(&mut self, config: &Value) {
        self.deliver_with(config, |_| {});
    }

    /// [`Self::deliver`] with another change of the plugin.
    #[track_caller]
    fn deliver_with(&mut self, config: &Value, change: impl FnOnce(&mut Value)) {
        self.limit += 1;
        let text = numbered(config, self.limit).to_string();
        self.envoy.deliver_plugin(|plugin| {
            plugin["configuration"]["value"] = json!(text);
            change(plugin);
        });
        let wanted = self.limit;
        await_that(&format!("limit {wanted}"), || self.envoy.send(&caller("/", 0)).limit() == wanted);
        // Two ticks, so that each generation knows whether it is superseded.
        thread::sleep(Duration::from_millis(500));
    }

    /// Sends failing requests of many callers until the health is `DEGRADED`.
    #[track_caller]
    fn fail_until_degraded(&self) {
        let mut connection = self.envoy.connect();
        let mut callers = (0..200).cycle();
        wait::until_within(Duration::from_secs(30), "DEGRADED by errors", || {
            for _ in 0..20 {
                connection.send(&caller("/fails", callers.next()?));
            }
            (health(&self.envoy) == "DEGRADED").then_some(())
        });
    }

    /// Checks that measured health ends with the delivery of a configuration without it, and of `change`.
    #[track_caller]
    fn assert_measured_health_ends(&mut self, change: impl FnOnce(&mut Value)) {
        self.fail_until_degraded();
        self.deliver_with(&plain(), change);
        await_that("NORMAL", || health(&self.envoy) == "NORMAL");
        self.assert_health_stays("NORMAL");
    }

    /// Checks that the health does not change while requests fail.
    #[track_caller]
    fn assert_health_stays(&self, wanted: &str) {
        let began = Instant::now();
        let mut connection = self.envoy.connect();
        for number in (0..200).cycle() {
            let response = connection.send(&caller("/fails", number));
            assert_eq!(response.one("x-system-health"), wanted, "after {:?}", began.elapsed());
            thread::sleep(Duration::from_millis(5));
            if began.elapsed() > STABLE {
                break;
            }
        }
    }
}

/// The free tier's limit in the first configuration; no caller here reaches it.
const FIRST_LIMIT: u64 = 10_000;

/// The configuration with this limit of the free tier, which identifies it.
fn numbered(config: &Value, limit: u64) -> Value {
    let mut config = config.clone();
    config["tiers"]["free"]["base"]["capacity"] = json!(limit);
    config
}

/// An upstream with an event stream, and with endpoints that fail and hang.
fn upstream() -> Upstream {
    Upstream::start(|request| match request.target.as_str() {
        "/stream" => Answer::Stream,
        "/fails" => Answer::with(500, &[]),
        "/waits" => Answer::Late(Duration::from_secs(60), Box::new(Answer::ok("late"))),
        _ => Answer::ok("ok"),
    })
}

fn caller(target: &str, number: usize) -> Request {
    Request::get(target).forwarded_for(&format!("203.0.113.{}", number % 200 + 1))
}

fn plain() -> Value {
    two_tiers(FIRST_LIMIT, 1_000)
}

fn measured(window_seconds: u64) -> Value {
    let mut config = plain();
    config["health"] = json!({
        "mode": "auto", "window_seconds": window_seconds, "min_requests": 20,
        // Health does not recover during a test.
        "degrade_after_seconds": 1, "recover_after_seconds": 60, "shed": false,
    });
    config
}

fn in_redis(cluster: &str) -> Value {
    let mut config = plain();
    config["store"] = json!({"kind": "redis", "cluster": cluster, "timeout_ms": 1_000});
    config
}

#[track_caller]
fn await_health(envoy: &Envoy, wanted: &str) {
    wait::for_value(PROPAGATION, wanted, || health(envoy), |health| health == wanted);
}

/// The client connections of this Redis, without the one of this command.
fn connections(redis: &Redis) -> usize {
    let list = redis.command(&["CLIENT", "LIST", "TYPE", "NORMAL"]).text();
    list.lines().filter(|line| !line.contains("cmd=client")).count()
}

#[test]
fn health_is_measured_with_the_new_window() {
    at_once(BOTH, |held| {
        let mut gateway = Gateway::start(Setup::new().workers(1), &measured(3), held);
        gateway.deliver(&measured(4));
        gateway.fail_until_degraded();
    });
}

#[test]
fn health_is_judged_by_the_new_thresholds_alone() {
    let with_error_ratio = |error_ratio| {
        let mut config = measured(3);
        config["health"]["error_ratio"] = json!(error_ratio);
        config
    };
    at_once(BOTH, |held| {
        let mut gateway = Gateway::start(Setup::new().workers(1), &with_error_ratio(1.0), Held::Nothing);
        // Without response headers, a request keeps the overload control of its generation at work.
        let mut connection = gateway.envoy.connect();
        if held == Held::Stream {
            connection.write(&caller("/waits", 0).encode()).expect("written");
        }
        gateway.deliver(&with_error_ratio(0.2));
        gateway.fail_until_degraded();
    });
}

#[test]
fn without_measured_health_its_last_state_ends() {
    at_once(BOTH, |held| {
        let mut gateway = Gateway::start(Setup::new().workers(1), &measured(3), held);
        gateway.assert_measured_health_ends(|_| {});
    });
}

#[test]
fn an_operators_change_is_not_undone_by_the_previous_redis() {
    at_once(BOTH, |held| {
        let redis = Redis::start();
        let setup = Setup::new().workers(1).redis(redis.address());
        let mut gateway = Gateway::start(setup, &in_redis(REDIS_CLUSTER), held);
        set_health(&gateway.envoy, "NORMAL");
        gateway.deliver(&plain());
        set_health(&gateway.envoy, "DEGRADED");
        gateway.assert_health_stays("DEGRADED");
    });
}

#[test]
fn after_a_change_of_redis_the_health_of_the_new_one_applies() {
    let (left, current) = (Redis::start(), Redis::start());
    let elsewhere = Setup::new().config(&in_redis(REDIS_CLUSTER)).redis(current.address()).quiet().start();
    elsewhere.send(&caller("/", 0));
    for held in BOTH {
        let setup = Setup::new().workers(1).redis(left.address()).second_redis(current.address());
        let mut gateway = Gateway::start(setup, &in_redis(REDIS_CLUSTER), held);
        set_health(&gateway.envoy, "NORMAL");
        gateway.deliver(&in_redis("second_redis"));
        set_health(&gateway.envoy, "DEGRADED");
        gateway.assert_health_stays("DEGRADED");
        for status in ["NORMAL", "DEGRADED", "NORMAL"] {
            set_health(&elsewhere, status);
            await_health(&gateway.envoy, status);
        }
        assert_eq!(connections(&left), 0);
    }
}

#[test]
fn thirty_deliveries_leave_no_connection_to_redis_open() {
    let redis = Redis::start();
    let setup = Setup::new().workers(1).redis(redis.address());
    let mut gateway = Gateway::start(setup, &in_redis(REDIS_CLUSTER), Held::Stream);
    for _ in 0..30 {
        gateway.deliver(&in_redis(REDIS_CLUSTER));
        gateway.hold_stream();
    }
    // The worker's connection, and that of the main thread, which also reads health in its turn.
    await_that("two connections at most", || connections(&redis) <= 2);
}

#[test]
fn documents_of_the_previous_source_are_not_fetched_any_more() {
    at_once(BOTH, |held| {
        let files = Upstream::start(|_| Answer::ok("{}"));
        let source = |path: &str| {
            let mut config = plain();
            config["config_source"] = json!({"cluster": "config_files", "api_keys": path, "ttl_seconds": 1});
            config
        };
        let setup = Setup::new().workers(1).cluster("config_files", files.address());
        let mut gateway = Gateway::start(setup, &source("/left.json"), held);
        gateway.deliver(&source("/current.json"));
        let fetched = |path: &str| files.targets().iter().filter(|target| *target == path).count();
        let (left, current) = (fetched("/left.json"), fetched("/current.json"));
        thread::sleep(STABLE);
        assert_eq!(fetched("/left.json"), left, "{held:?}");
        assert!(fetched("/current.json") > current, "{held:?}");
    });
}

#[test]
fn a_configuration_that_is_delivered_again_while_a_stream_holds_it_is_active() {
    let redis = Redis::start();
    let setup = Setup::new().workers(1).config(&in_redis(REDIS_CLUSTER)).redis(redis.address());
    let elsewhere = setup.quiet().start();
    elsewhere.send(&caller("/", 0));
    for held in BOTH {
        let setup = Setup::new().workers(1).redis(redis.address());
        let mut gateway = Gateway::start(setup, &in_redis(REDIS_CLUSTER), held);
        gateway.deliver(&plain());
        gateway.limit = FIRST_LIMIT - 1;
        gateway.deliver(&in_redis(REDIS_CLUSTER));
        for status in ["DEGRADED", "NORMAL"] {
            set_health(&elsewhere, status);
            await_health(&gateway.envoy, status);
        }
    }
}

#[test]
fn another_environment_creates_another_vm_and_the_old_one_is_passive() {
    at_once(BOTH, |held| {
        let mut gateway = Gateway::start(Setup::new().workers(1), &measured(3), held);
        gateway.assert_measured_health_ends(|plugin| {
            plugin["vm_config"]["environment_variables"]["key_values"] = json!({"CONFIG_TTL": "7"});
        });
    });
}

#[test]
fn a_refused_configuration_changes_nothing() {
    at_once(BOTH, |held| {
        let mut gateway = Gateway::start(Setup::new().workers(1), &measured(3), held);
        let (received, refused) = gateway.envoy.deliveries();
        gateway.envoy.deliver(&json!({"unheard_of": 1}));
        await_that("refused", || gateway.envoy.deliveries() == (received + 1, refused + 1));
        gateway.assert_measured_health_ends(|_| {});
    });
}

#[test]
fn superseded_generations_on_every_worker_are_passive() {
    let mut gateway = Gateway::start(Setup::new().workers(4), &measured(3), Held::Nothing);
    (0..16).for_each(|_| gateway.hold_stream());
    gateway.assert_measured_health_ends(|_| {});
}

#[test]
fn a_draining_listener_is_passive() {
    let upstream = upstream();
    let setup = Setup::new().workers(1).config(&numbered(&measured(3), FIRST_LIMIT));
    let envoy = setup.upstream(upstream.address()).trusted_hops(1).by_lds(300).quiet().start();
    let mut gateway = Gateway { envoy, limit: FIRST_LIMIT, _streams: Vec::new() };
    let mut drains = gateway.envoy.connect();
    drains.send(&caller("/", 0));
    gateway.fail_until_degraded();
    let text = numbered(&plain(), FIRST_LIMIT + 1).to_string();
    gateway.envoy.change_listeners(|listeners| {
        let manager = &mut listeners[0]["filter_chains"][0]["filters"][0]["typed_config"];
        manager["http_filters"][0]["typed_config"]["config"]["configuration"]["value"] = json!(text);
    });
    await_that("the new listener", || gateway.envoy.send(&caller("/", 0)).limit() == FIRST_LIMIT + 1);
    await_that("NORMAL", || health(&gateway.envoy) == "NORMAL");
    // The next response on a draining listener closes the connection.
    let last = drains.send(&caller("/fails", 0));
    assert_eq!((last.limit(), last.one("connection").as_str()), (FIRST_LIMIT, "close"));
    gateway.assert_health_stays("NORMAL");
}

#[test]
fn two_plugins_with_one_namespace_are_both_active() {
    let redis = Redis::start();
    let files = Upstream::start(|_| Answer::ok("{}"));
    let mut with_documents = plain();
    with_documents["config_source"] =
        json!({"cluster": "config_files", "api_keys": "/keys.json", "ttl_seconds": 1});
    let envoy = Setup::new()
        .workers(1)
        .config(&in_redis(REDIS_CLUSTER))
        .redis(redis.address())
        .cluster("config_files", files.address())
        .named_listener("second", "second_limiter", &with_documents)
        .quiet()
        .start();
    envoy.send(&caller("/", 0));
    redis.command(&["SET", "system:health:status", "DEGRADED"]);
    await_health(&envoy, "DEGRADED");
    let fetched = files.targets().len();
    await_that("another fetch", || files.targets().len() > fetched);
}
