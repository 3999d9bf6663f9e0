//! A running Prometheus: it scrapes, evaluates rules and answers queries. It is killed when it is dropped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Connection, Request, Response};
use crate::envoy::from_env;
use harness::{port, process, wait};

const START: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Prometheus {
    dir: TempDir,
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    /// Starts Prometheus in a folder with these files; `prometheus.yml` is its configuration.
    #[track_caller]
    pub fn start(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("a file written");
        }
        let address = port::reserve();
        let log = File::create(dir.path().join("prometheus.log")).expect("a log file");
        let mut command = Command::new(from_env("PROMETHEUS"));
        command
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file descriptor to spare"))
            .stderr(log);
        let child = process::spawn(command).expect("Prometheus starts");
        let mut prometheus = Self { dir, address, child };
        wait::until_within(START, "Prometheus is ready", || {
            if let Some(status) = prometheus.child.try_wait().expect("a child to wait for") {
                panic!("Prometheus ended: {status}\n{}", prometheus.log());
            }
            prometheus.get("/-/ready").is_ok_and(|reply| reply.status == 200).then_some(())
        });
        prometheus
    }

    /// The current result of an expression: the samples of a vector.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let data = self.api(&format!("query?query={}", percent_encoded(expression)));
        let result = data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}"));
        let sample = |sample: &Value| {
            let labels = sample["metric"].as_object().expect("labels").iter();
            let labels = labels.map(|(name, value)| (name.clone(), text(value))).collect();
            (labels, text(&sample["value"][1]).parse().expect("a number"))
        };
        result.iter().map(sample).collect()
    }

    /// Every alert rule with its state: `inactive`, `pending` or `firing`.
    #[track_caller]
    pub fn alerts(&self) -> BTreeMap<String, String> {
        let rules = self.api("rules?type=alert");
        let rules = rules["groups"].as_array().expect("groups of rules").iter();
        rules
            .flat_map(|group| group["rules"].as_array().expect("rules"))
            .map(|rule| (text(&rule["name"]), text(&rule["state"])))
            .collect()
    }

    #[track_caller]
    fn api(&self, path: &str) -> Value {
        let reply = self.get(&format!("/api/v1/{path}")).expect("Prometheus answers");
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()["data"].take()
    }

    fn get(&self, path: &str) -> std::io::Result<Response> {
        Connection::try_connect(self.address, None)?.try_send(&Request::get(path))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("prometheus.log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail only for a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- Prometheus' log ---\n{}", self.log());
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes it");
        }
        encoded
    })
}
