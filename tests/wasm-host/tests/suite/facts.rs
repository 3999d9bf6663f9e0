//! This host and a real Envoy agree on the facts that the limiter relies on. The probe filter and the table are those
//! with which `e2e` tests Envoy.

use std::collections::BTreeMap;

use harness::catch_panic;
use scenarios::{Answer, Body, Response, facts};
use serde_json::Value;
use wasm_host::{Setup, Upstream, World};

/// Facts that are not checked here, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "plugin/source_address_ipv6",
        "Envoy's connection manager takes the address from a header; here a test sets it",
    ),
    ("plugin/configuration_struct", "Envoy serializes the `Struct`; here a test sets the bytes"),
];

/// The workers of each plugin.
const WORKERS: usize = 2;

/// Longer than any request of the probe takes.
const MAX_WAIT_MS: u64 = 20_000;

/// How often the test checks for a response. The probe's tick period is ten times as long.
const CHECK_MS: u64 = 1;

/// An Envoy with the probe in each of the table's plugins.
struct Probe {
    world: World,
    /// The numbers of each plugin in the world, one for each worker.
    plugins: BTreeMap<String, [usize; WORKERS]>,
}

impl Probe {
    fn start(table: &Value) -> Self {
        let texts =
            ["environment", "environment_of_envoy"].into_iter().flat_map(|name| facts::texts(&table[name]));
        let setup = Setup {
            is_probe: true,
            is_quiet: true,
            log_level: 2,
            workers: WORKERS,
            environment: texts.map(|(name, value)| (name, value.into_bytes())).collect(),
            clusters: vec!["upstream", "refusing", "grpc"],
            refusing: vec!["refusing"],
            greeting: vec!["grpc"],
            ..Setup::new(configuration(&table["plugins"]["probe"]))
        };
        let mut world = World::start(setup);
        world.clock.ns_per_read.set(100);
        let twice = ["a", "b"].map(|value| ("x-twice".to_owned(), value.to_owned())).to_vec();
        let answer = Answer { headers: twice, ..Answer::ok("ok") };
        world.upstream = Upstream { answer, is_echo: true, ..Upstream::default() };
        world.documents.insert("/fetch/answered".to_owned(), (200, b"ok".to_vec()));
        let mut plugins = BTreeMap::from([("probe".to_owned(), [0, 1])]);
        for (name, plugin) in table["plugins"].as_object().expect("plugins") {
            if name != "probe" {
                let text = |field: &str| plugin[field].as_str().expect("a name");
                let ids = (text("vm_id"), text("root_id"));
                let allows_stop = plugin["allow_on_headers_stop_iteration"] == true;
                let numbers =
                    [0, 1].map(|worker| world.add_plugin(worker, ids, allows_stop, &configuration(plugin)));
                plugins.insert(name.clone(), numbers);
            }
        }
        Self { world, plugins }
    }

    /// Checks one fact; returns the differences from the table.
    fn mismatches(&mut self, fact: &Value) -> Vec<String> {
        let path = format!("/{}", facts::name(fact));
        let steps = fact["steps"].as_array().expect("steps");
        steps.iter().flat_map(|step| self.check_step(&path, step)).collect()
    }

    fn check_step(&mut self, path: &str, step: &Value) -> Vec<String> {
        self.world.advance_ms(step["pause_ms"].as_u64().unwrap_or(0));
        let workers = if step["every_worker"] == true { WORKERS } else { 1 };
        let plugin = self.plugins[step["plugin"].as_str().unwrap_or("probe")];
        plugin[..workers]
            .iter()
            .flat_map(|number| facts::differences(step, &self.send(*number, path, step)))
            .collect()
    }

    /// Sends a request, and acts as client and clusters until there is a response.
    fn send(&mut self, plugin: usize, path: &str, step: &Value) -> Response {
        let world = &mut self.world;
        let request = facts::request(path, step);
        let id = match &request.body {
            Body::Chunked(chunks) if step["trailers"] == true => {
                let id = world.begin(plugin, &request, false);
                chunks.iter().for_each(|chunk| world.body(id, chunk, false));
                world.trailers(id);
                world.settle();
                id
            }
            _ => world.send(plugin, &request),
        };
        for _ in 0..MAX_WAIT_MS / CHECK_MS {
            if let Some(response) = world.response(id) {
                return response.clone();
            }
            if let Some(index) = world.calls.iter().position(|(_, call)| call.path == "/break_off") {
                world.answer_call(index, None);
            }
            world.advance_ms(CHECK_MS);
        }
        panic!("no response to {path} within {MAX_WAIT_MS} ms")
    }
}

/// A plugin's configuration as bytes; empty for a `Struct`.
fn configuration(plugin: &Value) -> Vec<u8> {
    let configuration = &plugin["configuration"];
    match (configuration["string"].as_str(), configuration["bytes"].as_str()) {
        (Some(text), _) => text.into(),
        (None, Some("AP8B")) => vec![0, 0xff, 1],
        (None, Some(other)) => panic!("this test cannot decode {other}"),
        (None, None) => Vec::new(),
    }
}

#[test]
fn this_host_and_envoy_agree_on_all_facts() {
    let table = facts::table();
    let all = table["facts"].as_array().expect("facts");
    let mut checked = 0;
    let mut differ = Vec::new();
    for fact in all {
        let name = facts::name(fact);
        if LEFT_OUT.iter().any(|(known, _)| *known == name) {
            continue;
        }
        checked += 1;
        // Each in its own Envoy, so that a failure does not affect the others.
        let found = catch_panic(|| Probe::start(&table).mismatches(fact)).unwrap_or_else(|text| vec![text]);
        differ.extend(found.into_iter().map(|found| format!("{name}: {found}")));
    }
    assert!(differ.is_empty(), "{} facts differ:\n{}", differ.len(), differ.join("\n"));
    assert_eq!(checked + LEFT_OUT.len(), all.len(), "an omitted fact is not in the table");
}
