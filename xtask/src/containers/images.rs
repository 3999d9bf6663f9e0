//! The images in the shipped files: existing ones, else pulled, else stand-ins.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::Docker;
use super::compose::Apt;
use crate::process::{output_of, run_logged_within, run_within};
use crate::tools::{ENVOY_VERSION, install_envoy};
use crate::{step, workspace};

const FILES: [&str; 3] = ["Dockerfile", "docker-compose.yml", "deploy/compose/production.yml"];

/// The images with a stand-in, and its stage in `tests/containers/stand-ins/Dockerfile`.
const STAND_INS: [(&str, &str); 5] = [
    ("envoyproxy/envoy", "envoy"),
    ("prom/prometheus", "prometheus"),
    ("redis", "redis"),
    ("rust", "rust"),
    ("valkey/valkey", "valkey"),
];

/// The label of stand-ins; its value is a hash of their sources.
const LABEL: &str = "rate-limiter.stand-in";

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const BASE: &str = "rate-limiter-stand-in-base";

const PULL_LIMIT: Duration = Duration::from_secs(300);
const BUILD_LIMIT: Duration = Duration::from_secs(900);

pub(super) fn provide(docker: &Docker, sources: &Path) -> Result<()> {
    let folder = workspace::target().join("containers/stand-ins");
    fs::create_dir_all(&folder)?;
    for file in fs::read_dir(sources.join("tests/containers/stand-ins"))? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    fs::copy(CERTIFICATES, folder.join("ca-certificates.crt"))
        .context("copying the machine's certificates")?;
    let recipe = recipe(&folder)?;
    let mut has_registry = true;
    for (image, stage) in named(sources)? {
        let exists = match label(docker, &image).as_deref() {
            Some("") => Some("exists"),
            Some(label) if label == recipe => Some("a stand-in, exists"),
            _ => None,
        };
        if let Some(exists) = exists {
            step(format!("{image}: {exists}"));
            continue;
        }
        let log = workspace::target().join("containers/pull.log");
        let mut pull = docker.command(&["pull", "--quiet", &image]);
        if has_registry && run_logged_within(&mut pull, &log, PULL_LIMIT).unwrap_or(false) {
            step(format!("{image}: pulled"));
            continue;
        }
        has_registry = false;
        step(format!("{image}: cannot be pulled, building a stand-in"));
        provide_base(docker)?;
        let envoy = folder.join("envoy");
        if !envoy.exists() {
            fs::copy(install_envoy(ENVOY_VERSION)?, &envoy)?;
        }
        let mut build = docker.command(&["buildx", "build", "--quiet", "--load", "--target", stage]);
        build.args(["--build-arg", &format!("BASE={BASE}"), "--label", &format!("{LABEL}={recipe}")]);
        build.args(["--tag", &image]).arg(&folder).stdout(Stdio::null());
        run_within(&mut build, BUILD_LIMIT).with_context(|| format!("a stand-in for {image}"))?;
    }
    Ok(())
}

/// The images in the files, with their stages. Each version of an image is a separate one.
fn named(sources: &Path) -> Result<BTreeMap<String, &'static str>> {
    let mut images = BTreeMap::new();
    for file in FILES {
        let text = fs::read_to_string(sources.join(file))?;
        for word in text.split([' ', '\n', ',', '"']) {
            let Some((name, tag)) = word.split_once(':') else { continue };
            let stand_in = STAND_INS.iter().find(|(image, _)| *image == name);
            if let Some((_, stage)) = stand_in.filter(|_| tag.contains(|c: char| c.is_ascii_digit())) {
                images.insert(word.to_owned(), *stage);
            }
        }
    }
    ensure!(images.len() >= STAND_INS.len(), "the shipped files name {images:?}");
    Ok(images)
}

fn recipe(folder: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for file in ["Dockerfile", "envoy-entrypoint.sh", "ca-certificates.crt"] {
        hash.update(fs::read(folder.join(file))?);
    }
    hash.update(ENVOY_VERSION);
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// The label of an existing image, empty if it is not a stand-in.
fn label(docker: &Docker, image: &str) -> Option<String> {
    let format = format!("{{{{index .Config.Labels \"{LABEL}\"}}}}");
    let printed = output_of(&mut docker.command(&["image", "inspect", "--format", &format, image])).ok()?;
    Some(printed.trim().trim_matches('\'').to_owned())
}

fn provide_base(docker: &Docker) -> Result<()> {
    if output_of(&mut docker.command(&["image", "inspect", BASE])).is_ok() {
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "building stand-ins for images needs root, for debootstrap"
    );
    let folder = tempfile::tempdir_in(workspace::target().join("containers"))?;
    // Not the temporary folder itself, which only root may read.
    let root = folder.path().join("root");
    Apt::new()?.debootstrap(&root)?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root);
    tar.args(["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "-c", "."]);
    let mut tar = tar.stdout(Stdio::piped()).spawn()?;
    let mut import = docker.command(&["import", "-", BASE]);
    let imported = import.stdin(tar.stdout.take().context("tar writes")?).stdout(Stdio::null()).status()?;
    ensure!(tar.wait()?.success() && imported.success(), "importing Debian as an image failed");
    Ok(())
}
