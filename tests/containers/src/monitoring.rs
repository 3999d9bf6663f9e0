//! The monitoring profile, without Grafana, which no package registry has.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use e2e::prometheus_server::{api, query};
use e2e::wait;
use serde_json::Value;

use crate::Progress;
use crate::compose::{Compose, text};
use crate::development::published;

/// Where `production.yml` publishes Prometheus.
const PROMETHEUS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Time for a name lookup and a scrape every 15 s.
const SCRAPED: Duration = Duration::from_secs(60);

pub(crate) fn check(compose: &Compose, progress: &mut Progress) {
    let monitoring = compose.with_profile("monitoring");
    monitoring.await_healthy("prometheus", 1);
    assert_eq!(published(&monitoring.inspect("prometheus")[0]), ["9090/tcp=127.0.0.1:9090"]);
    wait::until_within(SCRAPED, "all three limiters are scraped", || {
        let targets = api(PROMETHEUS, "targets?state=active");
        let targets = targets["activeTargets"].as_array()?;
        let up = targets.iter().filter(|target| target["health"] == "up").count();
        (up == 3 && targets.len() == 3).then_some(())
    });
    let groups = api(PROMETHEUS, "rules");
    let rules: Vec<_> = groups["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|group| group["rules"].as_array().expect("rules").clone())
        .collect();
    assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");

    let dashboard =
        fs::read_to_string(progress.folder.join("deploy/monitoring/grafana/dashboards/rate_limiter.json"));
    let dashboard: Value = serde_json::from_str(&dashboard.expect("a dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<_> = targets.map(|target| text(&target["expr"])).collect();
    let with_data = expressions.iter().filter(|expression| !query(PROMETHEUS, expression).is_empty()).count();
    // Health is not measured here, and nothing was evicted: some panels are empty.
    assert!(with_data > expressions.len() / 2, "{with_data} of {} queries give data", expressions.len());
    progress.passed(format!(
        "Prometheus: 3 limiters up, {} rules, {} queries of the dashboard answered, {with_data} with data",
        rules.len(),
        expressions.len()
    ));
}
