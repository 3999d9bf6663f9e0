//! The limiter's own word on how the upstream is, in short.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Long enough for a limiter that answers, and short against the second between two lines.
const PATIENCE: Duration = Duration::from_millis(500);

/// Health, severity and reason as `GET path` tells them.
pub(crate) async fn line(to: SocketAddr, path: &str) -> String {
    match timeout(PATIENCE, ask(to, path)).await {
        Ok(Ok(told)) => shown(&told),
        Ok(Err(error)) => format!("health unknown: {error}"),
        Err(_) => "health unknown: no answer".to_owned(),
    }
}

async fn ask(to: SocketAddr, path: &str) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect(to).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await?;
    let reply = String::from_utf8_lossy(&reply);
    let body = reply.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).map_err(|error| std::io::Error::other(format!("{error} in {body:?}")))
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
