//! Overload: requests in flight to each upstream cluster have a limit, the most important callers are sent first, and
//! health is measured. Spec section 12.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::client::{Request, Response};
use e2e::crowd::Crowd;
use e2e::envoy::Envoy;
use e2e::setup::Setup;
use e2e::upstream::{Answer, Upstream};
use e2e::{http2, load, sha256_hex, upstream, wait};
use loadgen::plan::{CALLERS, Patience, Plan, key};
use loadgen::report::Report;
use loadgen::upstream::Shape;
use serde_json::{Map, Value, json};

use crate::support::{
    ONE_PER_HOUR, TOKEN, health, limited_upstream, switch, switch_request, tier, two_tiers,
};

mod places;

const FREE: usize = 0;
const PRO: usize = 1;
const ENTERPRISE: usize = 2;

/// More than all requests of a test: no bucket is ever empty here.
const CAPACITY: u64 = 100_000;

/// Fifty requests a second, and a queue without a bound.
const SHAPE: Shape = Shape { slots: 5, service_ms: 100, queue: None };

/// Bounds that are judged within seconds.
pub(crate) fn quick() -> Value {
    json!({
        "mode": "auto",
        "window_seconds": 2,
        "min_requests": 20,
        "latency_ms": 400,
        "degrade_after_seconds": 1,
        "recover_after_seconds": 2,
    })
}

/// Two tiers, and health that is measured.
pub(crate) fn measured() -> Value {
    let mut config = two_tiers(CAPACITY, CAPACITY);
    config["health"] = quick();
    config
}

/// The tiers and callers of a crowd.
fn crowded() -> Value {
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
    let patience = Patience { timeout_ms: 2_000, deadline_ms: 2_000, retries: 0, back_off_ms: 0 };
    let capacity = SHAPE.capacity();
    Plan { capacity, before: 4, overload: 14, after: 14, times: 10.0, normal: 0.5, seed: 1, patience }
}

/// What `GET /system/health` tells.
#[track_caller]
fn told(envoy: &Envoy) -> Value {
    envoy.send(&Request::get("/system/health")).json()
}

/// Waits until `GET /system/health` tells this health.
#[track_caller]
fn await_told(envoy: &Envoy, status: &str) -> Value {
    wait::until(&format!("{status} by itself"), || {
        let told = told(envoy);
        (told["health"] == status).then_some(told)
    })
}

/// Whether the limiter has shed this request: no other 503 says when to come back.
fn is_shed(response: &Response) -> bool {
    response.status == 503 && response.has("retry-after")
}

/// A free caller who is no part of a crowd.
fn stranger(number: usize) -> Request {
    Request::get("/").forwarded_for(&format!("203.0.113.{}", number % 200 + 1))
}

/// Waits until a free caller is shed.
#[track_caller]
fn shed_stranger(envoy: &Envoy) -> Response {
    let mut numbers = 0..;
    wait::until("a free caller is shed", || {
        let response = envoy.send(&stranger(numbers.next()?));
        is_shed(&response).then_some(response)
    })
}

/// Routes to two clusters, of which `/other` is the second.
fn two_clusters() -> Value {
    let route = |prefix: &str, cluster: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "2s"}});
    json!([route("/other", "other"), route("/", "upstream")])
}

/// Ends the sender beside a test, whether the test fails or not.
struct EndsOnDrop<'a>(&'a AtomicBool);

impl Drop for EndsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends requests to the second cluster while `during` runs; how many were served, and what became of the others.
fn with_second_cluster(envoy: &Envoy, during: impl FnOnce()) -> (u32, Vec<u16>) {
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = EndsOnDrop(is_over);
        let sender = scope.spawn(move || {
            let (mut served, mut others) = (0, Vec::new());
            let mut connection = envoy.connect();
            while !is_over.load(Ordering::Relaxed) {
                match connection.send(&Request::get("/other").forwarded_for("192.0.2.1")).status {
                    200 => served += 1,
                    status => others.push(status),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            (served, others)
        });
        during();
        drop(ends);
        sender.join().expect("no panic")
    })
}

#[test]
fn ten_times_the_capacity_leaves_goodput_the_important_tier_and_another_cluster_whole() {
    let _alone = wait::alone();
    let upstream = limited_upstream(SHAPE);
    let other = Upstream::start(|_| Answer::ok("ok"));
    let envoy = Setup::new()
        .config(&crowded())
        .trusted_hops(1)
        .cluster("upstream", upstream.address())
        .cluster("other", other.address())
        .routes(&two_clusters())
        .quiet()
        .start();
    let mut regular = Regular::new(&envoy);
    regular.ask();
    assert_eq!((regular.shed, regular.admitted), (0, 1), "no request is shed before the overload");

    let plan = plan();
    let mut report = Report::new("ours", plan);
    let (served, others) = with_second_cluster(&envoy, || {
        let crowd = Crowd::gather(envoy.address(), plan);
        // Each worker knows the reason when it has looked itself.
        let degraded = wait::until("DEGRADED, and why", || {
            let told = await_told(&envoy, "DEGRADED");
            told["reason"].is_string().then_some(told)
        });
        assert_degraded(&degraded);
        assert_shed_response(&shed_stranger(&envoy));
        assert_grpc_is_unavailable(&envoy);
        assert_metrics_of_shedding(&envoy);
        assert_live_view_is_recorded_as_envoy_prints(&envoy);
        let end = Duration::from_secs((plan.before + plan.overload).into());
        while crowd.elapsed() < end {
            regular.ask();
            std::thread::sleep(Duration::from_millis(50));
        }
        await_told(&envoy, "NORMAL");
        for number in 0..30 {
            assert!(!is_shed(&envoy.send(&stranger(number))), "shed after the overload");
        }
        crowd.disperse().iter().for_each(|outcome| report.add(outcome));
    });
    regular.ask();
    regular.assert_paid_for_what_it_got();
    assert_all_that_were_admitted_were_sent(&envoy);
    envoy.await_metric("rate_limiter_health_transitions_total", &[("reason", "recovered")], 1.0);

    assert!(others.is_empty() && served > 200, "the other cluster: {served} served, and {others:?}");
    let [first, after] = report.goodput().map(|served| served / SHAPE.capacity());
    let enterprise = report.success(ENTERPRISE);
    eprintln!("goodput {first:.2} and {after:.2} of the capacity, enterprise {enterprise:.3}");
    assert!(first >= 0.9 && after >= 0.9, "goodput {first:.2} in the first seconds, {after:.2} after");
    assert!(enterprise >= 0.98, "{enterprise:.3} of enterprise requests served");
    assert!(report.success(FREE) < 0.2, "free callers are shed first: {}", report.success(FREE));
}

/// Checks that as many requests have reached the upstreams as took a token.
#[track_caller]
fn assert_all_that_were_admitted_were_sent(envoy: &Envoy) {
    let mut last = (0, 0);
    let is_equal = wait::poll(wait::SOON, || {
        let sent = ["upstream", "other"].map(|name| envoy.stat(&format!("cluster.{name}.upstream_rq_total")));
        let admitted = ["free", "pro", "enterprise"].map(|tier| {
            let labels = [("tier", tier), ("status", "allowed")];
            envoy.metric("rate_limiter_requests_total", &labels).unwrap_or_default() as u64
        });
        last = (sent.iter().sum::<u64>(), admitted.iter().sum::<u64>());
        (last.0 == last.1).then_some(())
    });
    assert!(is_equal.is_some(), "(sent, admitted) are {last:?}");
}

#[track_caller]
fn assert_degraded(told: &Value) {
    assert_eq!(told["mode"], "auto", "{told}");
    let reason = told["reason"].as_str().unwrap_or_default();
    assert!(["latency", "shed", "error_ratio"].contains(&reason), "{told}");
    for signal in ["requests", "error_ratio", "slow_ratio", "shed_ratio"] {
        assert!(told["signals"][signal].is_number(), "{signal} in {told}");
    }
    for field in ["limit", "baseline_ms", "in_flight", "waiting", "shed"] {
        assert!(told["clusters"]["upstream"][field].is_number(), "{field} in {told}");
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
    let mut numbers = 0..;
    let shed = wait::until("a gRPC call is shed", || {
        let address = format!("198.51.100.{}", numbers.next()? % 200 + 1);
        let response =
            http2::send(envoy.address(), &http2::grpc_call("/demo.Greeter/Hello").forwarded_for(&address));
        response.has("retry-after").then_some(response)
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
    wait::until("one transition to DEGRADED", || {
        let transitions = ["latency", "shed", "error_ratio"].map(|reason| {
            envoy.metric("rate_limiter_health_transitions_total", &[("reason", reason)]).unwrap_or_default()
        });
        (transitions.iter().sum::<f64>() == 1.0).then_some(())
    });
}

/// Checks that `cargo xtask watch` is tested with what Envoy prints: all names in its record are there now.
#[track_caller]
fn assert_live_view_is_recorded_as_envoy_prints(envoy: &Envoy) {
    let names = |stats: &str| -> BTreeSet<String> {
        stats.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect()
    };
    let recorded = names(include_str!("../../../../xtask/src/watch/overload.stats"));
    assert!(recorded.len() > 40, "{recorded:?}");
    let mut missing = BTreeSet::new();
    let found = wait::poll(wait::SOON, || {
        missing = &recorded - &names(&envoy.admin("/stats?filter=rate_limiter_"));
        missing.is_empty().then_some(())
    });
    assert!(found.is_some(), "not printed: {missing:?}");
}

/// A free caller who comes again and again.
struct Regular<'a> {
    envoy: &'a Envoy,
    admitted: u64,
    shed: u64,
    remaining: u64,
}

impl<'a> Regular<'a> {
    fn new(envoy: &'a Envoy) -> Self {
        Self { envoy, admitted: 0, shed: 0, remaining: CAPACITY }
    }

    #[track_caller]
    fn ask(&mut self) {
        let response = self.envoy.send(&Request::get("/").forwarded_for("192.0.2.77"));
        if is_shed(&response) {
            self.shed += 1;
        } else {
            self.admitted += 1;
            self.remaining = response.remaining();
        }
    }

    /// Checks that only what was admitted has cost tokens.
    #[track_caller]
    fn assert_paid_for_what_it_got(&self) {
        assert!(self.shed > 0, "it was shed at times");
        assert_eq!(self.remaining, CAPACITY - self.admitted, "{} were shed and cost nothing", self.shed);
    }
}

#[test]
fn an_upstream_that_is_dead_turns_health_and_no_request_is_shed_for_it() {
    let envoy = Setup::new().config(&measured()).trusted_hops(1).upstream(upstream::refusing()).start();
    let ((), _) = load::during(envoy.address(), 4, Duration::from_millis(20), &Request::get("/"), || {
        // A worker that did not make the change knows the reason from its next flush on.
        let told = wait::until("DEGRADED, and why", || {
            let told = told(&envoy);
            (told["health"] == "DEGRADED" && told["reason"].is_string()).then_some(told)
        });
        assert_eq!(told["reason"], "error_ratio", "{told}");
        assert_eq!(told["signals"]["error_ratio"].as_f64(), Some(1.0), "{told}");
        for number in 0..50 {
            let response = envoy.send(&stranger(number));
            assert_eq!((response.status, response.one("x-system-health").as_str()), (503, "DEGRADED"));
            assert!(!is_shed(&response), "a dead upstream has no queue: {response:#?}");
        }
    });
}

#[test]
fn what_an_operator_says_wins_over_what_is_measured_until_it_is_auto_again() {
    let sick = Setup::new().config(&measured()).upstream(upstream::refusing()).start();
    let serving = Upstream::start(|_| Answer::ok("ok"));
    let well = Setup::new().config(&measured()).upstream(serving.address()).start();
    for (envoy, measured, other) in [(&sick, "DEGRADED", "NORMAL"), (&well, "NORMAL", "DEGRADED")] {
        load::during(envoy.address(), 4, Duration::from_millis(20), &Request::get("/"), || {
            await_told(envoy, measured);
            for status in [other, measured, other] {
                switch(envoy, status);
                assert_stays(envoy, status, "manual");
            }
            switch(envoy, "AUTO");
            await_told(envoy, measured);
            assert_stays(envoy, measured, "auto");
        });
    }
}

/// Checks for longer than it takes to judge a bound that health stays what it is.
#[track_caller]
fn assert_stays(envoy: &Envoy, status: &str, mode: &str) {
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(1_500) {
        let told = told(envoy);
        assert_eq!((&told["health"], &told["mode"]), (&json!(status), &json!(mode)), "{told}");
        let reply = envoy.send(&Request::get("/"));
        assert_eq!(reply.one("x-system-health"), status);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn where_health_is_told_it_is_never_measured() {
    let envoy = Setup::new().config(&two_tiers(CAPACITY, CAPACITY)).upstream(upstream::refusing()).start();
    let refused = envoy.send(&switch_request("AUTO"));
    assert_eq!(refused.status, 400, "{}", refused.text());
    let detail = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains("AUTO") && detail.contains("NORMAL"), "{detail}");
    load::during(envoy.address(), 4, Duration::from_millis(20), &Request::get("/"), || {
        let began = std::time::Instant::now();
        // Longer than an Envoy that measures would take by its defaults.
        while began.elapsed() < Duration::from_secs(4) {
            assert_eq!(health(&envoy), "NORMAL");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(envoy.metric("rate_limiter_health_mode_auto", &[]), None);
    assert_eq!(told(&envoy)["signals"], Value::Null);
}
