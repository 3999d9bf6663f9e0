//! A summary of the limiter's health report.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// Longer than a response takes, and shorter than the second between two lines.
const TIMEOUT: Duration = Duration::from_millis(500);

pub(crate) struct Health {
    http: Client<HttpConnector, Empty<Bytes>>,
    url: String,
}

impl Health {
    pub(crate) fn new(to: SocketAddr, path: &str) -> Self {
        Self { http: Client::builder(TokioExecutor::new()).build_http(), url: format!("http://{to}{path}") }
    }

    /// The current health, its reason and the requests in flight.
    pub(crate) async fn line(&self) -> String {
        match timeout(TIMEOUT, self.get()).await {
            Ok(Ok(report)) => shown(&report),
            Ok(Err(error)) => format!("health unknown: {error:#}"),
            Err(_) => "health unknown: no answer".to_owned(),
        }
    }

    async fn get(&self) -> anyhow::Result<Value> {
        let body = self.http.get(self.url.parse()?).await?.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("found {:?}", String::from_utf8_lossy(&body)))
    }
}

fn shown(report: &Value) -> String {
    let mut line = report["health"].as_str().unwrap_or("unknown").to_owned();
    if let Some(reason) = report["reason"].as_str() {
        line += &format!(" by {reason}");
    }
    for (name, cluster) in report["clusters"].as_object().into_iter().flatten() {
        let [limit, in_flight, waiting] =
            ["limit", "in_flight", "waiting"].map(|field| cluster[field].as_f64().unwrap_or_default());
        let limit = limit.ceil();
        line += &format!(", {name}: {in_flight:.0} of {limit:.0} in flight, {waiting:.0} waiting");
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::shown;

    #[test]
    fn a_line_contains_health_reason_and_clusters() {
        let cluster = json!({"limit": 10.4, "baseline_ms": 90.0, "in_flight": 10, "waiting": 3, "shed": 1});
        let report = json!({"health": "DEGRADED", "reason": "shed", "clusters": {"upstream": cluster}});
        assert_eq!(shown(&report), "DEGRADED by shed, upstream: 10 of 11 in flight, 3 waiting");
        assert_eq!(shown(&json!({"health": "NORMAL", "reason": null, "clusters": {}})), "NORMAL");
        assert_eq!(shown(&json!({"health": "NORMAL"})), "NORMAL", "not measured");
    }
}
