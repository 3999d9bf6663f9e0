//! The commands of `docker` and `docker compose`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{shipped_files, wait};
use serde_json::Value;

/// How long containers may take to become healthy on a busy machine.
const HEALTHY: Duration = Duration::from_secs(60);

/// One Compose file, with a project name for this test.
#[derive(Clone)]
pub(crate) struct Compose {
    folder: PathBuf,
    file: PathBuf,
    project: String,
    profiles: Vec<String>,
}

impl Compose {
    pub(crate) fn new(folder: &Path, file: &str, project: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            file: folder.join(file),
            project: project.to_owned(),
            profiles: Vec::new(),
        }
    }

    /// The same with a profile.
    pub(crate) fn with_profile(&self, profile: &str) -> Self {
        Self { profiles: vec!["--profile".to_owned(), profile.to_owned()], ..self.clone() }
    }

    /// Sets the folder and the environment of a command.
    fn in_project(&self, mut command: Command) -> Command {
        for variable in ["ADMIN_TOKEN", "DEFAULT_TIER", "CONFIG_TTL", "REDIS_PASSWORD"] {
            command.env_remove(variable);
        }
        command
            .current_dir(&self.folder)
            .env("COMPOSE_PROJECT_NAME", &self.project)
            .env("COMPOSE_FILE", &self.file)
            .env("FILTER", "ready");
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("compose").args(&self.profiles).args(arguments);
        self.in_project(command)
    }

    /// Runs `docker compose …`: whether it succeeded, and its output.
    pub(crate) fn try_run(&self, arguments: &[&str]) -> (bool, String) {
        shipped_files::run(&mut self.command(arguments))
    }

    /// Runs `docker compose …`; returns its output.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        output(self.command(arguments))
    }

    /// [`Compose::run`] with another value of FILTER.
    #[track_caller]
    pub(crate) fn run_with_filter(&self, filter: &str, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        command.env("FILTER", filter);
        output(command)
    }

    /// Runs one of the shipped scripts; returns its output.
    #[track_caller]
    pub(crate) fn run_script(&self, script: &str) -> String {
        output(self.in_project(Command::new(self.folder.join(script))))
    }

    /// Runs a command in a service's container.
    #[track_caller]
    pub(crate) fn exec(&self, service: &str, words: &[&str]) -> String {
        self.run(&[&["exec", "-T", service], words].concat())
    }

    /// `docker inspect` of each running container of a service.
    #[track_caller]
    pub(crate) fn inspect(&self, service: &str) -> Vec<Value> {
        let ids = self.run(&["ps", "--quiet", service]);
        ids.lines().map(inspect).collect()
    }

    /// The names of the service's running containers.
    #[track_caller]
    pub(crate) fn names(&self, service: &str) -> Vec<String> {
        let name = |container: &Value| text(&container["Name"]).trim_start_matches('/').to_owned();
        self.inspect(service).iter().map(name).collect()
    }

    /// Waits until all containers of the service are healthy.
    #[track_caller]
    pub(crate) fn await_healthy(&self, service: &str, count: usize) {
        wait::until_within(HEALTHY, &format!("{count} of {service} are healthy"), || {
            let containers = self.inspect(service);
            let healthy =
                containers.iter().filter(|one| one["State"]["Health"]["Status"] == "healthy").count();
            (healthy == count && containers.len() == count).then_some(())
        });
    }

    /// Removes everything, volumes included.
    #[track_caller]
    pub(crate) fn down(&self) {
        self.run(&["down", "--volumes", "--remove-orphans"]);
    }
}

#[track_caller]
pub(crate) fn inspect(container: &str) -> Value {
    let printed = docker(&["inspect", container]);
    let containers: Value = serde_json::from_str(&printed).expect("docker prints JSON");
    containers[0].clone()
}

/// Runs `docker …`; returns its output.
#[track_caller]
pub(crate) fn docker(arguments: &[&str]) -> String {
    let mut command = Command::new("docker");
    command.args(arguments);
    output(command)
}

#[track_caller]
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[track_caller]
fn output(mut command: Command) -> String {
    let output = command.output().expect("an installed program");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}
