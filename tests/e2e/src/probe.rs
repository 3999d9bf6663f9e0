//! The probe filter in a real Envoy, which checks a table of facts about Envoy.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use harness::bootstrap::{self, socket, tcp};
use scenarios::facts;
use serde_json::{Value, json};

use crate::client::Connection;
use crate::envoy::{Envoy, envoy_bin, from_env};
use crate::http2;
use crate::upstream::{Answer, Received, Upstream, refusing};

/// How many connections are opened at most until two workers have answered.
const MOST_CONNECTIONS: usize = 400;

/// An Envoy with the probe in each of the table's plugins, and its upstream.
#[derive(Debug)]
pub struct Probe {
    envoy: Envoy,
    _upstream: Upstream,
    /// For example `1.40`: some facts differ between versions.
    minor: String,
}

impl Probe {
    #[track_caller]
    pub fn start(table: &Value) -> Self {
        let upstream = Upstream::start(answer);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("bootstrap.json");
        let bootstrap = configuration(table, &upstream);
        std::fs::write(&path, bootstrap.to_string()).expect("the bootstrap written");
        let mut command = Command::new(envoy_bin());
        command.arg("-c").arg(&path).args(["--concurrency", "2", "--component-log-level", "wasm:info"]);
        command.current_dir(dir.path());
        command.envs(facts::texts(&table["environment_of_envoy"]));
        let envoy = Envoy::start(dir, command);
        let info: Value = serde_json::from_str(&envoy.admin("/server_info")).expect("JSON");
        // `<commit>/1.40.0/Clean/RELEASE/BoringSSL`
        let version = info["version"].as_str().and_then(|version| version.split('/').nth(1));
        let minor = version.and_then(|version| version.rsplit_once('.')).expect("a version").0.to_owned();
        Self { envoy, _upstream: upstream, minor }
    }

    /// Checks one fact; returns the differences from the table.
    pub fn mismatches(&self, fact: &Value) -> Vec<String> {
        let mut connections = BTreeMap::new();
        let steps = fact["exceptions"].get(&self.minor).unwrap_or(&fact["steps"]);
        let steps = steps.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut found: Vec<_> = steps
            .iter()
            .flat_map(|step| self.check_step(&format!("/{}", facts::name(fact)), step, &mut connections))
            .collect();
        if steps.is_empty() {
            found.push("no steps".to_owned());
        }
        found
    }

    fn check_step(
        &self,
        path: &str,
        step: &Value,
        connections: &mut BTreeMap<String, Connection>,
    ) -> Vec<String> {
        let plugin = step["plugin"].as_str().unwrap_or("probe");
        std::thread::sleep(Duration::from_millis(step["pause_ms"].as_u64().unwrap_or(0)));
        let request = encode(path, step);
        let method = step["method"].as_str().unwrap_or("GET");
        let address = self.envoy.listener(plugin);
        let check = |connection: &mut Connection| {
            let reply = connection.write(&request).and_then(|()| connection.read(method));
            let reply = reply.map_err(|error| vec![format!("no answer: {error}")])?;
            let found = facts::differences(step, &reply);
            if found.is_empty() { Ok(reply) } else { Err(found) }
        };
        if step["every_worker"] != true {
            let connection =
                connections.entry(plugin.to_owned()).or_insert_with(|| Connection::open(address));
            return check(connection).err().unwrap_or_default();
        }
        let mut workers = BTreeSet::new();
        for _ in 0..MOST_CONNECTIONS {
            match check(&mut Connection::open(address)) {
                Err(found) => return found,
                Ok(reply) => workers.extend(reply.all("x-probe-vm")),
            }
            if workers.len() > 1 {
                return Vec::new();
            }
        }
        vec![format!("only the workers {workers:?} answered")]
    }
}

fn encode(path: &str, step: &Value) -> Vec<u8> {
    let mut bytes = facts::request(path, step).encode();
    if step["trailers"] == true {
        bytes.truncate(bytes.len() - 2);
        bytes.extend_from_slice(b"x-trailer: 1\r\n\r\n");
    }
    bytes
}

/// The upstream of the table: one header with two values, and the request's body or `ok`.
fn answer(request: &Received) -> Answer {
    match request.target.as_str() {
        "/silent" => Answer::Late(Duration::from_secs(1), Box::new(Answer::ok("late"))),
        "/break_off" => Answer::BreakOff,
        _ => {
            let body = if request.body.is_empty() { b"ok".to_vec() } else { request.body.clone() };
            let twice = |value: &str| ("x-twice".to_owned(), value.to_owned());
            Answer::Respond(200, vec![twice("a"), twice("b")], body)
        }
    }
}

fn configuration(table: &Value, upstream: &Upstream) -> Value {
    let plugins = table["plugins"].as_object().expect("plugins");
    let listeners: Vec<_> = plugins.iter().map(|(name, plugin)| listener(table, name, plugin)).collect();
    let clusters = [
        bootstrap::cluster("upstream", &[socket(upstream.address())]),
        bootstrap::http2_cluster("refusing", &[socket(refusing())]),
        bootstrap::http2_cluster("grpc", &[socket(http2::grpc_server())]),
    ];
    json!({
        "admin": {"address": tcp("127.0.0.1", 0)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn listener(table: &Value, name: &str, plugin: &Value) -> Value {
    let form = |kind: &str, value: &Value| json!({"@type": format!("type.googleapis.com/google.protobuf.{kind}"), "value": value});
    let given = &plugin["configuration"];
    let configuration = match (given.get("string"), given.get("struct"), given.get("bytes")) {
        (Some(text), _, _) => form("StringValue", text),
        (_, Some(fields), _) => form("Struct", fields),
        (_, _, Some(base64)) => form("BytesValue", base64),
        _ => Value::Null,
    };
    let passed_on: Vec<_> =
        table["environment_of_envoy"].as_object().into_iter().flatten().map(|v| v.0).collect();
    let mut probe = bootstrap::wasm(
        "probe",
        &from_env("PROBE_WASM"),
        json!({
            "name": name,
            "root_id": plugin["root_id"],
            "allow_on_headers_stop_iteration": plugin["allow_on_headers_stop_iteration"],
            "configuration": configuration,
        }),
    );
    let vm = &mut probe["typed_config"]["config"]["vm_config"];
    vm["vm_id"] = plugin["vm_id"].clone();
    vm["environment_variables"] = json!({"key_values": table["environment"], "host_env_keys": passed_on});
    let fields = json!({
        // The address in `x-forwarded-for` is the client's, so a test can choose it.
        "use_remote_address": true,
        "xff_num_trusted_hops": 1,
        "http_protocol_options": {"enable_trailers": true},
        "route_config": bootstrap::routes(&json!([{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}])),
    });
    bootstrap::listener(name, &tcp("127.0.0.1", 0), fields, [probe])
}
