//! What is remembered between callbacks. No borrow of it lasts while the host is called, as the host may call back.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use crate::abi;

#[derive(Default)]
struct State {
    /// How many callbacks the host has entered and not left.
    depth: u32,
    requests: BTreeMap<u32, Request>,
    configurations: HashMap<u32, Vec<u8>>,
    /// Who waits for a queue, a call or a stream.
    waiting: HashMap<(Waiting, u32), u32>,
    /// The request that is opening a stream: the host may report about that before it has given its number.
    opening: Option<u32>,
    /// What happened to the request that was deleted last.
    last_trace: String,
    last_id: u32,
    ticks: u32,
    fresh: u32,
}

/// A request on its way.
#[derive(Default)]
struct Request {
    root: u32,
    question: String,
    trace: Vec<String>,
    /// Ticks to go until something happens.
    ticks_left: u32,
    body: usize,
}

/// What a request may wait for, beside ticks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Waiting {
    Queue,
    HttpCall,
    Stream,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    static VM: u64 = RandomState::new().hash_one(0);
}

fn with<T>(act: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(act)
}

/// A callback, from its beginning to its end.
pub(crate) struct Entry;

impl Entry {
    pub(crate) fn new() -> Self {
        with(|state| state.depth += 1);
        Self
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        with(|state| state.depth -= 1);
    }
}

/// The number of this VM, in hex.
pub(crate) fn vm() -> String {
    format!("{:016x}", VM.with(|vm| *vm))
}

/// A name that nobody else uses.
pub(crate) fn fresh(name: &str) -> String {
    let number = with(|state| {
        state.fresh += 1;
        state.fresh
    });
    format!("{name}/{}/{number}", vm())
}

pub(crate) fn set_configuration(root: u32, configuration: Vec<u8>) {
    with(|state| state.configurations.insert(root, configuration));
}

pub(crate) fn configuration(root: u32) -> Vec<u8> {
    with(|state| state.configurations.get(&root).cloned().unwrap_or_default())
}

pub(crate) fn begin(id: u32, root: u32) {
    with(|state| state.requests.insert(id, Request { root, ..Request::default() }));
}

pub(crate) fn root_of(id: u32) -> u32 {
    with(|state| state.requests.get(&id).map_or(0, |request| request.root))
}

pub(crate) fn set_question(id: u32, question: &str) {
    with(|state| {
        if let Some(request) = state.requests.get_mut(&id) {
            request.question = question.to_owned();
        }
    });
}

/// What a request asks, `group/name`.
pub(crate) fn question(id: u32) -> String {
    with(|state| state.requests.get(&id).map(|request| request.question.clone()).unwrap_or_default())
}

/// Notes what happens to a request, and whether the host was in the middle of another callback.
pub(crate) fn note(id: u32, event: &str) {
    with(|state| {
        let nested = if state.depth > 1 { " inside another callback" } else { "" };
        if let Some(request) = state.requests.get_mut(&id) {
            request.trace.push(format!("{event}{nested}"));
        }
    });
}

/// What has happened to a request so far.
pub(crate) fn trace(id: u32) -> String {
    with(|state| state.requests.get(&id).map(|request| request.trace.join(", ")).unwrap_or_default())
}

/// Adds to the bytes that a request's body has brought so far; gives the sum.
pub(crate) fn add_body(id: u32, bytes: usize) -> usize {
    with(|state| {
        let Some(request) = state.requests.get_mut(&id) else { return 0 };
        request.body += bytes;
        request.body
    })
}

pub(crate) fn end(id: u32) {
    with(|state| {
        if let Some(request) = state.requests.remove(&id) {
            state.last_trace = request.trace.join(", ");
            state.last_id = id;
        }
        state.waiting.retain(|_, request| *request != id);
    });
}

/// The request that was deleted last, and what had happened to it.
pub(crate) fn last_request() -> (u32, String) {
    with(|state| (state.last_id, state.last_trace.clone()))
}

/// Lets a request wait for so many ticks of its root context.
pub(crate) fn await_ticks(id: u32, ticks: u32) {
    with(|state| {
        if let Some(request) = state.requests.get_mut(&id) {
            request.ticks_left = ticks;
        }
    });
}

/// A tick has come: those whose time it is, and whether anybody of this root context still waits.
pub(crate) fn tick(root: u32) -> (Vec<u32>, bool) {
    with(|state| {
        state.ticks += 1;
        let mut due = Vec::new();
        let mut someone_waits = false;
        for (id, request) in state.requests.iter_mut().filter(|(_, request)| request.root == root) {
            if request.ticks_left > 0 {
                request.ticks_left -= 1;
                match request.ticks_left {
                    0 => due.push(*id),
                    _ => someone_waits = true,
                }
            }
        }
        (due, someone_waits)
    })
}

/// How many ticks there have been in this VM.
pub(crate) fn ticks() -> u32 {
    with(|state| state.ticks)
}

pub(crate) fn wait_for(id: u32, what: Waiting, number: u32) {
    with(|state| state.waiting.insert((what, number), id));
}

pub(crate) fn waiting(what: Waiting, number: u32) -> Option<u32> {
    with(|state| {
        let opening = state.opening.filter(|_| what == Waiting::Stream);
        state.waiting.get(&(what, number)).copied().or(opening)
    })
}

/// Notes who is opening a stream.
pub(crate) fn opening(id: Option<u32>) {
    with(|state| state.opening = id);
}

/// Answers the request in effect with text, and with the number of the VM.
pub(crate) fn answer(text: &str) -> abi::Status {
    let vm = vm();
    let headers: [(&str, &[u8]); 2] = [("content-type", b"text/plain"), ("x-probe-vm", vm.as_bytes())];
    abi::send_local_reply(200, &headers, text.as_bytes(), abi::NO_GRPC_STATUS)
}

/// Answers a request from its root context, and returns there.
pub(crate) fn answer_from_root(id: u32, text: &str) {
    if abi::set_effective_context(id) == abi::Status::OK {
        answer(text);
    }
    abi::set_effective_context(root_of(id));
}
