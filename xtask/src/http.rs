//! HTTP requests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ureq::http::Response;

const TIMEOUT: Duration = Duration::from_secs(2);

/// A client for which no status is an error.
pub(crate) fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false);
    config.proxy(None).build().into()
}

/// Sends one GET on its own connection.
pub(crate) fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response<String>> {
    let request = agent().get(format!("http://{address}{path}"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let (head, mut body) = request.call().with_context(|| format!("no answer from {address}"))?.into_parts();
    Ok(Response::from_parts(head, body.read_to_string()?))
}

/// Sends one GET, which must be answered with 200.
pub(crate) fn get_ok(address: SocketAddr, path: &str) -> Result<()> {
    let status = get(address, path, &[])?.status();
    ensure!(status == 200, "http://{address}{path} answers {status}, wanted 200");
    Ok(())
}
