//! Envoys with their workers, one Redis, and the turns of their event loops. Tests control the clocks.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::exchange::{Context, Exchange, Upstream};
use crate::module;
use crate::process::{Clock, Process};
use crate::redis::{Link, Redis, UNAVAILABLE};
use crate::state::{After, CallResponse, HttpCall, Out, VmState};
use crate::vm::Vm;

/// The `vm_id` of the limiter.
pub const LIMITER: &str = "rate_limiter";

/// The maximum of turns at one instant: more is an endless loop.
const MAX_TURNS: usize = 200_000;

/// The configuration of a world.
#[derive(Clone, Debug)]
pub struct Setup {
    pub configuration: Vec<u8>,
    /// Variables that Envoy passes to the VM.
    pub environment: Vec<(String, Vec<u8>)>,
    pub envoys: usize,
    /// Workers of each Envoy.
    pub workers: usize,
    /// Whether the plugin has `allow_on_headers_stop_iteration`.
    pub allows_stop: bool,
    /// Clusters that each Envoy has.
    pub clusters: Vec<&'static str>,
    /// The clusters that refuse connections.
    pub refusing: Vec<&'static str>,
    /// The clusters that answer every gRPC stream with one empty message, and end it.
    pub greeting: Vec<&'static str>,
    /// The log level of each Envoy: 0 is trace, 2 info.
    pub log_level: u32,
    /// Whether the filter is the probe instead of the limiter.
    pub is_probe: bool,
    /// Whether a trap unwinds without a message, for callers that catch it.
    pub is_quiet: bool,
}

impl Setup {
    /// One Envoy with one worker.
    pub fn new(configuration: impl AsRef<[u8]>) -> Self {
        Self {
            configuration: configuration.as_ref().to_vec(),
            environment: vec![("ADMIN_TOKEN".to_owned(), crate::secrets::ADMIN_TOKEN.into())],
            envoys: 1,
            workers: 1,
            allows_stop: true,
            clusters: vec!["redis", "config_files"],
            refusing: Vec::new(),
            greeting: Vec::new(),
            log_level: 0,
            is_probe: false,
            is_quiet: false,
        }
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    pub fn envoys(mut self, envoys: usize) -> Self {
        self.envoys = envoys;
        self
    }

    pub fn variable(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }
}

/// An event in a later turn.
#[derive(Debug)]
pub(crate) enum Turn {
    QueueReady(Rc<Process>, u32),
    Upstream(usize),
    Delete(Context),
    FromRedis(usize, Vec<u8>),
    StreamGreeted(usize, u32),
    StreamClosed(usize, u32, u32),
    CallAnswered(usize, HttpCall, Option<(u32, Vec<u8>)>),
}

/// A worker's plugin: its VM, its root context, and the VM of its bridge.
pub(crate) struct Worker {
    pub(crate) vm: usize,
    pub(crate) root: u32,
    pub(crate) bridge: Option<usize>,
    /// Whether the plugin has `allow_on_headers_stop_iteration`.
    pub(crate) allows_stop: bool,
}

pub struct World {
    /// The clocks of all Envoys.
    pub clock: Rc<Clock>,
    pub processes: Vec<Rc<Process>>,
    /// Answers the requests from now on.
    pub upstream: Upstream,
    pub redis: Redis,
    /// The responses of the configuration cluster by path: status and body. A missing one is not answered yet.
    pub documents: HashMap<String, (u32, Vec<u8>)>,
    /// The paths of all HTTP calls.
    pub fetched: Vec<String>,
    /// Unanswered HTTP calls of the filter: the VM, and the call.
    pub calls: Vec<(usize, HttpCall)>,
    pub(crate) setup: Setup,
    /// All VMs, including those of bridges.
    pub vms: Vec<Vm>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) by_context: HashMap<Context, usize>,
    /// All connections to Redis there were, open or closed.
    pub(crate) links: Vec<Link>,
    pub(crate) turns: VecDeque<Turn>,
    pub(crate) last_context: u32,
}

impl World {
    /// Starts Envoys and configures them. Panics if they reject the configuration.
    pub fn start(setup: Setup) -> Self {
        let mut world = Self::boot(setup);
        world.configure_all();
        world.settle();
        world
    }

    /// Delivers the setup's configuration to every worker. Panics if one rejects it.
    pub fn configure_all(&mut self) {
        if let Err(log) = self.try_configure_all() {
            panic!("rejected: {}\n{log}", String::from_utf8_lossy(&self.setup.configuration));
        }
    }

    /// Delivers the setup's configuration to every worker; the error is the log if one rejects it.
    pub fn try_configure_all(&mut self) -> Result<(), String> {
        let configuration = self.setup.configuration.clone();
        match (0..self.workers.len()).all(|worker| self.configure(worker, &configuration)) {
            true => Ok(()),
            false => {
                Err(self.processes[0].log.borrow().iter().map(|(_, line)| format!("{line}\n")).collect())
            }
        }
    }

    /// Starts Envoys without a configuration.
    pub fn boot(setup: Setup) -> Self {
        let clock = Rc::new(Clock {
            monotonic_ns: (1_000_000_000_000).into(),
            wall_ns: (1_700_000_000_000_000_000).into(),
            ns_per_read: 0.into(),
        });
        let mut world = Self {
            clock: clock.clone(),
            processes: Vec::new(),
            upstream: Upstream::default(),
            redis: Redis::at(clock.clone()),
            documents: HashMap::new(),
            fetched: Vec::new(),
            calls: Vec::new(),
            vms: Vec::new(),
            workers: Vec::new(),
            exchanges: Vec::new(),
            by_context: HashMap::new(),
            links: Vec::new(),
            turns: VecDeque::new(),
            last_context: 0,
            setup: setup.clone(),
        };
        for _ in 0..setup.envoys {
            let process = Rc::new(Process::new(clock.clone(), &setup));
            world.processes.push(process.clone());
            for _ in 0..setup.workers {
                let name = if setup.is_probe { "probe" } else { LIMITER };
                let vm = world.new_vm(process.clone(), (name, name));
                world.workers.push(Worker { vm, root: 0, bridge: None, allows_stop: setup.allows_stop });
            }
        }
        world
    }

    /// Adds a plugin to a worker: in the worker's VM if that has the same name, else in a new VM. Returns the number to
    /// send requests to. Panics if it rejects the configuration.
    pub fn add_plugin(
        &mut self,
        worker: usize,
        (vm_id, root_id): (&str, &str),
        allows_stop: bool,
        configuration: &[u8],
    ) -> usize {
        let mut vm = self.workers[worker].vm;
        if self.vms[vm].state().vm_id != vm_id {
            let process = self.vms[vm].state().process.clone();
            vm = self.new_vm(process, (vm_id, root_id));
        }
        let plugin = self.workers.len();
        self.workers.push(Worker { vm, root: 0, bridge: None, allows_stop });
        assert!(self.configure(plugin, configuration), "{root_id} rejects its configuration");
        let root = self.workers[plugin].root;
        self.vms[vm].state_mut().root_names.insert(root, root_id.to_owned());
        self.settle();
        plugin
    }

    pub(crate) fn new_vm(&mut self, process: Rc<Process>, (vm_id, root_id): (&str, &str)) -> usize {
        let index = self.vms.len();
        let module = if self.setup.is_probe { module::probe() } else { module::limiter() };
        let state = VmState {
            process,
            index,
            vm_id: vm_id.to_owned(),
            root_id: root_id.to_owned(),
            is_probe: self.setup.is_probe,
            is_quiet: self.setup.is_quiet,
            random: (index as u64 + 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            ..VmState::default()
        };
        self.vms.push(Vm::new(module, state));
        index
    }

    /// Delivers a configuration: a new root context, which new requests use if it accepts the configuration.
    pub fn configure(&mut self, worker: usize, configuration: &[u8]) -> bool {
        let vm = self.workers[worker].vm;
        let root = self.new_root(vm);
        self.vms[vm].state_mut().plugin_configuration = Some(configuration.to_vec());
        let accepted = self.call(vm, "proxy_on_configure", &[root, configuration.len() as u32]);
        self.vms[vm].state_mut().plugin_configuration = None;
        let gone = if accepted != 0 { std::mem::replace(&mut self.workers[worker].root, root) } else { root };
        if gone != 0 {
            self.delete_idle_root(vm, gone);
        }
        accepted != 0
    }

    /// The root context of a worker's new requests.
    pub fn root(&self, worker: usize) -> u32 {
        self.workers[worker].root
    }

    /// Delivers the configuration of an older root context, which a request has kept alive: Envoy uses that root context
    /// again, and calls nothing.
    pub fn configure_again(&mut self, worker: usize, root: u32) {
        let vm = self.workers[worker].vm;
        assert!(self.vms[vm].state().roots.contains_key(&root), "{root} is deleted");
        let gone = std::mem::replace(&mut self.workers[worker].root, root);
        self.delete_idle_root(vm, gone);
    }

    pub(crate) fn new_root(&mut self, vm: usize) -> u32 {
        self.last_context += 1;
        let root = self.last_context;
        self.vms[vm].state_mut().roots.insert(root, None);
        self.call(vm, "proxy_on_context_create", &[root, 0]);
        root
    }

    /// Deletes an old root context after its last request.
    pub(crate) fn delete_idle_root(&mut self, vm: usize, root: u32) {
        let state = self.vms[vm].state();
        let is_current = self.workers.iter().any(|worker| (worker.vm, worker.root) == (vm, root));
        let is_used = state.streams.values().any(|stream| stream.root == root);
        if is_current || is_used || !state.roots.contains_key(&root) {
            return;
        }
        self.call(vm, "proxy_on_delete", &[root]);
        let state = self.vms[vm].state_mut();
        state.roots.remove(&root);
        state.grpc_streams.retain(|_, owner| *owner != root);
    }

    /// Calls the filter, and carries out the effects after it has returned. The first argument is the context.
    pub(crate) fn call(&mut self, vm: usize, name: &'static str, arguments: &[u32]) -> u32 {
        let result = self.vms[vm].call(name, arguments);
        self.carry_out(vm);
        result
    }

    pub(crate) fn carry_out(&mut self, vm: usize) {
        while let Some(out) = self.vms[vm].state_mut().out.pop_front() {
            match out {
                Out::Enqueued(token) => {
                    let process = self.vms[vm].state().process.clone();
                    self.turns.push_back(Turn::QueueReady(process, token));
                }
                Out::Open(token, cluster) => self.open_stream(vm, token, &cluster),
                Out::Send(token, bytes) => self.send_on_link(vm, token, &bytes),
                Out::Cancel(token) => self.cancel_link(vm, token),
                Out::HttpCall(call) => self.take_call(vm, call),
            }
        }
        while let Some(after) = self.vms[vm].state_mut().after.pop_front() {
            match after {
                After::Continue(context) => self.continue_request((vm, context)),
                After::Reply(context, reply) => self.reply_locally((vm, context), reply),
            }
        }
    }

    /// An HTTP call of the filter, answered in a later turn if the response is known.
    fn take_call(&mut self, vm: usize, call: HttpCall) {
        self.fetched.push(call.path.clone());
        if self.setup.refusing.contains(&call.cluster.as_str()) {
            let body = b"upstream connect error or disconnect/reset before headers".to_vec();
            self.turns.push_back(Turn::CallAnswered(vm, call, Some((503, body))));
        } else if let Some(answer) = self.documents.get(&call.path).cloned() {
            self.turns.push_back(Turn::CallAnswered(vm, call, Some(answer)));
        } else {
            self.calls.push((vm, call));
        }
    }

    fn open_stream(&mut self, vm: usize, token: u32, cluster: &str) {
        if self.setup.refusing.contains(&cluster) {
            self.turns.push_back(Turn::StreamClosed(vm, token, UNAVAILABLE));
        } else if self.setup.greeting.contains(&cluster) {
            self.turns.push_back(Turn::StreamGreeted(vm, token));
        } else {
            self.open_link(vm, token);
        }
    }

    /// Runs the event loops until no turn is left at this instant.
    pub fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            if !self.take_one_turn() {
                return;
            }
        }
        panic!("{MAX_TURNS} turns at one instant: an endless loop");
    }

    /// Runs one turn; false if there is none.
    pub(crate) fn take_one_turn(&mut self) -> bool {
        let Some(turn) = self.turns.pop_front() else { return false };
        match turn {
            Turn::QueueReady(process, token) => {
                let target = process.queues.borrow().get(&token).map(|queue| (queue.vm, queue.context));
                if let Some((vm, context)) = target
                    && self.vms[vm].state().roots.contains_key(&context)
                {
                    self.call(vm, "proxy_on_queue_ready", &[context, token]);
                }
            }
            Turn::Upstream(id) => self.answer_from_upstream(id),
            Turn::Delete(context) => self.delete_stream(context),
            Turn::FromRedis(link, bytes) => self.receive_from_redis(link, &bytes),
            Turn::StreamGreeted(vm, token) => {
                self.on_stream(vm, token, "proxy_on_grpc_receive_initial_metadata", 0);
                self.deliver_message(vm, token, Vec::new());
                self.turns.push_front(Turn::StreamClosed(vm, token, 0));
            }
            Turn::StreamClosed(vm, token, status) => {
                if status != 0 {
                    self.on_stream(vm, token, "proxy_on_grpc_receive_initial_metadata", 0);
                }
                self.on_stream(vm, token, "proxy_on_grpc_receive_trailing_metadata", 0);
                self.on_stream(vm, token, "proxy_on_grpc_close", status);
            }
            Turn::CallAnswered(vm, call, answer) => self.deliver_call_response(vm, &call, answer),
        }
        true
    }

    /// Calls a callback of the root context that opened a stream, if it still holds the stream and exports the
    /// callback.
    fn on_stream(&mut self, vm: usize, token: u32, name: &'static str, argument: u32) {
        let owner = self.vms[vm].state().grpc_streams.get(&token).copied();
        if let Some(root) = owner.filter(|_| self.vms[vm].has_export(name)) {
            self.call(vm, name, &[root, token, argument]);
        }
    }

    /// Answers an HTTP call of the filter: a status and a body, or `None` for an aborted response.
    pub fn answer_call(&mut self, index: usize, answer: Option<(u32, Vec<u8>)>) {
        let (vm, call) = self.calls.remove(index);
        self.deliver_call_response(vm, &call, answer);
        self.settle();
    }

    fn deliver_call_response(&mut self, vm: usize, call: &HttpCall, answer: Option<(u32, Vec<u8>)>) {
        // The calls of a deleted context are cancelled.
        if !self.vms[vm].state().exists(call.context) {
            return;
        }
        let response = answer.map(|(status, body)| {
            let headers = vec![(":status".to_owned(), status.to_string().into_bytes())];
            CallResponse { headers, body }
        });
        let (count, size) = response
            .as_ref()
            .map_or((0, 0), |response| (response.headers.len() as u32, response.body.len() as u32));
        self.vms[vm].state_mut().call_response = response;
        self.call(vm, "proxy_on_http_call_response", &[call.context, call.token, count, size, 0]);
        self.vms[vm].state_mut().call_response = None;
    }

    /// Ends the calls that have timed out, as Envoy does.
    fn end_late_calls(&mut self) {
        let now_us = self.clock.now_us();
        while let Some(index) = self.calls.iter().position(|(_, call)| call.due_us <= now_us) {
            self.answer_call(index, Some((504, b"upstream request timeout".to_vec())));
        }
    }

    /// Advances the clocks, and runs every tick that is due.
    pub fn advance_ms(&mut self, ms: u64) {
        self.advance_us(ms * 1_000);
    }

    pub fn advance_us(&mut self, us: u64) {
        self.settle();
        let until_us = self.clock.now_us() + us;
        loop {
            let late_us = self.calls.iter().map(|(_, call)| call.due_us).min();
            let tick = self.next_tick();
            let next_us = [late_us, tick.map(|tick| tick.0)].into_iter().flatten().min();
            let Some(next_us) = next_us.filter(|next_us| *next_us <= until_us) else { break };
            self.clock.advance_us(next_us.saturating_sub(self.clock.now_us()));
            self.end_late_calls();
            if let Some((due_us, vm, root)) = tick.filter(|tick| tick.0 == next_us) {
                self.tick(vm, root, due_us);
            }
        }
        self.clock.advance_us(until_us.saturating_sub(self.clock.now_us()));
    }

    fn tick(&mut self, vm: usize, root: u32, due_us: u64) {
        if let Some(Some(timer)) = self.vms[vm].state_mut().roots.get_mut(&root) {
            timer.due_us = due_us + timer.period_us.max(1_000);
            self.call(vm, "proxy_on_tick", &[root]);
            self.settle();
        }
    }

    /// A worker hangs: its timers stop.
    pub fn hang(&mut self, worker: usize) {
        self.vm(worker).state_mut().roots.values_mut().for_each(|timer| *timer = None);
    }

    fn next_tick(&self) -> Option<(u64, usize, u32)> {
        let timers = self.vms.iter().enumerate().flat_map(|(vm, host)| {
            let roots = host.state().roots.iter();
            roots.filter_map(move |(root, timer)| timer.map(|timer| (timer.due_us, vm, *root)))
        });
        timers.min()
    }

    pub fn vm(&mut self, worker: usize) -> &mut Vm {
        &mut self.vms[self.workers[worker].vm]
    }
}
