//! Envoys with their workers, one Redis, and the turns of their event loops, on clocks that tests move.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::exchange::Exchange;
use crate::module;
use crate::process::{Clock, Process};
use crate::redis::{Link, Redis};
use crate::state::{After, CallResponse, Headers, HttpCall, Out};
use crate::vm::{Arguments, Vm};

/// The `vm_id` of the limiter.
pub const LIMITER: &str = "rate_limiter";

/// Most turns in a row: more is a loop that feeds itself.
const MAX_TURNS: usize = 200_000;

/// What a world starts with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The plugin configuration.
    pub configuration: Vec<u8>,
    /// What Envoy hands to the VM.
    pub environment: Vec<(String, Vec<u8>)>,
    /// How many Envoys.
    pub envoys: usize,
    /// How many workers each has.
    pub workers: usize,
    /// Where all randomness of the VMs comes from.
    pub seed: u64,
    /// Whether the plugin has `allow_on_headers_stop_iteration`.
    pub allows_stop: bool,
    /// Clusters that each Envoy has.
    pub clusters: Vec<&'static str>,
    /// The log level of each Envoy: 0 is trace, 2 info.
    pub log_level: u32,
    /// Whether the filter is not the limiter but the probe, which asks its host about itself.
    pub is_probe: bool,
    /// Whether a trap unwinds without a word, for whoever catches it.
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
            seed: 1,
            allows_stop: true,
            clusters: vec!["redis", "config_files"],
            log_level: 0,
            is_probe: false,
            is_quiet: false,
        }
    }

    /// With so many workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// With so many Envoys.
    pub fn envoys(mut self, envoys: usize) -> Self {
        self.envoys = envoys;
        self
    }

    /// With another variable.
    pub fn variable(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }
}

/// What happens in a later turn.
#[derive(Debug)]
pub(crate) enum Turn {
    QueueReady(Rc<Process>, u32),
    Upstream(usize),
    Delete(usize, u32),
    FromRedis(usize, Vec<u8>),
    StreamClosed(usize, u32, u32),
    CallAnswered(usize, u32, u32, Option<(u32, Vec<u8>)>),
}

/// A worker: its VM, its root context, and the VM of its bridge.
pub(crate) struct Worker {
    pub(crate) vm: usize,
    pub(crate) root: u32,
    pub(crate) bridge: Option<usize>,
}

/// Everything there is.
pub struct World {
    /// The clocks that all share.
    pub clock: Rc<Clock>,
    /// The Envoys.
    pub processes: Vec<Rc<Process>>,
    /// The Redis.
    pub redis: Redis,
    /// What the configuration cluster answers by path: status and body. Nothing: no answer yet.
    pub documents: HashMap<String, (u32, Vec<u8>)>,
    /// Requests of the filter's own that nobody has answered: the worker, and the call.
    pub calls: Vec<(usize, HttpCall)>,
    pub(crate) setup: Setup,
    pub(crate) vms: Vec<Vm>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) by_context: HashMap<(usize, u32), usize>,
    pub(crate) links: Vec<Link>,
    pub(crate) turns: VecDeque<Turn>,
    pub(crate) last_context: u32,
}

impl World {
    /// Envoys that have taken the configuration. Panics if they do not.
    pub fn start(setup: Setup) -> Self {
        let mut world = Self::boot(setup);
        for worker in 0..world.workers.len() {
            let configuration = world.setup.configuration.clone();
            let text = String::from_utf8_lossy(&configuration).into_owned();
            assert!(world.configure(worker, &configuration), "refused: {text}\n{:?}", world.processes[0].log);
        }
        world.settle();
        world
    }

    /// Envoys whose workers have not been configured yet.
    pub fn boot(setup: Setup) -> Self {
        let clock = Rc::new(Clock {
            monotonic_ns: (1_000_000_000_000).into(),
            wall_ns: (1_700_000_000_000_000_000).into(),
        });
        let mut world = Self {
            clock: clock.clone(),
            processes: Vec::new(),
            redis: Redis::at(clock.clone()),
            documents: HashMap::new(),
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
            let process = Rc::new(Process::new(clock.clone(), &setup.clusters, &setup.environment));
            process.log_level.set(setup.log_level);
            world.processes.push(process.clone());
            for _ in 0..setup.workers {
                let name = if setup.is_probe { "probe" } else { LIMITER };
                let vm = world.new_vm(process.clone(), (name, name));
                world.workers.push(Worker { vm, root: 0, bridge: None });
            }
        }
        world
    }

    pub(crate) fn new_vm(&mut self, process: Rc<Process>, names: (&str, &str)) -> usize {
        let index = self.vms.len();
        let seed = (self.setup.seed + index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let module = if self.setup.is_probe { module::probe() } else { module::linked() };
        let mut vm = Vm::new(module, process, index, names, seed);
        vm.is_quiet = self.setup.is_quiet;
        self.vms.push(vm);
        index
    }

    /// Delivers a configuration: a new root context, which new requests use if it takes it.
    pub fn configure(&mut self, worker: usize, configuration: &[u8]) -> bool {
        let vm = self.workers[worker].vm;
        let root = self.new_root(vm);
        self.vms[vm].state_mut().plugin_configuration = Some(configuration.to_vec());
        let taken: u32 = self.call(vm, "proxy_on_configure", root, (root, configuration.len() as u32));
        self.vms[vm].state_mut().plugin_configuration = None;
        let gone = if taken != 0 { std::mem::replace(&mut self.workers[worker].root, root) } else { root };
        if gone != 0 {
            self.delete_idle_root(vm, gone);
        }
        taken != 0
    }

    pub(crate) fn new_root(&mut self, vm: usize) -> u32 {
        self.last_context += 1;
        let root = self.last_context;
        self.vms[vm].state_mut().roots.insert(root, None);
        self.call::<_, ()>(vm, "proxy_on_context_create", root, (root, 0_u32));
        root
    }

    /// An old root context goes when its last request has gone.
    pub(crate) fn delete_idle_root(&mut self, vm: usize, root: u32) {
        let state = self.vms[vm].state();
        let is_current = self.workers.iter().any(|worker| (worker.vm, worker.root) == (vm, root));
        let is_used = state.parents.values().any(|parent| *parent == root);
        if is_current || is_used || !state.roots.contains_key(&root) {
            return;
        }
        self.call::<_, ()>(vm, "proxy_on_delete", root, root);
        let state = self.vms[vm].state_mut();
        state.roots.remove(&root);
        let streams: Vec<u32> =
            state.grpc_streams.iter().filter(|(_, owner)| **owner == root).map(|(token, _)| *token).collect();
        for token in streams {
            state.grpc_streams.remove(&token);
        }
    }

    /// Calls the filter, and does what it asked for when it has returned.
    pub(crate) fn call<P, R>(&mut self, vm: usize, name: &'static str, context: u32, arguments: P) -> R
    where
        P: wasmtime::WasmParams + Arguments,
        R: wasmtime::WasmResults,
    {
        let result = self.vms[vm].call(name, context, arguments);
        self.carry_out(vm);
        result
    }

    fn carry_out(&mut self, vm: usize) {
        while let Some(out) = self.vms[vm].state_mut().out.pop_front() {
            match out {
                Out::Enqueued(token) => {
                    let process = self.vms[vm].state().process.clone();
                    self.turns.push_back(Turn::QueueReady(process, token));
                }
                Out::Open(token) => self.open_link(vm, token),
                Out::Send(token, bytes) => self.send_on_link(vm, token, &bytes),
                Out::Cancel(token) => self.cancel_link(vm, token),
                Out::HttpCall(call) => match self.documents.get(&call.path()).cloned() {
                    Some(answer) => {
                        let root = self.root_of(vm);
                        self.turns.push_back(Turn::CallAnswered(vm, root, call.token, Some(answer)));
                    }
                    None => self.calls.push((vm, call)),
                },
            }
        }
        while let Some(after) = self.vms[vm].state_mut().after.pop_front() {
            match after {
                After::Continue(context) => self.continue_request(vm, context),
                After::Reply(context, reply) => self.reply_locally(vm, context, reply),
                After::Close(context) => self.reset(vm, context),
            }
        }
    }

    pub(crate) fn root_of(&self, vm: usize) -> u32 {
        self.workers.iter().find(|worker| worker.vm == vm).map_or(0, |worker| worker.root)
    }

    /// Runs the event loops until nothing is left to do at this instant.
    pub fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            if !self.take_one_turn() {
                return;
            }
        }
        panic!("{MAX_TURNS} turns at one instant: a loop that feeds itself");
    }

    /// Runs one turn; false where there is none.
    pub(crate) fn take_one_turn(&mut self) -> bool {
        let turn = self.turns.pop_front();
        let is_there = turn.is_some();
        if let Some(turn) = turn {
            self.take_turn(turn);
        }
        is_there
    }

    fn take_turn(&mut self, turn: Turn) {
        match turn {
            Turn::QueueReady(process, token) => {
                let target = process.queues.borrow().get(&token).map(|queue| (queue.vm, queue.context));
                if let Some((vm, context)) = target
                    && self.vms[vm].state().roots.contains_key(&context)
                {
                    self.call::<_, ()>(vm, "proxy_on_queue_ready", context, (context, token));
                }
            }
            Turn::Upstream(id) => self.answer_from_upstream(id),
            Turn::Delete(vm, context) => self.delete_stream(vm, context),
            Turn::FromRedis(link, bytes) => self.receive_from_redis(link, &bytes),
            Turn::StreamClosed(vm, token, status) => {
                let owner = self.vms[vm].state().grpc_streams.get(&token).copied();
                if let Some(root) = owner {
                    self.call::<_, ()>(vm, "proxy_on_grpc_close", root, (root, token, status));
                }
            }
            Turn::CallAnswered(vm, root, token, answer) => {
                self.deliver_call_response(vm, root, token, answer);
            }
        }
    }

    /// Answers a call of the filter's own: a status and a body, or nothing where the response broke off.
    pub fn answer_call(&mut self, index: usize, answer: Option<(u32, Vec<u8>)>) {
        let (vm, call) = self.calls.remove(index);
        let root = self.root_of(vm);
        self.deliver_call_response(vm, root, call.token, answer);
        self.settle();
    }

    fn deliver_call_response(&mut self, vm: usize, root: u32, token: u32, answer: Option<(u32, Vec<u8>)>) {
        let headers = match &answer {
            Some((status, _)) => vec![(":status".to_owned(), status.to_string().into_bytes())],
            None => Headers::new(),
        };
        let count = headers.len() as u32;
        let body = answer.map(|(_, body)| body).unwrap_or_default();
        let size = body.len() as u32;
        self.vms[vm].state_mut().call_response = (count > 0).then_some(CallResponse { headers, body });
        self.call::<_, ()>(vm, "proxy_on_http_call_response", root, (root, token, count, size, 0_u32));
        self.vms[vm].state_mut().call_response = None;
    }

    /// Lets time pass, with every tick that is due on the way.
    pub fn advance_ms(&mut self, ms: u64) {
        self.advance_us(ms * 1_000);
    }

    /// The same in microseconds.
    pub fn advance_us(&mut self, us: u64) {
        self.settle();
        let until_us = self.clock.now_us() + us;
        while let Some((due_us, vm, root)) = self.next_tick().filter(|(due_us, ..)| *due_us <= until_us) {
            self.clock.advance_us(due_us.saturating_sub(self.clock.now_us()));
            if let Some(Some(timer)) = self.vms[vm].state_mut().roots.get_mut(&root) {
                timer.due_us = due_us + timer.period_us.max(1_000);
            }
            self.call::<_, ()>(vm, "proxy_on_tick", root, root);
            self.settle();
        }
        self.clock.advance_us(until_us.saturating_sub(self.clock.now_us()));
    }

    fn next_tick(&self) -> Option<(u64, usize, u32)> {
        let timers = self.vms.iter().enumerate().flat_map(|(vm, host)| {
            let roots = host.state().roots.iter();
            roots.filter_map(move |(root, timer)| timer.map(|timer| (timer.due_us, vm, *root)))
        });
        timers.min()
    }

    /// A worker's VM.
    pub fn vm(&mut self, worker: usize) -> &mut Vm {
        &mut self.vms[self.workers[worker].vm]
    }

    /// All VMs, those of bridges too.
    pub fn all_vms(&mut self) -> &mut [Vm] {
        &mut self.vms
    }
}
