//! `cargo xtask demo`: Envoy with the filter on port 8000, until Ctrl-C.

mod overload;
mod redis;

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use overload::Overload;
use redis::Redis;

use crate::envoy::{self, ensure_free, loopback};
use crate::filter::{self, Toolchain};
use crate::process::{Running, pause};
use crate::watch::Watched;
use crate::{step, tools, workspace};

/// The ports of the configurations: on any address, and on the loopback.
const SERVICE_PORT: u16 = 8000;
const ADMIN_PORT: u16 = 9901;

/// The token whose hash is in the configurations.
const DEMO_TOKEN: &str = "admin_secret_token_change_in_production";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The store of the buckets
    #[arg(long, value_enum, default_value_t)]
    store: Store,
    /// The log level of target/demo/envoy.log: trace, debug, info, warning or error;
    /// `debug` shows each request that a bucket decided
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Add an upstream of limited capacity and a load that rises and falls: health changes automatically
    #[arg(long, conflicts_with = "store")]
    overload: bool,
    /// Show tokens, requests allowed and rejected, and health live on one screen; `q` or Ctrl-C ends the demo
    #[arg(long)]
    watch: bool,
}

#[derive(Clone, Copy, Default, PartialEq, ValueEnum)]
enum Store {
    /// In Envoy itself
    #[default]
    #[value(alias = "shared_data")]
    SharedData,
    /// In Redis, which is started, too
    Redis,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut demo = Demo::start(options, &tools::envoy()?)?;
    if demo.overload.is_some() {
        Overload::print_overload_instructions();
    } else {
        print_instructions();
    }
    if let Some(redis) = &demo.redis {
        redis.print_instructions();
    }
    println!("\nCtrl-C ends it.\n");
    if options.watch { demo.watch_until_interrupted() } else { demo.wait_until_interrupted() }?;
    drop(demo);
    step("stopped");
    Ok(())
}

/// Starts every demo with this Envoy, one after the other, and ends each when it serves.
pub(crate) fn start_each(envoy: &Path) -> Result<()> {
    for (store, overload) in [(Store::SharedData, false), (Store::Redis, false), (Store::SharedData, true)] {
        let options = Options { store, log_level: "info".to_owned(), overload, watch: false };
        Demo::start(&options, envoy)?;
    }
    Ok(())
}

/// The running processes; they end in this order.
struct Demo {
    overload: Option<Overload>,
    envoy: Running,
    redis: Option<Redis>,
}

impl Demo {
    fn start(options: &Options, binary: &Path) -> Result<Self> {
        ensure_free([(Ipv4Addr::UNSPECIFIED, SERVICE_PORT).into(), loopback(ADMIN_PORT)])?;
        let redis_server = match options.store {
            Store::SharedData => None,
            Store::Redis => Some(redis::ensure_port_free().and_then(|()| tools::redis_server())?),
        };
        filter::build(Toolchain::find()?)?;
        let redis = redis_server.as_deref().map(Redis::start).transpose()?;
        let log = options.watch.then(|| workspace::target().join("demo/load.log"));
        let overload = options.overload.then(|| Overload::start(log)).transpose()?;
        Ok(Self { overload, envoy: start_envoy(options, binary)?, redis })
    }

    fn wait_until_interrupted(&mut self) -> Result<()> {
        loop {
            self.check()?.iter().for_each(step);
            if pause(Duration::from_millis(200)).is_err() {
                return Ok(());
            }
        }
    }

    fn watch_until_interrupted(&mut self) -> Result<()> {
        let configured = workspace::root().join("config/tiers.json");
        let tiers = if self.overload.is_some() { Overload::tiers() } else { configured };
        let watched = Watched { admin: loopback(ADMIN_PORT), tiers };
        let mut is_first = self.overload.is_none();
        watched.watch(|notices| {
            if std::mem::take(&mut is_first) {
                notices
                    .push(format!("Try, in another terminal: curl -i http://localhost:{SERVICE_PORT}/test"));
            }
            notices.extend(self.check()?);
            Ok(())
        })
    }

    /// Checks that all processes run, and restarts the load; returns notices.
    fn check(&mut self) -> Result<Vec<String>> {
        self.envoy.check()?;
        let begun = self.overload.as_mut().map(Overload::tick).transpose()?.flatten();
        let ended = self.redis.as_mut().map(Redis::notice_of_end).transpose()?.flatten();
        if ended.is_some() {
            self.redis = None;
        }
        Ok(ended.into_iter().chain(begun).collect())
    }
}

fn start_envoy(options: &Options, binary: &Path) -> Result<Running> {
    let log = workspace::target().join("demo/envoy.log");
    let bootstrap = match options.store {
        _ if options.overload => Overload::bootstrap(),
        Store::SharedData => shipped("envoy.yaml", binary)?,
        Store::Redis => shipped("deploy/redis/envoy.yaml", binary)?,
    };
    let shown = workspace::shown;
    step(format!("starting Envoy with {}; its log: {}", shown(&bootstrap), shown(&log)));
    let mut command = Command::new(binary);
    command.arg("--config-path").arg(&bootstrap).args(["--concurrency", "2"]);
    command.args(["--log-level", &options.log_level]);
    // Credentials in our environment are for another Redis; the demo's requires none.
    command.env_remove("REDIS_USERNAME").env_remove("REDIS_PASSWORD");
    // The filter answers this path itself, so it is running then.
    envoy::start(&mut command, &log, loopback(SERVICE_PORT), "/health")
}

/// The shipped bootstrap, or a copy of it that this Envoy accepts.
fn shipped(bootstrap: &str, envoy: &Path) -> Result<PathBuf> {
    let file = workspace::root().join(bootstrap);
    let version = tools::version_of(envoy)?;
    let follows = harness::envoy_version::follows_writing_in_place(&version);
    if follows.with_context(|| format!("not a version: {version}"))? {
        return Ok(file);
    }
    step(format!(
        "Envoy {version} does not know `watch_modify`, so the demo goes without: save config/tiers.json by a new file \
         moved over it, as most editors and `sed -i` do"
    ));
    let copy = workspace::target().join("demo/envoy.yaml");
    workspace::write(&copy, harness::envoy_version::for_moved_files_alone(&fs::read_to_string(file)?))?;
    Ok(copy)
}

fn print_instructions() {
    // An operator's own token overrides the one in the configuration, and must not be printed.
    let token = if env::var_os("ADMIN_TOKEN").is_some() { "$ADMIN_TOKEN" } else { DEMO_TOKEN };
    println!(
        r#"
The limiter is running. Try, in another terminal:

  curl -i http://localhost:{SERVICE_PORT}/test
  curl -i http://localhost:{SERVICE_PORT}/test -H 'X-API-Key: pro'
  for i in $(seq 15); do curl -s -o /dev/null -w '%{{http_code}} ' http://localhost:{SERVICE_PORT}/test; done; echo
  curl http://localhost:{SERVICE_PORT}/system/health -H "X-Admin-Token: {token}" -d '{{"status":"DEGRADED"}}'

Save config/tiers.json with other numbers: they apply within about two seconds.
Metrics: http://localhost:{ADMIN_PORT}/stats/prometheus?filter=rate_limiter"#
    );
}
