//! The state between callbacks. It is not borrowed during a call of the host, which may call back.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use crate::abi;

#[derive(Default)]
struct State {
    /// The number of callbacks that have not returned.
    depth: u32,
    requests: BTreeMap<u32, Request>,
    configurations: HashMap<u32, Vec<u8>>,
    /// The request that waits for this queue, call or stream.
    waiting: HashMap<(Waiting, u32), u32>,
    /// The request that opens a stream: the host may report events before it returns the stream's number.
    opening: Option<u32>,
    /// The request that was deleted last, and its events.
    last: (u32, String),
    ticks: u32,
    fresh: u32,
}

/// A request that has not ended.
#[derive(Default)]
struct Request {
    root: u32,
    check: String,
    trace: Vec<String>,
    /// Ticks until `on_tick` handles the request.
    ticks_left: u32,
    body: usize,
}

/// The things that a request may wait for, besides ticks.
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

/// Accesses a request; the default if it has ended.
fn with_request<T: Default>(id: u32, act: impl FnOnce(&mut Request) -> T) -> T {
    with(|state| state.requests.get_mut(&id).map(act).unwrap_or_default())
}

/// A callback that has not returned.
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

/// A unique name.
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
    with_request(id, |request| request.root)
}

pub(crate) fn set_check_name(id: u32, name: &str) {
    with_request(id, |request| request.check = name.to_owned());
}

/// The check of a request: `group/name`.
pub(crate) fn check_name(id: u32) -> String {
    with_request(id, |request| request.check.clone())
}

/// Records an event of a request, and whether it came inside another callback.
pub(crate) fn note(id: u32, event: &str) {
    let is_nested = with(|state| state.depth > 1);
    let nested = if is_nested { " inside another callback" } else { "" };
    with_request(id, |request| request.trace.push(format!("{event}{nested}")));
}

/// The events of a request so far.
pub(crate) fn trace(id: u32) -> String {
    with_request(id, |request| request.trace.join(", "))
}

/// Adds to the size of a request's body; returns the sum.
pub(crate) fn add_body(id: u32, bytes: usize) -> usize {
    with_request(id, |request| {
        request.body += bytes;
        request.body
    })
}

pub(crate) fn end(id: u32) {
    with(|state| {
        if let Some(request) = state.requests.remove(&id) {
            state.last = (id, request.trace.join(", "));
        }
        state.waiting.retain(|_, request| *request != id);
    });
}

/// The request that was deleted last, and its events.
pub(crate) fn last_request() -> (u32, String) {
    with(|state| state.last.clone())
}

/// Lets a request wait for this number of ticks.
pub(crate) fn await_ticks(id: u32, ticks: u32) {
    with_request(id, |request| request.ticks_left = ticks);
}

/// Counts a tick: the requests that are due, and whether other requests of this root context still wait for ticks.
pub(crate) fn tick(root: u32) -> (Vec<u32>, bool) {
    with(|state| {
        state.ticks += 1;
        let mut due = Vec::new();
        let mut has_waiting = false;
        for (id, request) in state.requests.iter_mut().filter(|(_, request)| request.root == root) {
            if request.ticks_left > 0 {
                request.ticks_left -= 1;
                match request.ticks_left {
                    0 => due.push(*id),
                    _ => has_waiting = true,
                }
            }
        }
        (due, has_waiting)
    })
}

/// The number of ticks in this VM.
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

/// Sets the request that opens a stream.
pub(crate) fn opening(id: Option<u32>) {
    with(|state| state.opening = id);
}

/// Responds to the request in effect with text, and with the number of the VM.
pub(crate) fn answer(text: &str) -> abi::Status {
    let vm = vm();
    let headers: [(&str, &[u8]); 2] = [("content-type", b"text/plain"), ("x-probe-vm", vm.as_bytes())];
    abi::send_local_reply(200, &headers, text.as_bytes(), abi::NO_GRPC_STATUS)
}

/// Responds to a request from its root context, and makes that the effective context again.
pub(crate) fn answer_from_root(id: u32, text: &str) {
    if abi::set_effective_context(id) == abi::Status::OK {
        answer(text);
    }
    abi::set_effective_context(root_of(id));
}
