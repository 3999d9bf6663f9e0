//! A running Prometheus: it scrapes, evaluates rules and answers queries. It is killed when it is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use harness::port;
use harness::process::ChildProcess;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Connection, Request, Response};
use crate::envoy::from_env;

const START: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    process: ChildProcess,
    _dir: TempDir,
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
        let mut command = Command::new(from_env("PROMETHEUS"));
        command
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir.path());
        let mut process = ChildProcess::start(command, dir.path().join("prometheus.log"));
        process.await_ready(START, "Prometheus is ready", || {
            get(address, "/-/ready").is_ok_and(|reply| reply.status == 200).then_some(())
        });
        Self { address, process, _dir: dir }
    }

    /// [`query`] of this one.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        query(self.address, expression)
    }

    /// Every alert rule with its state: `inactive`, `pending` or `firing`.
    #[track_caller]
    pub fn alerts(&self) -> BTreeMap<String, String> {
        let rules = api(self.address, "rules?type=alert");
        let rules = rules["groups"].as_array().expect("groups of rules").iter();
        rules
            .flat_map(|group| group["rules"].as_array().expect("rules"))
            .map(|rule| (text(&rule["name"]), text(&rule["state"])))
            .collect()
    }
}

/// The current result of an expression in the Prometheus at this address: the samples of a vector.
#[track_caller]
pub fn query(address: SocketAddr, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
    let data = api(address, &format!("query?query={}", utf8_percent_encode(expression, NON_ALPHANUMERIC)));
    let result = data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}"));
    let sample = |sample: &Value| {
        let labels = sample["metric"].as_object().expect("labels").iter();
        let labels = labels.map(|(name, value)| (name.clone(), text(value))).collect();
        (labels, text(&sample["value"][1]).parse().expect("a number"))
    };
    result.iter().map(sample).collect()
}

/// The data of a successful call of the API of the Prometheus at this address.
#[track_caller]
pub fn api(address: SocketAddr, path: &str) -> Value {
    let reply = get(address, &format!("/api/v1/{path}")).expect("Prometheus answers");
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    reply.json()["data"].take()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Prometheus' log ---\n{}", self.process.output());
        }
    }
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<Response> {
    Connection::try_connect(address, None)?.try_send(&Request::get(path))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
