//! HTTP requests.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: ureq::http::HeaderMap,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }
}

/// A client for which no status is an error.
pub(crate) fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false);
    config.proxy(None).build().into()
}

/// Sends one GET on its own connection.
pub(crate) fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let request = agent().get(format!("http://{address}{path}"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut response = request.call().with_context(|| format!("no answer from {address}"))?;
    let body = response.body_mut().read_to_string()?;
    Ok(Response { status: response.status().as_u16(), headers: response.headers().clone(), body })
}

/// Sends one GET, which must be answered with 200.
pub(crate) fn get_ok(address: SocketAddr, path: &str) -> Result<()> {
    let status = get(address, path, &[])?.status;
    ensure!(status == 200, "http://{address}{path} answers {status}, wanted 200");
    Ok(())
}
