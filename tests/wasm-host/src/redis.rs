//! The connection to Redis: a worker's gRPC stream, the real bridge in its own VM, and a model of Redis.

use std::rc::Rc;

use dynamic_rate_limiter::store::redis::frame;

use crate::exchange::{CONTINUE, Context};
use crate::process::Clock;
use crate::state::{Headers, Stream, header};
use crate::world::{Turn, World};
use harness::fake_redis::{Connection, ModelRedis};

/// gRPC's status for an unavailable peer.
pub(crate) const UNAVAILABLE: u32 = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Up,
    /// Accepts connections and commands; executes them, and replies, when it is up again.
    Frozen,
    /// Executes commands, and replies when it is up again.
    Silent,
    Refuses,
}

pub struct Redis {
    clock: Rc<Clock>,
    pub model: ModelRedis,
    pub mode: Mode,
    /// Replies and commands are sent in pieces of this size.
    pub piece_bytes: usize,
    /// Every received byte.
    pub received: Vec<u8>,
    /// How far its clock is ahead of the Envoys'.
    pub ahead_us: i64,
}

impl Redis {
    pub(crate) fn at(clock: Rc<Clock>) -> Self {
        let model = ModelRedis::at(clock.wall_ns.get() / 1_000);
        Self { clock, model, mode: Mode::Up, piece_bytes: usize::MAX, received: Vec::new(), ahead_us: 0 }
    }

    /// How many scripts it was sent.
    pub fn scripts(&self) -> usize {
        self.model.commands.iter().filter(|command| command[0].starts_with(b"EVAL")).count()
    }
}

/// One connection, from a worker's stream to Redis.
#[derive(Default)]
pub(crate) struct Link {
    vm: usize,
    token: u32,
    /// The stream in the bridge.
    bridge: Context,
    is_open: bool,
    has_response: bool,
    connection: Connection,
    unanswered: Vec<u8>,
    held_replies: Vec<u8>,
    from_bridge: Vec<u8>,
}

impl World {
    pub(crate) fn open_link(&mut self, vm: usize, token: u32) {
        if self.redis.mode == Mode::Refuses {
            return self.turns.push_back(Turn::StreamClosed(vm, token, UNAVAILABLE));
        }
        let bridge = self.bridge(vm);
        let root = *self.vms[bridge].state().roots.keys().next().expect("the bridge's root context");
        let stream = Stream { root, request_headers: Some(Headers::new()), ..Stream::default() };
        let bridge = self.new_stream(bridge, stream);
        let action = self.call_for_action(bridge, "proxy_on_request_headers", &[0, 0]);
        assert_eq!(action, CONTINUE, "the bridge holds a request");
        self.links.push(Link { vm, token, bridge, is_open: true, ..Link::default() });
    }

    /// The VM of a worker's bridge, created when it is first needed.
    fn bridge(&mut self, vm: usize) -> usize {
        let worker = self.workers.iter().position(|worker| worker.vm == vm).expect("a worker's VM");
        if let Some(bridge) = self.workers[worker].bridge {
            return bridge;
        }
        let process = self.vms[vm].state().process.clone();
        let bridge = self.new_vm(process, ("redis_bridge", "redis_bridge"));
        self.workers[worker].bridge = Some(bridge);
        self.new_root(bridge);
        bridge
    }

    fn link(&self, vm: usize, token: u32) -> Option<usize> {
        self.links.iter().position(|link| link.is_open && (link.vm, link.token) == (vm, token))
    }

    /// Sends a message with its gRPC frame to the bridge, and the bridge's output to Redis.
    pub(crate) fn send_on_link(&mut self, vm: usize, token: u32, message: &[u8]) {
        let Some(link) = self.link(vm, token) else { return };
        let framed = [frame::header(message.len() as u32).as_slice(), message].concat();
        let bridge = self.links[link].bridge;
        for piece in framed.chunks(self.redis.piece_bytes.max(1)) {
            let (action, plain) = self.filter_request_body(bridge, piece.to_vec(), false);
            assert_eq!(action, CONTINUE, "the bridge holds bytes");
            self.redis.received.extend(&plain);
            self.links[link].unanswered.extend(plain);
        }
        self.serve(link);
    }

    /// Redis executes the received commands if it is up or silent, and replies if it is up.
    fn serve(&mut self, link: usize) {
        let Link { is_open, connection, unanswered, held_replies, .. } = &mut self.links[link];
        if !*is_open || !matches!(self.redis.mode, Mode::Up | Mode::Silent) {
            return;
        }
        self.redis.model.now_us =
            (self.redis.clock.wall_ns.get() / 1_000).wrapping_add_signed(self.redis.ahead_us);
        held_replies.extend(self.redis.model.receive(connection, &std::mem::take(unanswered)).concat());
        if self.redis.mode == Mode::Up {
            let replies = std::mem::take(held_replies);
            self.redis_sends(link, &replies);
        }
    }

    /// Whether a worker is connected to Redis.
    pub fn is_connected(&self, worker: usize) -> bool {
        self.link_of(worker).is_some()
    }

    /// Whether Redis holds replies to a worker.
    pub fn is_owed_a_reply(&self, worker: usize) -> bool {
        self.link_of(worker).is_some_and(|link| !link.held_replies.is_empty())
    }

    fn link_of(&self, worker: usize) -> Option<&Link> {
        self.links.iter().find(|link| link.is_open && link.vm == self.workers[worker].vm)
    }

    /// Redis is up (again), and replies to all commands.
    pub fn redis_starts(&mut self) {
        self.redis.mode = Mode::Up;
        for link in 0..self.links.len() {
            self.serve(link);
        }
        self.settle();
    }

    pub fn redis_disconnects(&mut self) {
        for link in 0..self.links.len() {
            if std::mem::take(&mut self.links[link].is_open) {
                let Link { vm, token, bridge, .. } = self.links[link];
                self.turns.push_back(Turn::Delete(bridge));
                self.turns.push_back(Turn::StreamClosed(vm, token, UNAVAILABLE));
            }
        }
        self.settle();
    }

    /// Redis sends bytes on a connection.
    pub(crate) fn redis_sends(&mut self, link: usize, bytes: &[u8]) {
        for piece in bytes.chunks(self.redis.piece_bytes.max(1)) {
            self.turns.push_back(Turn::FromRedis(link, piece.to_vec()));
        }
    }

    pub(crate) fn receive_from_redis(&mut self, link: usize, bytes: &[u8]) {
        let Some(&Link { vm, token, bridge, is_open: true, has_response, .. }) = self.links.get(link) else {
            return;
        };
        if !has_response {
            self.links[link].has_response = true;
            let headers = vec![(":status".to_owned(), b"200".to_vec())];
            let headers = self.filter_response_headers(bridge, headers, false);
            let kind = header(&headers, "content-type").map(String::from_utf8_lossy);
            assert_eq!(
                kind.as_deref(),
                Some("application/grpc"),
                "Envoy's gRPC client would close the stream"
            );
        }
        let framed = self.filter_response_body(bridge, bytes.to_vec(), false);
        self.links[link].from_bridge.extend(framed);
        while let Some(message) = self.next_message(link) {
            self.deliver_message(vm, token, message);
        }
    }

    /// Removes the frame of a gRPC message, as Envoy's client does.
    fn next_message(&mut self, link: usize) -> Option<Vec<u8>> {
        let bytes = &mut self.links[link].from_bridge;
        let (head, rest) = bytes.split_at_checked(frame::HEADER_BYTES)?;
        assert_eq!(head[0], 0, "a compressed frame");
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let message = rest.get(..length)?.to_vec();
        bytes.drain(..frame::HEADER_BYTES + length);
        Some(message)
    }

    /// Delivers a message to the limiter, if it still holds the stream.
    pub(crate) fn deliver_message(&mut self, vm: usize, token: u32, message: Vec<u8>) {
        let owner = self.vms[vm].state().grpc_streams.get(&token).copied();
        if let Some(root) = owner {
            self.deliver_to_root(vm, root, token, message);
        }
    }

    pub(crate) fn deliver_to_root(&mut self, vm: usize, root: u32, token: u32, message: Vec<u8>) {
        let size = message.len() as u32;
        self.vms[vm].state_mut().grpc_message = message;
        self.call(vm, "proxy_on_grpc_receive", &[root, token, size]);
    }

    pub(crate) fn cancel_link(&mut self, vm: usize, token: u32) {
        if let Some(link) = self.link(vm, token) {
            self.links[link].is_open = false;
            self.turns.push_back(Turn::Delete(self.links[link].bridge));
        }
    }
}
