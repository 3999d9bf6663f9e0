//! `cargo xtask test containers`: the shipped containers in a real engine.
//!
//! The sources are copied to a folder, where the tests may edit them; the program `tests/containers` runs the tests.
//! All changes can be undone: Compose and the sources of stand-ins are under `target`, images are pulled if possible,
//! and containers are identified by the names of the tests' projects.

mod compose;
mod images;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::envoy::{ensure_free, loopback};
use crate::filter::{self, Toolchain};
use crate::process::{output_of, run_within};
use crate::{step, workspace};

/// Compose projects of the tests, as `tests/containers` names them.
const PROJECTS: [&str; 2] = ["rate-limiter-test-development", "rate-limiter-test-production"];

/// The ports that the shipped files publish.
const PORTS: [u16; 3] = [8000, 9090, 3000];

/// A cold run builds the filter in an image, which takes minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

pub(crate) fn engine() -> Result<String> {
    output_of(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))
        .context("no Docker engine answers: `docker version`")
}

/// Runs all chapters, or these.
pub(crate) fn run(chapters: &[OsString]) -> Result<()> {
    step(format!("Docker engine {}", engine()?.trim()));
    ensure_free(PORTS.map(loopback))?;
    let docker = compose::install()?;
    let folder = workspace::target().join("containers/sources");
    copy(&folder)?;
    images::provide(&docker, &folder)?;

    let mut build = workspace::cargo();
    run_within(build.args(["build", "--quiet", "--package", "containers"]), LIMIT)?;
    let cleaned = Cleaned(docker);
    cleaned.remove_containers();
    let docker = &cleaned.0;
    let mut tests = Command::new(workspace::target().join("debug/containers"));
    tests.args(chapters).env("CONTAINERS_FOLDER", &folder).envs(docker.variable());
    run_within(&mut tests, LIMIT)
}

/// Copies the sources as a user has them, with a built filter. Files that tests have edited are reset, and a developer's
/// own secrets are not part of the sources.
fn copy(folder: &Path) -> Result<()> {
    workspace::copy_sources(folder)?;
    let secrets = folder.join("deploy/compose/secrets");
    if secrets.exists() {
        fs::remove_dir_all(&secrets)?;
    }
    let wasm = filter::build(Toolchain::find()?)?;
    let target = folder.join("target");
    fs::create_dir_all(&target)?;
    fs::copy(&wasm, target.join(wasm.file_name().context("the filter is a file")?))?;
    Ok(())
}

/// The configuration with which `docker` finds Compose.
pub(crate) struct Docker {
    /// A folder with plugins, if the machine's own are not usable.
    config: Option<PathBuf>,
}

impl Docker {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments).envs(self.variable());
        command
    }

    fn variable(&self) -> Option<(&str, &Path)> {
        self.config.as_deref().map(|config| ("DOCKER_CONFIG", config))
    }
}

/// Removes the containers of the tests when it is dropped: at the end, after a failure, on Ctrl-C.
struct Cleaned(Docker);

impl Drop for Cleaned {
    fn drop(&mut self) {
        self.remove_containers();
    }
}

impl Cleaned {
    /// Removes containers, networks and volumes of the tests' own projects, found by Compose's label.
    fn remove_containers(&self) {
        let kinds = [
            ("ps --all --quiet", "rm --force --volumes"),
            ("network ls --quiet", "network rm"),
            ("volume ls --quiet", "volume rm"),
        ];
        let docker = |arguments: &str| self.0.command(&arguments.split(' ').collect::<Vec<_>>());
        for project in PROJECTS {
            for (list, remove) in kinds {
                let mut list = docker(list);
                list.args(["--filter", &format!("label=com.docker.compose.project={project}")]);
                let listed = output_of(&mut list).unwrap_or_default();
                if listed.trim().is_empty() {
                    continue;
                }
                if let Err(error) = output_of(docker(remove).args(listed.split_whitespace())) {
                    step(format!("left behind by {project}: {error:#}"));
                }
            }
        }
    }
}
