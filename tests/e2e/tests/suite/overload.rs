//! Overload: the number of requests in flight to each upstream cluster is limited, the most important requests are sent
//! first, and health is measured. Spec section 12.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::client::{Request, Response};

use e2e::envoy::Envoy;
use e2e::open_loop::OpenLoopLoad;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use e2e::{http2, load, sha256_hex, upstream, wait};
use loadgen::plan::{CALLERS, ClientPolicy, Plan, key};
use loadgen::report::Report;
use loadgen::upstream::Shape;
use serde_json::{Map, Value, json};

use crate::support::{
    ONE_PER_HOUR, TOKEN, at_once, await_that, health, limited_upstream, route, set_health,
    set_health_request, tier, two_tiers,
};

mod places;

const FREE: usize = 0;
const PRO: usize = 1;
const ENTERPRISE: usize = 2;

/// More than all requests of a test: no bucket becomes empty here.
const CAPACITY: u64 = 100_000;

/// Fifty requests a second, and an unbounded queue.
const SHAPE: Shape = Shape { slots: 5, service_ms: 100, queue: None };

/// Two tiers, and health that is measured with windows of seconds.
pub(crate) fn measured() -> Value {
    let mut config = two_tiers(CAPACITY, CAPACITY);
    config["health"] = json!({
        "mode": "auto",
        "window_seconds": 2,
        "min_requests": 20,
        "latency_ms": 400,
        // The upstreams of these tests answer within a millisecond; on busy cores they take many times as long.
        "latency_ratio": null,
        "degrade_after_seconds": 1,
        "recover_after_seconds": 2,
    });
    config
}

/// The tiers and callers of the open-loop load.
fn load_config() -> Value {
    let keys = [PRO, ENTERPRISE].into_iter().flat_map(|tier| (0..CALLERS[tier]).map(move |n| (tier, n)));
    let names = ["free", "pro", "enterprise"];
    let keys: Map<String, Value> = keys
        .map(|(tier, caller)| (key(tier, caller), json!({"tier": names[tier], "id": key(tier, caller)})))
        .collect();
    let tiers: Map<String, Value> =
        names.map(|name| (name.to_owned(), tier(CAPACITY, ONE_PER_HOUR))).into_iter().collect();
    json!({
        "tiers": tiers,
        "api_keys": keys,
        "admin": {"token_sha256": sha256_hex(TOKEN)},
        "health": {
            "mode": "auto",
            "window_seconds": 3,
            "min_requests": 20,
            "degrade_after_seconds": 1,
            "recover_after_seconds": 2,
        },
    })
}

/// Half of the upstream's capacity, then ten times as much, then half again.
fn plan() -> Plan {
    let client = ClientPolicy { timeout_ms: 2_000, deadline_ms: 2_000, retries: 0, back_off_ms: 0 };
    let capacity = SHAPE.capacity();
    Plan { capacity, before: 12, overload: 14, after: 10, times: 10.0, normal: 0.5, seed: 1, client }
}

/// The response of `GET /system/health`.
#[track_caller]
fn system_health(envoy: &Envoy) -> Value {
    envoy.send(&Request::get("/system/health")).json()
}

/// Waits until `GET /system/health` reports this health.
#[track_caller]
pub(crate) fn await_health(envoy: &Envoy, status: &str) -> Value {
    let what = format!("{status} by itself");
    wait::for_value(wait::SOON, &what, || system_health(envoy), |report| report["health"] == status)
}

/// Waits until `GET /system/health` reports a degradation and its reason. A worker reports the reason only after its
/// own flush.
#[track_caller]
fn await_reason(envoy: &Envoy) -> Value {
    let has_reason = |report: &Value| report["health"] == "DEGRADED" && report["reason"].is_string();
    wait::for_value(wait::SOON, "DEGRADED with a reason", || system_health(envoy), has_reason)
}

/// Whether the limiter has shed this request: no other 503 has a `retry-after`.
fn is_shed(response: &Response) -> bool {
    response.status == 503 && response.has("retry-after")
}

/// A request of a free caller outside the open-loop load.
fn free_request(number: usize) -> Request {
    Request::get("/").forwarded_for(&format!("203.0.113.{}", number % 200 + 1))
}

/// Waits until a free caller is shed.
#[track_caller]
fn await_shed_response(envoy: &Envoy) -> Response {
    let mut numbers = 0..;
    wait::until("a free caller is shed", || {
        let response = envoy.send(&free_request(numbers.next()?));
        is_shed(&response).then_some(response)
    })
}

#[test]
fn at_ten_times_the_capacity_goodput_the_important_tier_and_another_cluster_are_unaffected() {
    let _alone = wait::alone();
    let upstream = limited_upstream(SHAPE);
    let other = Upstream::start(|_| Answer::ok("ok"));
    let envoy = Setup::new()
        .config(&load_config())
        .trusted_hops(1)
        .cluster("upstream", upstream.address())
        .cluster("other", other.address())
        .routes(&json!([route("/other", "other", "2s"), route("/", "upstream", "2s")]))
        .quiet()
        .start();
    let mut repeated = RepeatedCaller::new(&envoy);
    repeated.send();
    assert_eq!((repeated.shed, repeated.admitted), (0, 1), "no request is shed before the overload");

    let plan = plan();
    let mut load_report = Report::new("ours", plan);
    let to_other = Request::get("/other").forwarded_for("192.0.2.1");
    let ((), of_other) = load::during(envoy.address(), 1, Duration::from_millis(20), &to_other, || {
        let load = OpenLoopLoad::start(envoy.address(), plan);
        await_health(&envoy, "DEGRADED");
        assert_degraded(&await_reason(&envoy));
        assert_shed_response(&await_shed_response(&envoy));
        assert_grpc_is_unavailable(&envoy);
        assert_metrics_of_shedding(&envoy);
        assert_recorded_stats_of_the_live_view_exist(&envoy);
        let end = Duration::from_secs((plan.before + plan.overload).into());
        while load.elapsed() < end {
            repeated.send();
            std::thread::sleep(Duration::from_millis(50));
        }
        await_health(&envoy, "NORMAL");
        for number in 0..30 {
            assert!(!is_shed(&envoy.send(&free_request(number))), "shed after the overload");
        }
        load.stop().iter().for_each(|outcome| load_report.add(outcome));
    });
    repeated.send();
    assert!(repeated.shed > 0, "some requests were shed");
    assert_eq!(
        repeated.remaining,
        CAPACITY - repeated.admitted,
        "{} were shed and cost nothing",
        repeated.shed
    );
    assert_all_admitted_requests_were_sent(&envoy);
    envoy.await_metric("rate_limiter_health_transitions_total", &[("reason", "recovered")], 1.0);

    let all_served = of_other.keys().eq([&200]) && load::count(&of_other, 200) > 200;
    assert!(all_served, "the other cluster by status: {of_other:?}");
    load_report.seconds.iter().for_each(|second| eprintln!("{}", second.line()));
    assert_goodput(&load_report, 0.9);
    assert!(load_report.success(FREE) < 0.2, "free callers are shed first: {}", load_report.success(FREE));
}

/// Checks that the upstream's capacity was used, in the first seconds and after, and the most important tier served.
#[track_caller]
fn assert_goodput(report: &Report, least_after: f64) {
    let [first, after] = report.goodput().map(|served| served / SHAPE.capacity());
    let enterprise = report.success(ENTERPRISE);
    eprintln!("goodput {first:.2} and {after:.2} of the capacity, enterprise {enterprise:.3}");
    assert!(
        first >= 0.9 && after >= least_after,
        "goodput {first:.2} in the first seconds, {after:.2} after"
    );
    assert!(enterprise >= 0.98, "{enterprise:.3} of enterprise requests served");
}

#[test]
fn a_mild_overload_from_the_first_request_on_builds_up_no_queue_in_the_upstream() {
    let _alone = wait::alone();
    let upstream = limited_upstream(SHAPE);
    let envoy =
        Setup::new().config(&load_config()).trusted_hops(1).upstream(upstream.address()).quiet().start();
    let plan = Plan { before: 0, overload: 16, after: 2, times: 1.4, ..plan() };
    let load = OpenLoopLoad::start(envoy.address(), plan);
    let end = Duration::from_secs((plan.overload + plan.after).into());
    std::thread::sleep(end.saturating_sub(load.elapsed()));
    let mut report = Report::new("ours", plan);
    load.stop().iter().for_each(|outcome| report.add(outcome));
    assert_goodput(&report, 0.8);
}

#[test]
fn timeouts_lower_the_limit_and_errors_of_the_upstream_do_not() {
    let limit_after = |answer: fn() -> Answer, status| {
        let is_healthy = Arc::new(AtomicBool::new(true));
        let health = Arc::clone(&is_healthy);
        let upstream =
            Upstream::start(
                move |_| {
                    if health.load(Ordering::Relaxed) { Answer::ok("ok") } else { answer() }
                },
            );
        let envoy = Setup::new()
            .config(&measured())
            .cluster("upstream", upstream.address())
            .routes(&json!([route("/", "upstream", "0.3s")]))
            .start();
        load::burst(envoy.address(), 4, 100, &Request::get("/"));
        await_that("a baseline", || system_health(&envoy)["clusters"]["upstream"]["baseline_ms"].is_number());
        is_healthy.store(false, Ordering::Relaxed);
        let ((), counts) = load::during(envoy.address(), 4, Duration::ZERO, &Request::get("/"), || {
            std::thread::sleep(Duration::from_secs(3));
        });
        assert!(counts.keys().eq([&status]), "{counts:?}");
        system_health(&envoy)["clusters"]["upstream"]["limit"].as_f64().expect("a limit")
    };
    let failing = limit_after(|| Answer::with(500, &[]), 500);
    let late = limit_after(|| Answer::Late(Duration::from_secs(5), Box::new(Answer::ok("late"))), 504);
    assert!(late < failing, "{late} after timeouts, {failing} after errors");
}

#[test]
fn what_a_later_filter_refuses_is_no_signal_of_the_upstream() {
    let everything = json!({"all": {"permissions": [{"any": true}], "principals": [{"any": true}]}});
    let denies = json!({"rules": {"action": "DENY", "policies": everything}});
    let upstream = Upstream::start(|_| Answer::ok("ok"));
    let envoy = Setup::new()
        .config(&measured())
        .upstream(upstream.address())
        .filter_after("envoy.extensions.filters.http.rbac.v3.RBAC", denies)
        .start();
    let mut connection = envoy.connect();
    for _ in 0..100 {
        assert_eq!(connection.send(&Request::get("/")).status, 403);
    }
    // Counts are written less often than what was observed.
    envoy.await_metric("rate_limiter_requests_total", &[("tier", "free"), ("status", "allowed")], 100.0);
    let report = system_health(&envoy);
    assert_eq!(report["signals"]["requests"], 0.0, "{report}");
    assert!(report["clusters"]["upstream"]["baseline_ms"].is_null(), "{report}");
}

#[test]
fn a_redirect_that_envoy_follows_is_a_response_of_the_upstream() {
    let upstream = Upstream::start(|_| Answer::with(302, &[("location", "http://e2e/done")]));
    let mut redirected = route("/", "upstream", "5s");
    redirected["route"]["internal_redirect_policy"] = json!({"max_internal_redirects": 1});
    let done = json!({"match": {"path": "/done"}, "direct_response": {"status": 200}});
    let setup = Setup::new().config(&measured()).cluster("upstream", upstream.address());
    let envoy = setup.routes(&json!([done, redirected])).start();
    let mut connection = envoy.connect();
    for _ in 0..40 {
        assert_eq!(connection.send(&Request::get("/")).status, 200);
    }
    await_that("a baseline", || system_health(&envoy)["clusters"]["upstream"]["baseline_ms"].is_number());
}

/// Checks that as many requests were sent to the upstreams as took a token.
#[track_caller]
fn assert_all_admitted_requests_were_sent(envoy: &Envoy) {
    let sent_and_admitted = || {
        let sent = ["upstream", "other"].map(|name| envoy.stat(&format!("cluster.{name}.upstream_rq_total")));
        let admitted = ["free", "pro", "enterprise"].map(|tier| {
            let labels = [("tier", tier), ("status", "allowed")];
            envoy.metric("rate_limiter_requests_total", &labels).unwrap_or_default() as u64
        });
        (sent.iter().sum::<u64>(), admitted.iter().sum::<u64>())
    };
    wait::for_value(wait::SOON, "as many sent as admitted", sent_and_admitted, |(sent, admitted)| {
        sent == admitted
    });
}

#[track_caller]
fn assert_degraded(report: &Value) {
    assert_eq!(report["mode"], "auto", "{report}");
    let reason = report["reason"].as_str().unwrap_or_default();
    assert!(["latency", "shed", "error_ratio"].contains(&reason), "{report}");
    for signal in ["requests", "error_ratio", "slow_ratio", "shed_ratio"] {
        assert!(report["signals"][signal].is_number(), "{signal} in {report}");
    }
    for field in ["limit", "baseline_ms", "in_flight", "waiting", "shed"] {
        assert!(report["clusters"]["upstream"][field].is_number(), "{field} in {report}");
    }
}

#[track_caller]
fn assert_shed_response(shed: &Response) {
    assert!((3..=10).contains(&shed.number("retry-after")), "{shed:#?}");
    assert_eq!(shed.one("x-system-health"), "DEGRADED");
    for name in ["x-envoy-overloaded", "x-envoy-ratelimited"] {
        assert_eq!(shed.one(name), "true", "{shed:#?}");
    }
}

#[track_caller]
fn assert_grpc_is_unavailable(envoy: &Envoy) {
    let (mut numbers, mut waits) = (0.., BTreeSet::new());
    let shed = wait::until("gRPC calls are shed, with different times to wait", || {
        let address = format!("198.51.100.{}", numbers.next()? % 200 + 1);
        let response =
            http2::send(envoy.address(), &http2::grpc_call("/demo.Greeter/Hello").forwarded_for(&address));
        let shed = response.has("retry-after").then_some(response)?;
        waits.insert(shed.number("retry-after"));
        (waits.len() > 1).then_some(shed)
    });
    assert_eq!((shed.status, shed.one("grpc-status").as_str()), (200, "14"), "{shed:#?}");
    assert_shed_response(&shed);
}

#[track_caller]
fn assert_metrics_of_shedding(envoy: &Envoy) {
    let above_zero = |name: &str, labels: &[(&str, &str)]| {
        wait::until(&format!("{name} {labels:?} above zero"), || {
            envoy.metric(name, labels).filter(|value| *value > 0.0)
        });
    };
    above_zero("rate_limiter_requests_total", &[("tier", "free"), ("status", "shed")]);
    above_zero("rate_limiter_upstream_shed_ratio_permille", &[]);
    for name in ["in_flight_limit", "in_flight", "waiting", "latency_baseline_microseconds", "shed_total"] {
        above_zero(&format!("rate_limiter_cluster_{name}"), &[("cluster", "upstream")]);
    }
    envoy.await_metric("rate_limiter_health_mode_auto", &[], 1.0);
    envoy.await_metric("rate_limiter_system_degraded", &[], 1.0);
    await_that("one transition to DEGRADED", || {
        let transitions = ["latency", "shed", "error_ratio"].map(|reason| {
            envoy.metric("rate_limiter_health_transitions_total", &[("reason", reason)]).unwrap_or_default()
        });
        transitions.iter().sum::<f64>() == 1.0
    });
}

/// Checks that the recorded stats in the tests of `cargo xtask watch` are names that Envoy still prints.
#[track_caller]
fn assert_recorded_stats_of_the_live_view_exist(envoy: &Envoy) {
    let names = |stats: &str| -> BTreeSet<String> {
        stats.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect()
    };
    let recorded = names(include_str!("../../../../xtask/src/watch/overload.stats"));
    assert!(recorded.len() > 40, "{recorded:?}");
    let missing = || &recorded - &names(&envoy.admin("/stats?filter=rate_limiter_"));
    wait::for_value(wait::SOON, "every recorded stat is printed", missing, BTreeSet::is_empty);
}

/// A free caller that sends requests repeatedly.
struct RepeatedCaller<'a> {
    envoy: &'a Envoy,
    admitted: u64,
    shed: u64,
    remaining: u64,
}

impl<'a> RepeatedCaller<'a> {
    fn new(envoy: &'a Envoy) -> Self {
        Self { envoy, admitted: 0, shed: 0, remaining: CAPACITY }
    }

    #[track_caller]
    fn send(&mut self) {
        let response = self.envoy.send(&Request::get("/").forwarded_for("192.0.2.77"));
        if is_shed(&response) {
            self.shed += 1;
        } else {
            self.admitted += 1;
            self.remaining = response.remaining();
        }
    }
}

#[test]
fn a_refusing_upstream_degrades_health_and_sheds_no_request() {
    let envoy = Setup::new().config(&measured()).trusted_hops(1).upstream(upstream::refusing()).start();
    let ((), _) = load::during(envoy.address(), 4, Duration::from_millis(20), &Request::get("/"), || {
        let report = await_reason(&envoy);
        assert_eq!(report["reason"], "error_ratio", "{report}");
        assert_eq!(report["signals"]["error_ratio"].as_f64(), Some(1.0), "{report}");
        for number in 0..50 {
            let response = envoy.send(&free_request(number));
            assert_eq!((response.status, response.one("x-system-health").as_str()), (503, "DEGRADED"));
            assert!(!is_shed(&response), "a refusing upstream has no queue: {response:#?}");
        }
    });
}

#[test]
fn the_health_that_an_operator_sets_overrides_measured_health_until_auto() {
    let failing = Setup::new().config(&measured()).upstream(upstream::refusing()).start();
    let serving = Upstream::start(|_| Answer::ok("ok"));
    let healthy = Setup::new().config(&measured()).upstream(serving.address()).start();
    let cases = [(&failing, "DEGRADED", "NORMAL"), (&healthy, "NORMAL", "DEGRADED")];
    at_once(cases, |(envoy, measured, other)| {
        load::during(envoy.address(), 4, Duration::from_millis(20), &Request::get("/"), || {
            await_health(envoy, measured);
            for status in [other, measured, other] {
                set_health(envoy, status);
                assert_stays(envoy, status, "manual");
            }
            set_health(envoy, "AUTO");
            await_health(envoy, measured);
            assert_stays(envoy, measured, "auto");
        });
    });
}

/// Checks that health does not change for longer than the detector needs for a decision.
#[track_caller]
fn assert_stays(envoy: &Envoy, status: &str, mode: &str) {
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        let report = system_health(envoy);
        assert_eq!((&report["health"], &report["mode"]), (&json!(status), &json!(mode)), "{report}");
        let reply = envoy.send(&Request::get("/"));
        assert_eq!(reply.one("x-system-health"), status);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn manual_health_is_never_measured() {
    let envoy = Setup::new().config(&two_tiers(CAPACITY, CAPACITY)).upstream(upstream::refusing()).start();
    let refused = envoy.send(&set_health_request("AUTO"));
    assert_eq!(refused.status, 400, "{}", refused.text());
    let detail = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains("AUTO") && detail.contains("NORMAL"), "{detail}");
    load::during(envoy.address(), 4, Duration::from_millis(20), &Request::get("/"), || {
        let began = std::time::Instant::now();
        // Longer than measured health needs with default settings.
        while began.elapsed() < Duration::from_secs(4) {
            assert_eq!(health(&envoy), "NORMAL");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(envoy.metric("rate_limiter_health_mode_auto", &[]), None);
    assert_eq!(system_health(&envoy)["signals"], Value::Null);
}
