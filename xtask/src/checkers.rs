//! Programs that check what we ship for others to run: Prometheus with its promtool, and validators with the schemas of
//! Compose and of Kubernetes.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::run;
use crate::tools::{debian_packages, on_path};
use crate::{step, workspace};

/// The Python package that carries Compose's schema and a validator for it and for others.
const CHECK_JSONSCHEMA_VERSION: &str = "0.39.0";

/// The Python package that carries Kubernetes' schemas and a validator for them.
const KUBERNETES_VALIDATE_VERSION: &str = "1.37.0";

/// Prometheus and promtool: the user's own if there are any, else Debian's.
pub(crate) fn prometheus() -> Result<(PathBuf, PathBuf)> {
    Ok((prometheus_program("PROMETHEUS", "prometheus")?, prometheus_program("PROMTOOL", "promtool")?))
}

fn prometheus_program(variable: &str, program: &str) -> Result<PathBuf> {
    let own = env::var_os(variable).map(PathBuf::from).or_else(|| on_path(program));
    let binary = match own {
        Some(binary) => binary,
        None => {
            debian_packages(&["prometheus"])
                .with_context(|| format!("no {program}: set {variable}, or have Debian's prometheus"))?;
            on_path(program)
                .with_context(|| format!("no `{program}` on PATH, though its package is installed"))?
        }
    };
    Ok(std::path::absolute(binary)?)
}

/// The validator for JSON schemas, in an environment whose Python also reads YAML.
pub(crate) fn check_jsonschema() -> Result<PathBuf> {
    python_program("check-jsonschema", CHECK_JSONSCHEMA_VERSION)
}

/// The validator for Kubernetes' own objects.
pub(crate) fn kubernetes_validate() -> Result<PathBuf> {
    python_program("kubernetes-validate", KUBERNETES_VALIDATE_VERSION)
}

/// The program of a Python package that is called like it, in a virtual environment of its own.
fn python_program(package: &str, version: &str) -> Result<PathBuf> {
    let environment = workspace::target().join("tools").join(format!("{package}-{version}"));
    let program = environment.join("bin").join(package);
    // An environment cannot be moved once it is made, so this file says that it is complete.
    let complete = environment.join("complete");
    if complete.is_file() {
        return Ok(program);
    }
    step(format!("installing {package} into {}", workspace::shown(&environment)));
    let has_venv = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if !has_venv.is_ok_and(|python| python.status.success()) {
        debian_packages(&["python3", "python3-venv"])
            .context("checking what we ship needs Python 3 with venv")?;
    }
    if environment.exists() {
        fs::remove_dir_all(&environment)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("{package}=={version}")))
    .with_context(|| format!("cannot install {package}"))?;
    fs::write(complete, "")?;
    Ok(program)
}
