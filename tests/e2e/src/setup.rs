//! The configuration of an Envoy under test: a bootstrap written from the options of a test.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use harness::bootstrap::{self, WASM_TYPE, extension, socket, string_value, tcp, wasm};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::envoy::{Envoy, filter_wasm, follows_writing_in_place, from_env};

mod redis;

/// The Envoy cluster in a test's `store`.
pub use scenarios::REDIS_CLUSTER;

/// The listener that [`Envoy::send`] talks to.
pub const MAIN: &str = "main";

/// The name of the filter, of its plugin and of its ECDS resource.
const LIMITER: &str = "rate_limiter";

/// The file with the filter's configuration if it is delivered by ECDS.
pub(crate) const ECDS_FILE: &str = "ecds/rate_limiter.json";

/// The file with the listeners if they are delivered by LDS.
pub(crate) const LDS_FILE: &str = "lds/listeners.json";

/// The folder that the cluster `config_files` serves.
pub(crate) const CONFIG_FOLDER: &str = "config";

#[derive(Debug)]
struct Listener {
    name: String,
    plugin_name: &'static str,
    address: Value,
    /// The `configuration` of the filter's plugin, if it has one; `None` without the filter.
    plugin: Option<Value>,
}

impl Listener {
    fn new(name: &str, address: Value, plugin: Option<Value>) -> Self {
        Self { name: name.to_owned(), plugin_name: LIMITER, address, plugin }
    }
}

/// The options. Defaults: two workers, the client's address is that of the connection, `200 ok` for every request
/// that the filter admits.
#[derive(Debug)]
pub struct Setup {
    dir: TempDir,
    workers: u32,
    zone: String,
    env: Map<String, Value>,
    host_env: Vec<(String, String)>,
    hcm: Map<String, Value>,
    filter_after: Option<Value>,
    routes: Value,
    clusters: Vec<Value>,
    listeners: Vec<Listener>,
    /// Complete configurations of listeners that only this Envoy itself can reach.
    internal_listeners: Vec<Value>,
    pub(crate) ecds: bool,
    lds: Option<u32>,
    keeps_shared_data: bool,
    /// `allow_on_headers_stop_iteration`: without it no body reaches a filter that waits for one.
    pub(crate) bodies: bool,
    /// Whether Envoy keeps the stats that the filter defines.
    pub(crate) filter_stats: bool,
    filter_log: &'static str,
    traps: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// The filter without any configuration.
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            workers: 2,
            zone: String::new(),
            env: Map::new(),
            host_env: Vec::new(),
            hcm: Map::new(),
            filter_after: None,
            routes: json!([{
                "match": {"prefix": "/"},
                "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
            }]),
            clusters: Vec::new(),
            listeners: vec![Listener::new(MAIN, tcp("127.0.0.1", 0), Some(json!({})))],
            internal_listeners: Vec::new(),
            ecds: false,
            lds: None,
            keeps_shared_data: false,
            bodies: true,
            filter_stats: true,
            filter_log: "debug",
            traps: false,
        }
    }

    pub fn without_filter() -> Self {
        let mut setup = Self::new();
        setup.listeners[0].plugin = None;
        setup
    }

    pub fn config(self, config: &Value) -> Self {
        self.config_text(&config.to_string())
    }

    /// The plugin configuration as text, JSON or not.
    pub fn config_text(mut self, text: &str) -> Self {
        self.listeners[0].plugin = Some(json!({"configuration": string_value(text)}));
        self
    }

    /// The plugin configuration as a `google.protobuf.Struct`.
    pub fn config_struct(mut self, config: &Value) -> Self {
        let kind = "type.googleapis.com/google.protobuf.Struct";
        self.listeners[0].plugin = Some(json!({"configuration": {"@type": kind, "value": config}}));
        self
    }

    /// The plugin configuration is delivered from a file by ECDS; [`Envoy::deliver`] writes the next one.
    pub fn by_ecds(self) -> Self {
        Self { ecds: true, ..self }
    }

    /// The listeners are delivered from a file by LDS; [`Envoy::change_listeners`] writes the next ones. A listener
    /// that is replaced or removed drains for `drain_seconds`.
    pub fn by_lds(self, drain_seconds: u32) -> Self {
        Self { lds: Some(drain_seconds), ..self }
    }

    /// A Wasm service in the bootstrap keeps shared data, as in the shipped configurations.
    pub fn keeps_shared_data(self) -> Self {
        Self { keeps_shared_data: true, ..self }
    }

    /// The filter logs no line per request, for a test that sends very many.
    pub fn quiet(self) -> Self {
        Self { filter_log: "info", ..self }
    }

    /// The filter's VM traps at every request's body.
    pub fn traps(self) -> Self {
        Self { traps: true, ..self }
    }

    /// One more listener with a filter of its own.
    pub fn listener(self, name: &str, config: &Value) -> Self {
        self.named_listener(name, LIMITER, config)
    }

    /// One more listener with a filter of its own, which has another name.
    pub fn named_listener(mut self, name: &str, plugin_name: &'static str, config: &Value) -> Self {
        let plugin = json!({"configuration": string_value(&config.to_string())});
        let listener = Listener::new(name, tcp("127.0.0.1", 0), Some(plugin));
        self.listeners.push(Listener { plugin_name, ..listener });
        self
    }

    /// One more listener, on every address of both families, with the same filter as the main one.
    pub fn dual_stack_listener(mut self, name: &str) -> Self {
        let mut address = tcp("::", 0);
        address["socket_address"]["ipv4_compat"] = json!(true);
        self.listeners.push(Listener::new(name, address, self.listeners[0].plugin.clone()));
        self
    }

    /// Adds a variable to the VM's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), json!(value));
        self
    }

    /// Sets a variable in Envoy's own environment and passes it to the VM, so that no configuration contains its value.
    pub fn host_env(mut self, name: &str, value: &str) -> Self {
        self.host_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Envoy's `--concurrency`.
    pub fn workers(self, workers: u32) -> Self {
        Self { workers, ..self }
    }

    /// The zone of Envoy's node.
    pub fn zone(self, zone: &str) -> Self {
        Self { zone: zone.to_owned(), ..self }
    }

    /// Fields of the HTTP connection manager, which replace the defaults.
    pub fn hcm(mut self, fields: &Value) -> Self {
        let fields = fields.as_object().expect("an object of HCM fields");
        self.hcm.extend(fields.clone());
        self
    }

    /// An HTTP filter between the limiter and the router, of this type and with these fields.
    pub fn filter_after(self, kind: &str, fields: Value) -> Self {
        Self { filter_after: Some(extension("after", kind, fields)), ..self }
    }

    /// The client's address is the `hops`th from the right in `X-Forwarded-For`.
    pub fn trusted_hops(self, hops: u32) -> Self {
        self.hcm(&json!({"use_remote_address": true, "xff_num_trusted_hops": hops}))
    }

    pub fn routes(self, routes: &Value) -> Self {
        Self { routes: routes.clone(), ..self }
    }

    /// Routes everything to this address, with a timeout of two seconds.
    pub fn upstream(self, address: SocketAddr) -> Self {
        self.cluster("upstream", address).routes(&json!([{
            "match": {"prefix": "/"},
            "route": {"cluster": "upstream", "timeout": "2s"},
        }]))
    }

    /// Routes everything to this address over HTTP/2.
    pub fn http2_upstream(self, address: SocketAddr) -> Self {
        let mut setup = self.upstream(address);
        setup.clusters.pop();
        setup.http2_cluster("upstream", address)
    }

    /// One more cluster with this one endpoint, which speaks HTTP/2.
    pub fn http2_cluster(mut self, name: &str, address: SocketAddr) -> Self {
        self.clusters.push(bootstrap::http2_cluster(name, &[socket(address)]));
        self
    }

    /// One more cluster with this one endpoint.
    pub fn cluster(self, name: &str, address: SocketAddr) -> Self {
        self.cluster_at(name, socket(address))
    }

    /// The cluster `config_files` is this Envoy itself. It serves `tiers.json` and `api_keys.json` from a folder that
    /// [`Envoy::save`] and [`Envoy::edit_in_place`] write to.
    pub fn config_files(mut self, tiers: &str, api_keys: &str) -> Self {
        let folder = self.dir.path().join(CONFIG_FOLDER);
        std::fs::create_dir_all(&folder).expect("a folder for the documents");
        for (name, text) in [("tiers.json", tiers), ("api_keys.json", api_keys)] {
            std::fs::write(folder.join(name), text).expect("a document written");
        }
        let pipe = json!({"pipe": {"path": self.dir.path().join("files.sock")}});
        self.listeners.push(Listener::new(CONFIG_FOLDER, pipe.clone(), None));
        self.cluster_at("config_files", pipe)
    }

    /// Starts Envoy and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Envoy {
        let traps = self.traps;
        let (dir, command) = self.prepare();
        Envoy::start(dir, command).traps(traps)
    }

    /// Starts an Envoy that must reject its configuration; returns its log.
    #[track_caller]
    pub fn start_refused(self) -> String {
        let (dir, command) = self.prepare();
        Envoy::start_refused(dir, command)
    }

    fn prepare(self) -> (TempDir, Command) {
        let bootstrap = self.bootstrap();
        let path = self.dir.path().join("bootstrap.json");
        std::fs::write(&path, format!("{bootstrap:#}")).expect("the bootstrap written");
        if self.ecds {
            let mut resource = self.wasm(&self.listeners[0]);
            resource["@type"] = json!("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
            self.write_resources(ECDS_FILE, &[resource]);
        }
        if self.lds.is_some() {
            let listeners = self.listeners.iter().map(|listener| {
                let mut resource = self.listener_json(listener);
                resource["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
                resource
            });
            self.write_resources(LDS_FILE, &listeners.collect::<Vec<_>>());
        }
        let mut command = Command::new(crate::envoy::envoy_bin());
        if let Some(seconds) = self.lds {
            command.args(["--drain-time-s", &seconds.to_string(), "--drain-strategy", "immediate"]);
        }
        command
            .arg("-c")
            .arg(&path)
            .args(["--component-log-level", &format!("wasm:{}", self.filter_log)])
            .args(["--concurrency", &self.workers.to_string()])
            .envs(self.host_env.iter().cloned())
            .current_dir(self.dir.path());
        (self.dir, command)
    }

    fn bootstrap(&self) -> Value {
        let mut listeners: Vec<_> = self.listeners.iter().map(|l| self.listener_json(l)).collect();
        let mut dynamic_resources = json!({});
        if self.lds.is_some() {
            listeners.clear();
            dynamic_resources["lds_config"] = self.resources_in(LDS_FILE);
        }
        listeners.extend(self.internal_listeners.clone());
        let mut stats = json!({"stats_tags": stats_tags()});
        if !self.filter_stats {
            stats["stats_matcher"] = json!({"exclusion_list": {"patterns": [{"contains": "rate_limiter_"}]}});
        }
        let mut bootstrap_extensions = vec![bootstrap::internal_listeners()];
        if self.keeps_shared_data {
            bootstrap_extensions.push(self.shared_data_service());
        }
        json!({
            "node": {"id": "e2e", "cluster": "e2e", "locality": {"zone": self.zone}},
            "admin": {"address": tcp("127.0.0.1", 0)},
            "stats_flush_interval": "1s",
            "stats_config": stats,
            "bootstrap_extensions": bootstrap_extensions,
            "dynamic_resources": dynamic_resources,
            "static_resources": {"listeners": listeners, "clusters": self.clusters},
        })
    }

    fn listener_json(&self, listener: &Listener) -> Value {
        let mut hcm =
            json!({"use_remote_address": true, "request_timeout": "30s", "stream_idle_timeout": "30s"});
        if listener.name == CONFIG_FOLDER {
            hcm["route_config"] = file_routes(&self.dir.path().join(CONFIG_FOLDER));
        } else {
            hcm["route_config"] = bootstrap::routes(&self.routes);
            for (field, value) in &self.hcm {
                hcm[field] = value.clone();
            }
        }
        let filters = self.limiter(listener).into_iter().chain(self.filter_after.clone());
        bootstrap::listener(&listener.name, &listener.address, hcm, filters)
    }

    fn limiter(&self, listener: &Listener) -> Option<Value> {
        listener.plugin.as_ref()?;
        if self.ecds && listener.name == MAIN {
            return Some(json!({
                "name": LIMITER,
                "config_discovery": {"type_urls": [WASM_TYPE], "config_source": self.resources_in(ECDS_FILE)},
            }));
        }
        Some(self.wasm(listener))
    }

    /// The service of the shipped bootstraps that keeps the limiter's shared data.
    fn shared_data_service(&self) -> Value {
        let mut filter = self.wasm(&self.listeners[0]);
        let vm_config = filter["typed_config"]["config"]["vm_config"].take();
        let config = json!({"name": "shared_data", "root_id": "shared_data", "vm_config": vm_config});
        let kind = "envoy.extensions.wasm.v3.WasmService";
        extension("envoy.bootstrap.wasm", kind, json!({"singleton": true, "config": config}))
    }

    fn wasm(&self, listener: &Listener) -> Value {
        let file = if self.traps { from_env("TRAPPING_WASM") } else { filter_wasm() };
        let mut fields = listener.plugin.clone().unwrap_or_default();
        fields["name"] = json!(listener.plugin_name);
        fields["allow_on_headers_stop_iteration"] = json!(self.bodies);
        let mut filter = wasm(LIMITER, &file, fields);
        let host_env: Vec<_> = self.host_env.iter().map(|(name, _)| name).collect();
        filter["typed_config"]["config"]["vm_config"]["environment_variables"] =
            json!({"key_values": self.env, "host_env_keys": host_env});
        filter
    }

    /// Where Envoy gets the resources that [`Self::write_resources`] writes.
    fn resources_in(&self, file: &str) -> Value {
        let path = self.dir.path().join(file);
        let folder = path.parent().expect("a file in a folder");
        json!({
            "resource_api_version": "V3",
            "path_config_source": {"path": path, "watched_directory": watched(folder)},
        })
    }

    /// Writes the first resources that this file delivers.
    fn write_resources(&self, file: &str, resources: &[Value]) {
        let path = self.dir.path().join(file);
        let response = json!({"version_info": "initial", "resources": resources});
        std::fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a folder");
        std::fs::write(path, response.to_string()).expect("resources written");
    }

    fn cluster_at(mut self, name: &str, endpoint: Value) -> Self {
        self.clusters.push(bootstrap::cluster(name, &[endpoint]));
        self
    }
}

/// The same labels as in the shipped bootstrap, which has its own test.
fn stats_tags() -> Value {
    ["tier", "status", "reason", "policy", "result", "cluster"]
        .map(|tag| {
            json!({
                "tag_name": tag,
                "regex": format!(r"^wasmcustom\.rate_limiter_\w+(?:\.\w+\.[^.]+)*?(\.{tag}\.([^.]+))"),
            })
        })
        .to_vec()
        .into()
}

fn watched(folder: &Path) -> Value {
    let mut watched = json!({"path": folder});
    if follows_writing_in_place() {
        watched["watch_modify"] = json!(true);
    }
    watched
}

fn file_routes(folder: &Path) -> Value {
    let routes = ["tiers.json", "api_keys.json"].map(|name| {
        json!({
            "match": {"path": format!("/{name}")},
            "direct_response": {"status": 200, "body": {
                "filename": folder.join(name),
                "watched_directory": watched(folder),
            }},
        })
    });
    json!({
        "max_direct_response_body_size_bytes": 65_536,
        "virtual_hosts": [{"name": "files", "domains": ["*"], "routes": routes}],
    })
}
