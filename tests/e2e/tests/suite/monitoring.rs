//! A real Prometheus on limiters under load: every query of the dashboard and every rule gives data, every alert fires
//! when what it tells of happens and not before; and promtool's own checks and tests.

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

use crate::production::{self, ADMIN_TOKEN, shipped};
use crate::shipped::{repository_root, save};
use crate::support::{ONE_PER_HOUR, limited_upstream, tier, two_tiers};

const FOLDER: &str = "deploy/monitoring";
const DASHBOARD: &str = "deploy/monitoring/grafana/dashboards/rate_limiter.json";

/// A few scrapes and evaluations, one a second, on a machine that is busy with other tests.
const SHOWS: Duration = Duration::from_secs(45);

#[test]
fn promtool_is_content_with_configuration_rules_and_their_tests() {
    let folder = repository_root().join(FOLDER);
    for arguments in [
        &["check", "config", "prometheus.yml"][..],
        &["check", "rules", "--lint-fatal", "rules.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let (content, said) = promtool(&folder, arguments);
        assert!(content, "{arguments:?}: {said}");
    }
    // Every alert is shown to fire and not to.
    let tests = yaml(&folder.join("rules_test.yml"));
    let tests: Vec<_> = tests["tests"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|test| test["alert_rule_test"].as_array().expect("tests of alerts").clone())
        .collect();
    for (alert, rule) in alerts() {
        for fires in [true, false] {
            let is_shown = tests
                .iter()
                .any(|test| test["alertname"] == *alert && test["exp_alerts"].is_array() == fires);
            assert!(is_shown, "{alert} fires: {fires}");
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
        assert_eq!(rules.matches(right).count(), 1, "{right}");
        fs::write(dir.path().join("rules.yml"), rules.replace(right, wrong)).expect("written");
        let (content, said) = promtool(dir.path(), &["test", "rules", "rules_test.yml"]);
        assert!(!content, "{wrong}: {said}");
    }
}

#[test]
fn links_and_names_lead_somewhere() {
    let page = shipped("docs/operating.md");
    let headings: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    for (alert, rule) in alerts() {
        let link = rule["annotations"]["runbook_url"].as_str().expect("a link");
        let (file, anchor) = link.split_once('#').expect("a place in it");
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
fn every_query_and_rule_gives_data_and_every_alert_fires() {
    let mut redis = production::redis();
    let upstream = production::upstream();
    let (limiter, folder) = production::limiter(&redis, upstream.address(), |_| ());
    let failing = limited_upstream(SHAPE);
    failing.set(Condition { failing: 0.5, ..Condition::default() });
    let (crowded, unwell) = (crowded(), unwell(failing.address()));
    let targets = [limiter.listener("metrics"), crowded.admin_address(), unwell.admin_address()];
    wait::until("the documents, and Redis", || {
        let tier = production::ask(&limiter, &Request::get("/").key("enterprise")).tier();
        let health = production::ask(&limiter, &Request::get("/health")).json();
        (tier == "enterprise" && health["redis"] == "connected").then_some(())
    });
    let prometheus =
        Prometheus::start(&[("prometheus.yml", &scraping(&targets)), ("rules.yml", &impatient_rules())]);

    let is_over = AtomicBool::new(false);
    let is_trouble = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetWhenDropped(&is_over);
        scope.spawn(|| drive([&limiter, &crowded], &is_trouble, &is_over));

        let rejected = r#"rate_limiter_config_reloads_total{result="rejected"}"#;
        wait::until_within(SHOWS, "Prometheus has seen that all is well", || {
            let seen = prometheus.query(rejected);
            let rates = prometheus.query("rate_limiter:requests:rate1m > 0");
            (seen.len() == 3 && !rates.is_empty()).then_some(())
        });
        // A machine that stands still for a second misses a scrape, which is over with the next.
        let mut early = Vec::new();
        let is_quiet = wait::poll(SHOWS, || {
            early = firing(&prometheus);
            early.is_empty().then_some(())
        });
        assert!(is_quiet.is_some(), "nothing is wrong yet: {early:?}");

        is_trouble.store(true, Ordering::Relaxed);
        scope.spawn(|| overload(&unwell, &is_over));
        save(&folder.join("config/tiers.json"), "{");
        let change = Request::post("/system/health", r#"{"status":"DEGRADED"}"#);
        assert_eq!(production::ask(&limiter, &change).status, 403);
        assert_eq!(production::ask(&limiter, &change.header("X-Admin-Token", ADMIN_TOKEN)).status, 200);
        redis.kill();
        // The scrape of what is not there any more.
        let gone = Prometheus::start(&[
            ("prometheus.yml", &scraping(&[refusing()])),
            ("rules.yml", &impatient_rules()),
        ]);

        let mut waiting = alerts().into_iter().map(|(alert, _)| alert).collect::<BTreeSet<_>>();
        let all_fire = wait::poll(SHOWS, || {
            waiting.retain(|alert| {
                let server = if alert == "RateLimiterDown" { &gone } else { &prometheus };
                server.alerts()[alert] != "firing"
            });
            waiting.is_empty().then_some(())
        });
        assert!(all_fire.is_some(), "these do not fire: {waiting:?} among {:?}", prometheus.alerts());

        for (place, expression) in expressions() {
            let server = if expression.starts_with("up{") { &gone } else { &prometheus };
            wait::until(&format!("data for {place}: {expression}"), || {
                let samples = server.query(&expression);
                let are_numbers = samples.iter().all(|(_, value)| value.is_finite());
                (!samples.is_empty() && are_numbers).then_some(())
            });
        }

        redis.restart();
        wait::until_within(SHOWS, "Redis is back, and the alert with it", || {
            (prometheus.alerts()["RateLimiterRedisLost"] == "inactive").then_some(())
        });
    });
}

/// A limiter with more addresses than buckets.
fn crowded() -> Envoy {
    let config = json!({
        "tiers": {"free": tier(1_000, 1.0)},
        "store": {"kind": "shared_data", "max_buckets": 8},
    });
    Setup::new().config(&config).trusted_hops(1).quiet().start()
}

/// An upstream of 40 requests a second.
const SHAPE: Shape = Shape { slots: 2, service_ms: 50, queue: None };

/// A limiter that measures the health of an upstream half of whose answers are errors.
fn unwell(upstream: SocketAddr) -> Envoy {
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
fn overload(unwell: &Envoy, is_over: &AtomicBool) {
    let pause = Duration::from_millis(20);
    load::during(unwell.address(), 80, pause, &Request::get("/"), || {
        while !is_over.load(Ordering::Relaxed) {
            thread::sleep(pause);
        }
    });
}

/// Callers within their limits; in trouble, one far above its limit, and addresses without end.
fn drive([limiter, crowded]: [&Envoy; 2], is_trouble: &AtomicBool, is_over: &AtomicBool) {
    let mut to_limiter = production::connect(limiter);
    let mut to_crowded = crowded.connect();
    for n in 0_u32.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        if is_trouble.load(Ordering::Relaxed) {
            for _ in 0..5 {
                to_limiter.send(&Request::get("/test").key("free"));
            }
            let [_, _, high, low] = n.to_be_bytes();
            to_crowded.send(&Request::get("/").forwarded_for(&format!("198.18.{high}.{low}")));
        }
        to_limiter.send(&Request::get("/health"));
        // Of its five a second, so that it is never refused; one decision in sixteen is timed.
        if n % 6 == 0 {
            to_limiter.send(&Request::get("/test").key("enterprise"));
            to_crowded.send(&Request::get("/").forwarded_for("198.51.100.1"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ends the driver however the test ends.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The shipped configuration, that looks at these instead of a name, and once a second.
fn scraping(targets: &[SocketAddr]) -> String {
    let targets: Vec<_> = targets.iter().map(SocketAddr::to_string).collect();
    let changes = [
        ("dns_sd_configs:".to_owned(), "static_configs:".to_owned()),
        (
            "- {names: [limiter], type: A, port: 9902, refresh_interval: 15s}".to_owned(),
            format!("- {}", json!({"targets": targets})),
        ),
        ("scrape_interval: 15s".to_owned(), "scrape_interval: 1s".to_owned()),
        ("evaluation_interval: 15s".to_owned(), "evaluation_interval: 1s".to_owned()),
    ];
    changes.iter().fold(shipped("deploy/monitoring/prometheus.yml"), |text, (from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text.replace(from, to)
    })
}

/// The shipped rules, whose alerts fire after a second.
fn impatient_rules() -> String {
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
fn the_first_refusals_of_a_limiter_are_in_rates_and_alerts() {
    let mut config = two_tiers(10, 1);
    config["config_source"] = json!({"cluster": "config_files", "tiers": "/tiers.json", "ttl_seconds": 1});
    let mut tiers = config["tiers"].clone();
    tiers["by_document"] = tier(1, ONE_PER_HOUR);
    let envoy = Setup::new().config(&config).config_files(&tiers.to_string(), "{}").quiet().start();
    let prometheus = Prometheus::start(&[
        ("prometheus.yml", &scraping(&[envoy.admin_address()])),
        ("rules.yml", &impatient_rules()),
    ]);
    for tier in ["free", "by_document"] {
        for status in ["allowed", "limited", "exempt", "blocked", "shed"] {
            let series = format!(r#"rate_limiter_requests_total{{tier="{tier}",status="{status}"}}"#);
            wait::until_within(SHOWS, &series, || {
                let samples = prometheus.query(&series);
                (samples.len() == 1 && samples[0].1 == 0.0).then_some(())
            });
        }
    }
    let tally = load::burst(envoy.address(), 8, 150, &Request::get("/"));
    let limited = load::count(&tally, 429) as f64;
    assert_eq!(limited, 1_190.0);
    let increase = r#"increase(rate_limiter_requests_total{tier="free",status="limited"}[1m])"#;
    wait::until_within(SHOWS, "all refusals in the increase", || {
        prometheus.query(increase).first().is_some_and(|(_, seen)| *seen >= limited).then_some(())
    });
    wait::until_within(SHOWS, "the alert", || {
        firing(&prometheus).iter().any(|alert| alert == "RateLimiterRefusalsHigh").then_some(())
    });
}
