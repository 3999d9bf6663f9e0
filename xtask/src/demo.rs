//! `cargo xtask demo`: Envoy with the filter on port 8000, until Ctrl-C.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::envoy::{Envoy, ensure_free};
use crate::filter::{self, Toolchain};
use crate::process::{interrupted, pause};
use crate::{step, tools, workspace};

/// Where `envoy.yaml` listens: any address, and the loopback.
const SERVICE_PORT: u16 = 8000;
const ADMIN_PORT: u16 = 9901;

/// The token whose hash is in `envoy.yaml`.
const DEMO_TOKEN: &str = "admin_secret_token_change_in_production";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How much Envoy writes to target/demo/envoy.log: trace, debug, info, warning or error;
    /// `debug` shows each request's decision
    #[arg(long, default_value = "info")]
    log_level: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure_free((Ipv4Addr::UNSPECIFIED, SERVICE_PORT).into())?;
    ensure_free((Ipv4Addr::LOCALHOST, ADMIN_PORT).into())?;
    let binary = tools::envoy()?;
    filter::build(Toolchain::find()?)?;

    let log = workspace::target().join("demo/envoy.log");
    step(format!("starting Envoy with envoy.yaml; its log: {}", workspace::shown(&log)));
    let mut command = Command::new(binary);
    command.args(["--config-path", "envoy.yaml", "--concurrency", "2"]);
    command.args(["--log-level", &options.log_level]);
    let mut envoy = Envoy::start(&mut command, &log)?;
    // The filter answers this itself, so that then the filter runs too.
    envoy.wait_for(SocketAddr::from((Ipv4Addr::LOCALHOST, SERVICE_PORT)), "/health")?;

    print_what_to_try();
    while !interrupted() {
        envoy.check()?;
        if pause(Duration::from_millis(200)).is_err() {
            break;
        }
    }
    drop(envoy);
    step("stopped");
    Ok(())
}

fn print_what_to_try() {
    // An operator's own token wins over the one in envoy.yaml, and is not ours to print.
    let token = if env::var_os("ADMIN_TOKEN").is_some() { "$ADMIN_TOKEN" } else { DEMO_TOKEN };
    println!(
        r#"
The limiter is running. Try, in another terminal:

  curl -i http://localhost:{SERVICE_PORT}/test
  curl -i http://localhost:{SERVICE_PORT}/test -H 'X-API-Key: pro'
  for i in $(seq 15); do curl -s -o /dev/null -w '%{{http_code}} ' http://localhost:{SERVICE_PORT}/test; done; echo
  curl http://localhost:{SERVICE_PORT}/system/health -H "X-Admin-Token: {token}" -d '{{"status":"DEGRADED"}}'

Save config/tiers.json with other numbers: they hold within two seconds.
Metrics: http://localhost:{ADMIN_PORT}/stats/prometheus?filter=rate_limiter
Ctrl-C ends it.
"#
    );
}
