//! A running Envoy: its addresses, its admin endpoint, its log. It is killed when it is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use harness::bootstrap::string_value;
use harness::envoy_version;
use harness::process::ChildProcess;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::canary;
use crate::client::{Connection, Request, Response};
use crate::prometheus::Scrape;
use crate::setup::{CONFIG_FOLDER, ECDS_FILE, LDS_FILE, MAIN};
use crate::wait;

/// Envoy compiles the filter for each worker before it serves, while other tests run.
const START: Duration = Duration::from_secs(60);

/// What Envoy writes when the filter's VM has trapped.
const TRAPS: [&str; 3] = ["Function: proxy_on_", "Uncaught RuntimeError", "panicked at"];

/// Envoy's binary, from `ENVOY_BIN`.
#[track_caller]
pub fn envoy_bin() -> PathBuf {
    from_env("ENVOY_BIN")
}

/// Whether that Envoy can watch files that are written in place (`watch_modify`), not only moved files.
#[track_caller]
pub fn follows_writing_in_place() -> bool {
    static FOLLOWS: OnceLock<bool> = OnceLock::new();
    *FOLLOWS.get_or_init(|| {
        let output = Command::new(envoy_bin()).arg("--version").output().expect("Envoy prints its version");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let follows = envoy_version::version(&text).and_then(envoy_version::follows_writing_in_place);
        follows.unwrap_or_else(|| panic!("a version 1.x.y in: {text}"))
    })
}

/// A shipped bootstrap, changed so that this version of Envoy accepts it.
#[track_caller]
pub fn adapted(bootstrap: String) -> String {
    if follows_writing_in_place() {
        return bootstrap;
    }
    envoy_version::for_moved_files_alone(&bootstrap)
}

/// The filter, from `FILTER_WASM`.
#[track_caller]
pub fn filter_wasm() -> PathBuf {
    from_env("FILTER_WASM")
}

/// The path in that variable, which `cargo xtask test` sets.
#[track_caller]
pub fn from_env(name: &str) -> PathBuf {
    match std::env::var_os(name) {
        Some(path) if Path::new(&path).is_file() => path.into(),
        Some(path) => panic!("{name}={} is no file", path.display()),
        None => panic!("{name} is not set: run the end-to-end tests with `cargo xtask test`"),
    }
}

#[derive(Debug)]
pub struct Envoy {
    process: ChildProcess,
    dir: TempDir,
    admin: SocketAddr,
    listeners: BTreeMap<String, SocketAddr>,
    deliveries: u64,
    traps: bool,
}

impl Envoy {
    /// Runs `command`, an Envoy with its configuration, and waits until it serves. Its log and its
    /// admin address go to files in `dir`, which lives as long as the Envoy.
    #[track_caller]
    pub fn start(dir: TempDir, command: Command) -> Self {
        let mut process = launch(&dir, command);
        let admin = process.await_ready(START, "Envoy serves", || {
            let admin = fs::read_to_string(dir.path().join("admin.txt")).ok()?;
            let admin = admin.trim().parse().ok()?;
            let ready = get(admin, "/ready").ok()?;
            (ready.status == 200).then_some(admin)
        });
        Self { process, dir, admin, listeners: listener_addresses(admin), deliveries: 0, traps: false }
    }

    /// Sets whether the test expects the filter to trap.
    pub(crate) fn traps(mut self, traps: bool) -> Self {
        self.traps = traps;
        self
    }

    /// Runs `command`, which must end by itself because its configuration is refused.
    #[track_caller]
    pub(crate) fn start_refused(dir: TempDir, command: Command) -> String {
        let mut process = launch(&dir, command);
        let status =
            wait::until_within(START, "Envoy refuses its configuration and ends", || process.exit_status());
        assert!(!status.success(), "{status}\n{}", process.tail());
        process.output()
    }

    /// The main listener's address, or that of the first listener if none has that name.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        match self.listeners.get(MAIN) {
            Some(address) => *address,
            None => *self.listeners.values().next().expect("a listener on a TCP port"),
        }
    }

    #[track_caller]
    pub fn listener(&self, name: &str) -> SocketAddr {
        match self.listeners.get(name) {
            Some(address) => *address,
            None => panic!("no listener {name} among {:?}", self.listeners),
        }
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::open(self.address())
    }

    /// Sends one request to the main listener on a connection of its own.
    #[track_caller]
    pub fn send(&self, request: &Request) -> Response {
        self.connect().send(request)
    }

    #[track_caller]
    pub fn admin(&self, path: &str) -> String {
        match get(self.admin, path) {
            Ok(response) => response.text(),
            Err(error) => panic!("admin {path}: {error}"),
        }
    }

    /// Scrapes the metrics as Prometheus would.
    #[track_caller]
    pub fn scrape(&self) -> Scrape {
        Scrape::parse(&self.admin("/stats/prometheus"))
    }

    /// The value of one metric, `None` if it does not exist (yet).
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.scrape().value(name, labels)
    }

    /// Waits until a metric has this value; workers report once a second.
    #[track_caller]
    pub fn await_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let what = format!("{name} {labels:?} is {value}");
        wait::for_value(wait::SOON, &what, || self.metric(name, labels), |last| *last == Some(value));
    }

    /// One of Envoy's own statistics, 0 if it does not exist (yet).
    #[track_caller]
    pub fn stat(&self, name: &str) -> u64 {
        self.admin(&format!("/stats?filter=^{name}$"))
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
            .unwrap_or(0)
    }

    /// How many connections each worker has accepted on the main listener.
    #[track_caller]
    pub fn connections_by_worker(&self) -> Vec<u64> {
        self.admin("/stats?filter=^listener\\.127.*worker_.*downstream_cx_total$")
            .lines()
            .filter_map(|line| line.rsplit_once(": ")?.1.parse().ok())
            .collect()
    }

    /// Everything Envoy and the filter have logged so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Waits for a line that contains all of `words`; returns it.
    #[track_caller]
    pub fn await_log(&self, words: &[&str]) -> String {
        wait::until(&format!("a log line with {words:?}"), || self.log_lines(words).into_iter().next())
    }

    /// The lines that contain all of `words`.
    pub fn log_lines(&self, words: &[&str]) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| words.iter().all(|word| line.contains(word)))
            .map(str::to_owned)
            .collect()
    }

    #[track_caller]
    pub fn resident_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("Envoy is running");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
            .expect("a process has a resident size")
    }

    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces one of the documents that `config_files` serves, as editors do: a new file, renamed over the old one.
    #[track_caller]
    pub fn save(&self, name: &str, text: &str) {
        let path = self.dir.path().join(CONFIG_FOLDER).join(name);
        replace(&path, &path.with_extension("next"), text);
    }

    /// Overwrites one of the documents that `config_files` serves in place.
    #[track_caller]
    pub fn edit_in_place(&self, name: &str, text: &str) {
        let path = self.dir.path().join(CONFIG_FOLDER).join(name);
        fs::write(path, text).expect("a document written");
    }

    /// Delivers the next plugin configuration by ECDS, without waiting until it is applied.
    #[track_caller]
    pub fn deliver(&mut self, config: &Value) {
        self.deliver_plugin(|plugin| plugin["configuration"] = string_value(&config.to_string()));
    }

    /// [`Envoy::deliver`]; waits until the configuration is accepted or refused, and returns whether it was accepted.
    #[track_caller]
    pub fn deliver_and_wait(&mut self, config: &Value) -> bool {
        let (received, refused) = self.deliveries();
        self.deliver(config);
        wait::until("a delivery accepted or refused", || match self.deliveries() {
            (_, now) if now > refused => Some(false),
            (now, _) if now > received => Some(true),
            _ => None,
        })
    }

    /// Delivers the plugin's `PluginConfig` after `change`, as [`Envoy::deliver`] does.
    #[track_caller]
    pub fn deliver_plugin(&mut self, change: impl FnOnce(&mut Value)) {
        self.deliver_resources(ECDS_FILE, |resources| change(&mut resources[0]["typed_config"]["config"]));
    }

    /// Delivers the listeners by LDS after `change`, and waits until exactly those exist.
    #[track_caller]
    pub fn change_listeners(&mut self, change: impl FnOnce(&mut Vec<Value>)) {
        let wanted = self.deliver_resources(LDS_FILE, change);
        wait::until("the listeners taken", || {
            let updates = self.stat("listener_manager.lds.update_success");
            self.listeners = listener_addresses(self.admin);
            (updates > self.deliveries && self.listeners.len() == wanted).then_some(())
        });
    }

    /// Delivers the resources of this file after `change`; returns how many there are.
    #[track_caller]
    fn deliver_resources(&mut self, file: &str, change: impl FnOnce(&mut Vec<Value>)) -> usize {
        let path = self.dir.path().join(file);
        let current = fs::read_to_string(&path).expect("set up with `by_ecds` or `by_lds`");
        let mut response: Value = serde_json::from_str(&current).expect("written by the harness");
        self.deliveries += 1;
        response["version_info"] = json!(self.deliveries.to_string());
        let resources = response["resources"].as_array_mut().expect("resources");
        change(resources);
        let number = resources.len();
        // Not in the same folder: Envoy would read the old file again when the new one is written.
        replace(&path, &self.dir.path().join("next"), &response.to_string());
        number
    }

    /// How many configurations were received by ECDS, and how many of those were rejected.
    #[track_caller]
    pub fn deliveries(&self) -> (u64, u64) {
        let prefix = "extension_config_discovery.http_filter.rate_limiter";
        (self.stat(&format!("{prefix}.config_reload")), self.stat(&format!("{prefix}.config_fail")))
    }

    /// Every secret in what Envoy shows to operators without access to its configuration.
    #[track_caller]
    pub fn secrets(&self) -> Vec<String> {
        let shown =
            ["/stats", "/stats/prometheus", "/server_info"].map(|path| (path, self.admin(path).into_bytes()));
        let log = ("Envoy's log", self.log().into_bytes());
        canary::search(shown.into_iter().chain([log]))
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // If the test fails, Envoy may not answer any more, and the log is more useful.
        let secrets = if std::thread::panicking() { Vec::new() } else { self.secrets() };
        self.process.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.process.tail());
            return;
        }
        let log = self.log();
        let trap = log.lines().find(|line| TRAPS.iter().any(|trap| line.contains(trap)));
        assert_eq!(trap.is_some(), self.traps, "the filter trapped: {trap:?}\n{}", self.process.tail());
        canary::assert_none(&secrets);
    }
}

/// Runs `command` with Envoy's log and admin address in files of `dir`.
#[track_caller]
fn launch(dir: &TempDir, mut command: Command) -> ChildProcess {
    command
        .args(["--disable-hot-restart", "--log-level", "warning"])
        .arg("--admin-address-path")
        .arg(dir.path().join("admin.txt"));
    ChildProcess::start(command, dir.path().join("envoy.log"))
}

fn get(admin: SocketAddr, path: &str) -> std::io::Result<Response> {
    Connection::try_connect(admin, None)?.may_hold_secrets().try_send(&Request::get(path))
}

#[track_caller]
fn listener_addresses(admin: SocketAddr) -> BTreeMap<String, SocketAddr> {
    let answer = get(admin, "/listeners?format=json").expect("an admin endpoint");
    answer.json()["listener_statuses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|listener| {
            let socket = &listener["local_address"]["socket_address"];
            let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
            let address = match socket["address"].as_str()? {
                "0.0.0.0" => "127.0.0.1".parse().ok()?,
                address => address.parse().ok()?,
            };
            Some((listener["name"].as_str()?.to_owned(), SocketAddr::new(address, port)))
        })
        .collect()
}

fn replace(path: &Path, next: &Path, text: &str) {
    fs::write(next, text).expect("a file written");
    fs::rename(next, path).expect("a file renamed");
}
