//! The host's state of one VM: its contexts, the effects of a callback, and the history of calls.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;

use wasmtime::{Memory, StoreLimits, TypedFunc};

use crate::failures::{Act, Failure, status};
use crate::process::{Process, StatKind};

/// The memory limit of a VM (section 11 of the specification).
pub(crate) const MAX_MEMORY_BYTES: usize = 8 << 20;

/// How many callbacks and host calls are recorded for the message of a failure.
const HISTORY_LINES: usize = 200;

/// Names and values in order, as on the wire.
pub(crate) type Headers = Vec<(String, Vec<u8>)>;

/// The first value of a header.
pub(crate) fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
}

/// The parts of an HTTP stream that host calls can access. `None` is not available now.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Its root context.
    pub(crate) root: u32,
    pub(crate) request_headers: Option<Headers>,
    pub(crate) request_trailers: Option<Headers>,
    pub(crate) response_headers: Option<Headers>,
    pub(crate) request_body: Option<Vec<u8>>,
    pub(crate) response_body: Option<Vec<u8>>,
    pub(crate) source_address: Vec<u8>,
    pub(crate) cluster: Vec<u8>,
}

/// An effect of a callback on its stream, carried out after it has returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Continue(u32),
    Reply(u32, LocalReply),
}

/// A response that the filter sends itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalReply {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    pub(crate) grpc_status: i32,
}

/// An effect outside of the VM, carried out at once or in a later turn of its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Out {
    Enqueued(u32),
    Open(u32, String),
    Send(u32, Vec<u8>),
    Cancel(u32),
    HttpCall(HttpCall),
}

/// An HTTP call of the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCall {
    pub token: u32,
    pub cluster: String,
    pub path: String,
    /// The context whose callback gets the response.
    pub(crate) context: u32,
    /// When Envoy answers with a timeout.
    pub(crate) due_us: u64,
}

/// A response to an HTTP call of the filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallResponse {
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

/// A change of the process by another worker.
pub(crate) type Aside = Box<dyn FnOnce(&Process)>;

/// The host's state of a VM.
#[derive(Default)]
pub(crate) struct VmState {
    pub(crate) process: Rc<Process>,
    pub(crate) index: usize,
    pub(crate) vm_id: String,
    pub(crate) root_id: String,
    /// The names of root contexts other than `root_id`: plugins that share the VM.
    pub(crate) root_names: HashMap<u32, String>,
    /// Whether the guest is the probe, which may do what a filter must not.
    pub(crate) is_probe: bool,
    /// Whether a failure unwinds without a message.
    pub(crate) is_quiet: bool,
    /// The root contexts and their timers.
    pub(crate) roots: BTreeMap<u32, Option<Timer>>,
    pub(crate) streams: HashMap<u32, Stream>,
    pub(crate) current: u32,
    pub(crate) effective: u32,
    pub(crate) after: VecDeque<After>,
    pub(crate) replies: u64,
    pub(crate) out: VecDeque<Out>,
    pub(crate) plugin_configuration: Option<Vec<u8>>,
    pub(crate) call_response: Option<CallResponse>,
    pub(crate) grpc_message: Vec<u8>,
    pub(crate) metrics: BTreeMap<u32, (StatKind, String)>,
    /// The root contexts of the VM's gRPC streams, by token.
    pub(crate) grpc_streams: BTreeMap<u32, u32>,
    pub(crate) last_token: u32,
    /// The state of the generator, odd at first.
    pub(crate) random: u64,
    pub(crate) calls: BTreeMap<&'static str, u64>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) spoils_bytes: Option<Act>,
    pub(crate) has_failed_a_call: bool,
    pub(crate) history: VecDeque<Event>,
    pub(crate) limits: StoreLimits,
    pub(crate) guest: Option<Guest>,
    /// What another worker does between the next read of shared data and its write.
    pub(crate) another_worker: Option<Aside>,
}

/// The parts of the guest that host calls use.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) memory: Memory,
    pub(crate) allocate: TypedFunc<u32, u32>,
}

/// A line of a VM's history, formatted only if a test fails.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Callback(&'static str, Vec<u32>),
    Called(&'static str),
    Failed(&'static str, Act),
    Logged(u32, String),
}

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Callback(name, arguments) => write!(formatter, "{name}{arguments:?}"),
            Event::Called(call) => write!(formatter, "    {call}"),
            Event::Failed(call, act) => write!(formatter, "    {call} fails: {act:?}"),
            Event::Logged(level, line) => write!(formatter, "    log {level}: {line}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) period_us: u64,
    pub(crate) due_us: u64,
}

impl VmState {
    /// Records a host call; returns a status if a failure is scripted for it.
    pub(crate) fn enter(&mut self, call: &'static str) -> Option<u32> {
        *self.calls.entry(call).or_default() += 1;
        let act = self.failures.iter_mut().find_map(|failure| failure.apply(call));
        match act {
            Some(act) => self.note(Event::Failed(call, act)),
            None => self.note(Event::Called(call)),
        }
        self.has_failed_a_call |= act.is_some();
        self.spoils_bytes = None;
        match act? {
            Act::Status(status) => Some(status),
            act => {
                self.spoils_bytes = Some(act);
                None
            }
        }
    }

    pub(crate) fn note(&mut self, event: Event) {
        if self.history.len() == HISTORY_LINES {
            self.history.pop_front();
        }
        self.history.push_back(event);
    }

    /// The context of a host call.
    pub(crate) fn context(&self) -> u32 {
        if self.effective != 0 && self.exists(self.effective) { self.effective } else { self.current }
    }

    pub(crate) fn exists(&self, context: u32) -> bool {
        self.roots.contains_key(&context) || self.streams.contains_key(&context)
    }

    /// The root context of a host call.
    pub(crate) fn root(&self) -> u32 {
        let context = self.context();
        self.streams.get(&context).map_or(context, |stream| stream.root)
    }

    /// A new token, with its kind in the low bits.
    pub(crate) fn next_token(&mut self, kind: u32) -> u32 {
        self.last_token += 4;
        self.last_token | kind
    }

    /// Xorshift: the same bytes for the same seed.
    pub(crate) fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    pub(crate) fn map(&mut self, kind: u32) -> Option<&mut Headers> {
        const REQUEST: u32 = 0;
        const REQUEST_TRAILERS: u32 = 1;
        const RESPONSE: u32 = 2;
        const CALL_RESPONSE: u32 = 6;
        let context = self.context();
        let stream = self.streams.get_mut(&context);
        match kind {
            REQUEST => stream?.request_headers.as_mut(),
            REQUEST_TRAILERS => stream?.request_trailers.as_mut(),
            RESPONSE => stream?.response_headers.as_mut(),
            CALL_RESPONSE => self.call_response.as_mut().map(|response| &mut response.headers),
            _ => None,
        }
    }

    pub(crate) fn buffer(&mut self, kind: u32) -> Option<&mut Vec<u8>> {
        const REQUEST_BODY: u32 = 0;
        const RESPONSE_BODY: u32 = 1;
        const CALL_RESPONSE_BODY: u32 = 4;
        const GRPC_RECEIVE: u32 = 5;
        const PLUGIN_CONFIGURATION: u32 = 7;
        let context = self.context();
        let stream = self.streams.get_mut(&context);
        match kind {
            // A missing body is empty.
            REQUEST_BODY => Some(stream?.request_body.get_or_insert_default()),
            RESPONSE_BODY => Some(stream?.response_body.get_or_insert_default()),
            CALL_RESPONSE_BODY => self.call_response.as_mut().map(|response| &mut response.body),
            GRPC_RECEIVE => Some(&mut self.grpc_message),
            PLUGIN_CONFIGURATION => self.plugin_configuration.as_mut(),
            _ => None,
        }
    }

    pub(crate) fn property(&self, path: &[u8]) -> Result<Vec<u8>, u32> {
        let stream = self.streams.get(&self.context());
        match (path, stream) {
            (b"plugin_root_id" | b"plugin_name", _) => {
                Ok(self.root_names.get(&self.root()).unwrap_or(&self.root_id).clone().into_bytes())
            }
            (b"plugin_vm_id", _) => Ok(self.vm_id.clone().into_bytes()),
            (b"source\0address", Some(stream)) => Ok(stream.source_address.clone()),
            (b"xds\0cluster_name", Some(stream)) => Ok(stream.cluster.clone()),
            (b"response\0code_details", Some(_)) => Ok(b"via_upstream".to_vec()),
            _ => Err(status::NOT_FOUND),
        }
    }
}
