//! The limiter's own word on how the upstream is, in short.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

/// Long enough for a limiter that answers, and short against the second between two lines.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks for health again and again.
pub(crate) struct Health {
    http: Client<HttpConnector, Empty<Bytes>>,
    url: String,
}

impl Health {
    pub(crate) fn new(to: SocketAddr, path: &str) -> Self {
        Self { http: Client::builder(TokioExecutor::new()).build_http(), url: format!("http://{to}{path}") }
    }

    /// Health, severity and reason as they are told now.
    pub(crate) async fn line(&self) -> String {
        match timeout(PATIENCE, self.ask()).await {
            Ok(Ok(told)) => shown(&told),
            Ok(Err(error)) => format!("health unknown: {error}"),
            Err(_) => "health unknown: no answer".to_owned(),
        }
    }

    async fn ask(&self) -> Result<Value, String> {
        let url = self.url.parse().map_err(|error| format!("{}: {error}", self.url))?;
        let response = self.http.get(url).await.map_err(|error| error.to_string())?;
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        serde_json::from_slice(&body)
            .map_err(|error| format!("{error} in {:?}", String::from_utf8_lossy(&body)))
    }
}

fn shown(told: &Value) -> String {
    let health = told["health"].as_str().unwrap_or("unknown");
    let mut line = health.to_owned();
    if let Some(severity) = told["severity"].as_f64() {
        line += &format!(", severity {severity:.2}");
    }
    if let Some(bound) = told["reason"]["bound"].as_str() {
        line += &format!(", {bound} {}", told["reason"]["value"]);
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::shown;

    #[test]
    fn a_line_holds_what_is_told() {
        let told = json!({
            "health": "DEGRADED", "severity": 0.812, "reason": {"bound": "latency_ms", "value": 812.5},
        });
        assert_eq!(shown(&told), "DEGRADED, severity 0.81, latency_ms 812.5");
        assert_eq!(
            shown(&json!({"health": "NORMAL", "severity": 0.0, "reason": null})),
            "NORMAL, severity 0.00"
        );
    }
}
