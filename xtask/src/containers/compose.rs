//! Compose and buildx: the machine's own if they are new enough, else Debian's, under `target`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Docker;
use crate::process::{output_of, run};
use crate::tools::{major_and_minor, on_path};
use crate::{step, workspace};

/// The version that the shipped files need, for `depends_on.restart`.
const COMPOSE: (u32, u32) = (2, 17);

/// The first Debian release with these versions.
const SUITE: &str = "trixie";

/// The packages, whose plugins for docker have the same names.
const PACKAGES: [&str; 2] = ["docker-compose", "docker-buildx"];

pub(super) fn install() -> Result<Docker> {
    let own = Docker { config: None };
    if let Some(version) = usable(&own) {
        step(format!("Compose {version}, the machine's own"));
        return Ok(own);
    }
    let config = workspace::target().join("tools/docker");
    let docker = Docker { config: Some(config.clone()) };
    if usable(&docker).is_none() {
        step(format!("installing Compose and buildx from Debian {SUITE} into {}", workspace::shown(&config)));
        let packages = workspace::target().join("tools/docker-packages");
        Apt::new()?.unpack(&PACKAGES, &packages)?;
        let plugins = config.join("cli-plugins");
        let _ = fs::remove_dir_all(&plugins);
        fs::create_dir_all(&config)?;
        symlink(packages.join("usr/libexec/docker/cli-plugins"), plugins)?;
    }
    let version = usable(&docker).context("Debian's Compose does not run with this `docker`")?;
    step(format!("Compose {version}, Debian's"));
    Ok(docker)
}

/// The version of Compose, if it and buildx are installed and it is new enough.
fn usable(docker: &Docker) -> Option<String> {
    output_of(&mut docker.command(&["buildx", "version"])).ok()?;
    let version = output_of(&mut docker.command(&["compose", "version", "--short"])).ok()?;
    let version = version.trim().trim_start_matches('v').to_owned();
    let found = major_and_minor(&version)?;
    (found >= COMPOSE).then_some(version)
}

/// Packages of another Debian release, downloaded without changes to this machine's own package lists.
pub(super) struct Apt {
    options: Vec<String>,
    /// The address of this machine's Debian mirror.
    pub(super) mirror: String,
}

impl Apt {
    pub(super) fn new() -> Result<Self> {
        ensure!(on_path("apt-get").is_some(), "this needs Debian's packages, and there is no apt-get here");
        let sites =
            output_of(Command::new("apt-get").args(["indextargets", "--format", "$(SITE) $(LABEL)"]))?;
        let mirror = sites.lines().find_map(|line| line.strip_suffix(" Debian"));
        let mirror = mirror.context("this machine's apt has no Debian")?.trim_end_matches('/').to_owned();
        let folder = workspace::target().join("tools/apt");
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        let sources = folder.join("sources.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(&sources, format!("deb [signed-by={keys}] {mirror} {SUITE} main\n"))?;
        let settings = [
            ("Dir::State::Lists", folder.join("lists")),
            ("Dir::Cache", folder.join("cache")),
            ("Dir::Etc::SourceList", sources),
            ("Dir::Etc::SourceParts", folder.join("none")),
        ];
        let options = settings.iter().map(|(name, path)| format!("-o{name}={}", path.display())).collect();
        let apt = Self { options, mirror };
        run(Command::new("apt-get").args(&apt.options).args(["update", "--quiet=2"]))?;
        Ok(apt)
    }

    pub(super) fn unpack(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let downloads = folder.with_extension("downloads");
        fs::create_dir_all(&downloads)?;
        // As root, because the user `_apt` has no write permission there.
        let mut download = Command::new("apt-get");
        download.args(&self.options).args(["-oAPT::Sandbox::User=root", "--quiet=2", "download"]);
        run(download.args(packages).current_dir(&downloads))?;
        for package in fs::read_dir(&downloads)? {
            run(Command::new("dpkg").arg("-x").arg(package?.path()).arg(folder))?;
        }
        Ok(fs::remove_dir_all(&downloads)?)
    }

    pub(super) fn debootstrap(&self, folder: &Path) -> Result<()> {
        let tool = workspace::target().join("tools/debootstrap");
        self.unpack(&["debootstrap"], &tool)?;
        let mut debootstrap = Command::new(tool.join("usr/sbin/debootstrap"));
        debootstrap
            .env("DEBOOTSTRAP_DIR", tool.join("usr/share/debootstrap"))
            .args(["--variant=minbase", "--include=ca-certificates,busybox", SUITE])
            .arg(folder)
            .arg(&self.mirror)
            .stdout(std::process::Stdio::null());
        run(&mut debootstrap)
    }
}
