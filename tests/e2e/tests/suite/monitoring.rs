//! A real Prometheus on limiters under load: every query of the dashboard and every rule returns data, every alert
//! fires when its condition occurs and not before; and promtool's own checks and tests.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dynamic_rate_limiter::metrics::names;
use e2e::client::Request;
use e2e::envoy::Envoy;
use e2e::load;
use e2e::prometheus_server::Prometheus;
use e2e::setup::Setup;
use e2e::shipped_files::{promtool, yaml};
use e2e::upstream::refusing;
use e2e::wait;
use loadgen::upstream::{Condition, Shape};
use serde_json::{Value, json};

use crate::manifests::changed;
use crate::production::{self, ADMIN_TOKEN, shipped};
use crate::shipped::{repository_root, save};
use crate::support::{ONE_PER_HOUR, await_that, await_that_within, find, limited_upstream, tier, two_tiers};

const FOLDER: &str = "deploy/monitoring";
const DASHBOARD: &str = "deploy/monitoring/grafana/dashboards/rate_limiter.json";

/// Time for a few scrapes and evaluations, one a second, on a machine that also runs other tests.
const SCRAPED: Duration = Duration::from_secs(45);

#[test]
fn promtool_accepts_configuration_rules_and_their_tests() {
    let folder = repository_root().join(FOLDER);
    for arguments in [
        &["check", "config", "prometheus.yml"][..],
        &["check", "rules", "--lint-fatal", "rules.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let (succeeded, output) = promtool(&folder, arguments);
        assert!(succeeded, "{arguments:?}: {output}");
    }
    // Every alert has a test in which it fires and one in which it does not.
    let tests = yaml(&folder.join("rules_test.yml"));
    let tests = find("$.tests[*].alert_rule_test[*]", &tests);
    for (alert, rule) in alerts() {
        for fires in [true, false] {
            let is_tested = tests
                .iter()
                .any(|test| test["alertname"] == *alert && test["exp_alerts"].is_array() == fires);
            assert!(is_tested, "{alert} fires: {fires}");
        }
        assert!(rule["for"].is_string() && rule["labels"]["severity"].is_string(), "{rule}");
    }
}

#[test]
fn promtools_tests_fail_when_a_rule_is_wrong() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tests = shipped("deploy/monitoring/rules_test.yml");
    fs::write(dir.path().join("rules_test.yml"), tests).expect("written");
    let rules = shipped("deploy/monitoring/rules.yml");
    for (right, wrong) in [
        ("rate_limiter_redis_connected == 0", "rate_limiter_redis_connected == 1"),
        ("ratio5m > 0.3", "ratio5m > 0.2"),
        ("{reason!=\"contended\"}", ""),
        ("for: 15m", "for: 0s"),
    ] {
        fs::write(dir.path().join("rules.yml"), changed(&rules, &[(right, wrong)])).expect("written");
        let (succeeded, output) = promtool(dir.path(), &["test", "rules", "rules_test.yml"]);
        assert!(!succeeded, "{wrong}: {output}");
    }
}

#[test]
fn links_and_names_resolve() {
    let page = shipped("docs/operating.md");
    let headings: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    for (alert, rule) in alerts() {
        let link = rule["annotations"]["runbook_url"].as_str().expect("a link");
        let (file, anchor) = link.split_once('#').expect("an anchor");
        assert_eq!((file, anchor), ("docs/operating.md", alert.to_lowercase().as_str()));
        assert!(headings.contains(anchor), "{anchor} in {headings:?}");
    }

    let dashboard: Value = serde_json::from_str(&shipped(DASHBOARD)).expect("JSON");
    let sources =
        yaml(&repository_root().join(FOLDER).join("grafana/provisioning/datasources/prometheus.yml"));
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert_eq!(panel["datasource"]["uid"], sources["datasources"][0]["uid"]);
    }
    let used = expressions().into_iter().map(|(_, expression)| expression).collect::<String>();
    for metric in names() {
        assert!(used.contains(metric), "{metric} is in no rule and no panel");
        assert!(page.contains(metric), "{metric} is not in docs/operating.md");
    }
}

#[test]
fn every_query_and_rule_returns_data_and_every_alert_fires() {
    let mut redis = production::redis();
    let upstream = production::upstream();
    let (limiter, folder) = production::limiter(&redis, upstream.address(), |_| ());
    let failing = limited_upstream(SHAPE);
    failing.set(Condition { failing: 0.5, ..Condition::default() });
    let (evicting, overloaded) = (evicting(), overloaded(failing.address()));
    let targets = [limiter.listener("metrics"), evicting.admin_address(), overloaded.admin_address()];
    production::await_ready(&limiter, "enterprise");
    let prometheus = scraping(&targets);

    let is_over = AtomicBool::new(false);
    let has_faults = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = load::SetOnDrop(&is_over);
        scope.spawn(|| send_load([&limiter, &evicting], &has_faults, &is_over));

        let rejected = r#"rate_limiter_config_reloads_total{result="rejected"}"#;
        await_that_within(SCRAPED, "Prometheus has scraped all targets", || {
            let seen = prometheus.query(rejected);
            let rates = prometheus.query("rate_limiter:requests:rate1m > 0");
            seen.len() == 3 && !rates.is_empty()
        });
        // A stalled machine may miss a scrape; the next one resolves the alert.
        wait::for_value(SCRAPED, "no alert without a fault", || firing(&prometheus), Vec::is_empty);

        has_faults.store(true, Ordering::Relaxed);
        scope.spawn(|| overload(&overloaded, &is_over));
        save(&folder.join("config/tiers.json"), "{");
        let change = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
        assert_eq!(production::send(&limiter, &change).status, 403);
        assert_eq!(production::send(&limiter, &change.header("X-Admin-Token", ADMIN_TOKEN)).status, 200);
        redis.kill();
        // A Prometheus whose target does not exist.
        let gone = scraping(&[refusing()]);

        let mut silent = alerts().into_iter().map(|(alert, _)| alert).collect::<BTreeSet<_>>();
        let still_silent = || {
            silent.retain(|alert| {
                let server = if alert == "RateLimiterDown" { &gone } else { &prometheus };
                server.alerts()[alert] != "firing"
            });
            (silent.clone(), prometheus.alerts())
        };
        wait::for_value(SCRAPED, "every alert fires", still_silent, |(silent, _)| silent.is_empty());

        for (place, expression) in expressions() {
            let server = if expression.starts_with("up{") { &gone } else { &prometheus };
            await_that(&format!("data for {place}: {expression}"), || {
                let samples = server.query(&expression);
                let are_numbers = samples.iter().all(|(_, value)| value.is_finite());
                !samples.is_empty() && are_numbers
            });
        }

        redis.restart();
        await_that_within(SCRAPED, "the alert is resolved after Redis has recovered", || {
            prometheus.alerts()["RateLimiterRedisLost"] == "inactive"
        });
    });
}

/// A limiter with few buckets, for more addresses than that.
fn evicting() -> Envoy {
    let config = json!({
        "tiers": {"free": tier(1_000, 1.0)},
        "store": {"kind": "shared_data", "max_buckets": 8},
    });
    Setup::new().config(&config).trusted_hops(1).quiet().start()
}

/// An upstream with a capacity of 40 requests a second.
const SHAPE: Shape = Shape { slots: 2, service_ms: 50, queue: None };

/// A limiter that measures the health of an upstream. Half of the upstream's responses are errors.
fn overloaded(upstream: SocketAddr) -> Envoy {
    let config = json!({
        "tiers": {"free": tier(1_000_000, 1_000.0)},
        "health": {
            "mode": "auto", "window_seconds": 1, "min_requests": 5,
            "degrade_after_seconds": 1, "recover_after_seconds": 600
        },
    });
    Setup::new().config(&config).trusted_hops(1).upstream(upstream).quiet().start()
}

/// More connections than the upstream can serve and the limiter can queue.
fn overload(overloaded: &Envoy, is_over: &AtomicBool) {
    let pause = Duration::from_millis(20);
    load::during(overloaded.address(), 80, pause, &Request::get("/"), || {
        while !is_over.load(Ordering::Relaxed) {
            thread::sleep(pause);
        }
    });
}

/// Sends requests of callers within their limits. With faults: also of one far above its limit, and of new addresses.
fn send_load([limiter, evicting]: [&Envoy; 2], has_faults: &AtomicBool, is_over: &AtomicBool) {
    let mut to_limiter = production::connect(limiter);
    let mut to_evicting = evicting.connect();
    for n in 0_u32.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        if has_faults.load(Ordering::Relaxed) {
            for _ in 0..5 {
                to_limiter.send(&Request::get("/test").key("free"));
            }
            let [_, _, high, low] = n.to_be_bytes();
            to_evicting.send(&Request::get("/").forwarded_for(&format!("198.18.{high}.{low}")));
        }
        to_limiter.send(&Request::get("/health"));
        // Below its five a second, so that it is never rejected; one decision in sixteen is timed.
        if n % 6 == 0 {
            to_limiter.send(&Request::get("/test").key("enterprise"));
            to_evicting.send(&Request::get("/").forwarded_for("198.51.100.1"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// A Prometheus with the shipped configuration and rules, which scrapes these targets.
#[track_caller]
fn scraping(targets: &[SocketAddr]) -> Prometheus {
    Prometheus::start(&[("prometheus.yml", &scrape_config(targets)), ("rules.yml", &fast_rules())])
}

/// The shipped configuration with these targets instead of a name, scraped once a second.
fn scrape_config(targets: &[SocketAddr]) -> String {
    let targets: Vec<_> = targets.iter().map(SocketAddr::to_string).collect();
    let static_targets = format!("- {}", json!({"targets": targets}));
    let changes = [
        ("dns_sd_configs:", "static_configs:"),
        ("- {names: [limiter], type: A, port: 9902, refresh_interval: 15s}", &*static_targets),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
    ];
    changed(&shipped("deploy/monitoring/prometheus.yml"), &changes)
}

/// The shipped rules, with alerts that fire after a second.
fn fast_rules() -> String {
    let rules = shipped("deploy/monitoring/rules.yml");
    let lines = rules.lines().map(|line| match line.split_once("    for: ") {
        Some((before, _)) => format!("{before}    for: 1s\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[track_caller]
fn firing(prometheus: &Prometheus) -> Vec<String> {
    let alerts = prometheus.alerts().into_iter();
    alerts.filter(|(_, state)| state == "firing").map(|(alert, _)| alert).collect()
}

#[track_caller]
fn rules() -> Vec<Value> {
    let rules = yaml(&repository_root().join(FOLDER).join("rules.yml"));
    rules["groups"][0]["rules"].as_array().expect("rules").clone()
}

/// The shipped alerts with their names.
#[track_caller]
fn alerts() -> Vec<(String, Value)> {
    let named = |rule: Value| Some((rule["alert"].as_str()?.to_owned(), rule));
    let alerts: Vec<_> = rules().into_iter().filter_map(named).collect();
    assert!(alerts.len() >= 7, "{alerts:?}");
    alerts
}

/// Every expression of the rules and every query of the dashboard, with its place.
#[track_caller]
fn expressions() -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let dashboard: Value = serde_json::from_str(&shipped(DASHBOARD)).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().expect("targets").iter();
        targets.map(|target| (text(&panel["title"]), text(&target["expr"]))).collect::<Vec<_>>()
    });
    let of_rule = |rule: Value| {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).expect("a name").to_owned();
        (name, text(&rule["expr"]))
    };
    let all: Vec<_> = rules().into_iter().map(of_rule).chain(queries).collect();
    assert!(all.len() > 25, "{all:?}");
    all
}

#[test]
fn the_first_refusals_of_a_limiter_count_in_rates_and_alerts() {
    let mut config = two_tiers(10, 1);
    config["config_source"] = json!({"cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 1});
    let mut tiers = config["tiers"].clone();
    tiers["by_document"] = tier(1, ONE_PER_HOUR);
    let envoy = Setup::new().config(&config).config_files(&tiers.to_string(), "{}").quiet().start();
    let prometheus = scraping(&[envoy.admin_address()]);
    for tier in ["free", "by_document"] {
        for status in ["allowed", "limited", "exempt", "blocked", "shed"] {
            let series = format!(r#"rate_limiter_requests_total{{tier="{tier}",status="{status}"}}"#);
            await_that_within(SCRAPED, &series, || {
                let samples = prometheus.query(&series);
                samples.len() == 1 && samples[0].1 == 0.0
            });
        }
    }
    let counts = load::burst(envoy.address(), 8, 150, &Request::get("/"));
    let limited = load::count(&counts, 429) as f64;
    assert_eq!(limited, 1_190.0);
    let increase = r#"increase(rate_limiter_requests_total{tier="free",status="limited"}[1m])"#;
    await_that_within(SCRAPED, "all rejections in the increase", || {
        prometheus.query(increase).first().is_some_and(|(_, seen)| *seen >= limited)
    });
    await_that_within(SCRAPED, "the alert", || {
        firing(&prometheus).iter().any(|alert| alert == "RateLimiterRejectionsHigh")
    });
}
