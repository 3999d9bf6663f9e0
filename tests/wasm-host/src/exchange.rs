//! One HTTP request through the filter, as Envoy's filter manager processes it: what the filter holds, what is sent to
//! the upstream, and which response is sent.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use scenarios::{Answer, Body, Request, Response};

use crate::state::{Headers, LocalReply, Stream, header};
use crate::world::{Turn, Worker, World};

pub(crate) const CONTINUE: u32 = 0;
const STOP_ITERATION: u32 = 1;
/// Envoy's `StopAllIterationAndWatermark`.
const HOLD: u32 = 4;

/// A VM, and the number of a context in it.
pub(crate) type Context = (usize, u32);

/// The number of a request in a [`World`].
pub type Id = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The request continues to the upstream.
    Open,
    /// The filter holds the headers and receives the body.
    HoldsHeaders,
    /// The filter holds the headers and receives nothing more.
    HoldsAll,
}

#[derive(Clone, Debug)]
enum Piece {
    Body(Vec<u8>, bool),
    Trailers,
}

/// The upstream of a request.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub cluster: String,
    pub answer: Answer,
    /// Whether its body is that of the request, if there is one, and has a `content-length`.
    pub is_echo: bool,
    /// Whether it does not answer before [`World::upstream_answers`].
    pub waits: bool,
}

impl Default for Upstream {
    fn default() -> Self {
        Self { cluster: "upstream".to_owned(), answer: Answer::ok("hello"), is_echo: false, waits: false }
    }
}

/// What an upstream has received of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    pub body: Vec<u8>,
    pub has_trailers: bool,
}

/// A request and its state.
#[derive(Debug)]
pub(crate) struct Exchange {
    context: Context,
    request: Request,
    upstream: Upstream,
    flow: Flow,
    /// What the client has sent and the filter has not received.
    held: VecDeque<Piece>,
    /// What the filter has received and holds.
    buffered: Vec<u8>,
    is_buffering: bool,
    forwarded: Forwarded,
    is_answered_by_upstream: bool,
    has_ended: bool,
    is_gone: bool,
    pub(crate) response: Option<Response>,
}

impl World {
    /// Sends a complete request, and runs all turns at this instant.
    pub fn send(&mut self, worker: usize, request: &Request) -> Id {
        let id = self.submit(worker, request);
        self.settle();
        id
    }

    /// Sends a complete request.
    pub fn submit(&mut self, worker: usize, request: &Request) -> Id {
        let pieces: Vec<&[u8]> = match &request.body {
            Body::Sized(body) if !body.is_empty() => vec![body],
            Body::Sized(_) | Body::None => vec![],
            Body::Chunked(chunks) => chunks.iter().map(Vec::as_slice).chain([&b""[..]]).collect(),
        };
        let id = self.begin(worker, request, pieces.is_empty());
        for (index, piece) in pieces.iter().enumerate() {
            self.body(id, piece, index + 1 == pieces.len());
        }
        id
    }

    /// Sends a request that must be answered at once.
    pub fn get(&mut self, worker: usize, request: &Request) -> Response {
        let id = self.send(worker, request);
        let response = self.response(id).cloned();
        response.unwrap_or_else(|| panic!("no response to {request:?}"))
    }

    /// Sends the headers of a request.
    pub fn begin(&mut self, worker: usize, request: &Request, is_whole: bool) -> Id {
        let Worker { vm, root, allows_stop, .. } = self.workers[worker];
        let headers = headers_of(request);
        let count = headers.len() as u32;
        let stream = Stream {
            root,
            request_headers: Some(headers),
            source_address: source_of(request).into_bytes(),
            cluster: self.upstream.cluster.clone().into_bytes(),
            ..Stream::default()
        };
        let context = self.new_stream(vm, stream);
        let id = self.exchanges.len();
        self.exchanges.push(Exchange {
            context,
            request: request.clone(),
            upstream: self.upstream.clone(),
            flow: Flow::HoldsHeaders,
            held: VecDeque::new(),
            buffered: Vec::new(),
            is_buffering: false,
            forwarded: Forwarded::default(),
            is_answered_by_upstream: false,
            has_ended: is_whole,
            is_gone: false,
            response: None,
        });
        self.by_context.insert(context, id);
        let action = self.call_for_action(context, "proxy_on_request_headers", &[count, is_whole.into()]);
        self.exchanges[id].flow = match action {
            CONTINUE => Flow::Open,
            STOP_ITERATION if allows_stop => Flow::HoldsHeaders,
            _ => Flow::HoldsAll,
        };
        if action == CONTINUE {
            self.stream(context).request_headers = None;
            self.forward_if_whole(id);
        }
        id
    }

    /// Sends a piece of the body.
    pub fn body(&mut self, id: Id, bytes: &[u8], is_last: bool) {
        self.take_piece(id, Piece::Body(bytes.to_vec(), is_last));
    }

    /// Ends a request with trailers.
    pub fn trailers(&mut self, id: Id) {
        self.take_piece(id, Piece::Trailers);
    }

    fn take_piece(&mut self, id: Id, piece: Piece) {
        let exchange = &mut self.exchanges[id];
        if exchange.response.is_some() || exchange.is_gone {
            return;
        }
        if exchange.flow == Flow::HoldsAll {
            exchange.held.push_back(piece);
            return;
        }
        let context = exchange.context;
        let action = match piece {
            Piece::Body(bytes, is_last) => {
                exchange.has_ended |= is_last;
                exchange.buffered.extend(bytes);
                let received = exchange.buffered.clone();
                let (action, buffered) = self.filter_request_body(context, received, is_last);
                self.exchanges[id].buffered = buffered;
                action
            }
            Piece::Trailers => {
                exchange.has_ended = true;
                exchange.forwarded.has_trailers = true;
                let trailers = vec![("x-trailer".to_owned(), b"1".to_vec())];
                self.stream(context).request_trailers = Some(trailers);
                self.call_for_action(context, "proxy_on_request_trailers", &[1])
            }
        };
        let exchange = &mut self.exchanges[id];
        exchange.is_buffering = action != CONTINUE;
        if action == CONTINUE && exchange.response.is_none() {
            exchange.flow = Flow::Open;
            self.forward_if_whole(id);
        }
    }

    /// Forwards what the filter does not hold; once the request is complete, the upstream answers.
    fn forward_if_whole(&mut self, id: Id) {
        let exchange = &mut self.exchanges[id];
        if exchange.is_buffering || exchange.flow != Flow::Open {
            return;
        }
        exchange.forwarded.body.append(&mut exchange.buffered);
        if exchange.has_ended && !exchange.upstream.waits {
            self.turns.push_back(Turn::Upstream(id));
        }
    }

    /// The filter continues a request that it has held.
    pub(crate) fn continue_request(&mut self, context: Context) {
        let Some(&id) = self.by_context.get(&context) else { return };
        let exchange = &mut self.exchanges[id];
        assert!(exchange.response.is_none(), "request {id} continues after its response");
        assert!(exchange.flow != Flow::Open || exchange.is_buffering, "request {id} continues twice");
        exchange.flow = Flow::Open;
        exchange.is_buffering = false;
        for piece in std::mem::take(&mut exchange.held) {
            self.take_piece(id, piece);
        }
        self.forward_if_whole(id);
    }

    /// The filter answers a request itself.
    pub(crate) fn reply_locally(&mut self, context: Context, reply: LocalReply) {
        let Some(&id) = self.by_context.get(&context) else { return };
        let exchange = &mut self.exchanges[id];
        // The client gets the first of two replies; the limiter must not send two.
        if self.setup.is_probe && exchange.response.is_some() {
            return;
        }
        assert!(exchange.response.is_none(), "request {id} is answered twice: {reply:?}");
        assert!(exchange.flow != Flow::Open, "request {id} is answered after it continued: {reply:?}");
        let response = shown(reply, &exchange.request);
        self.answer(id, response);
    }

    pub(crate) fn answer_from_upstream(&mut self, id: Id) {
        let exchange = &mut self.exchanges[id];
        if exchange.response.is_some() || exchange.is_gone {
            return;
        }
        exchange.is_answered_by_upstream = true;
        let Upstream { answer, is_echo, .. } = exchange.upstream.clone();
        let mut headers: Headers =
            answer.headers.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
        let mut body = answer.body.into_bytes();
        if is_echo {
            if !exchange.forwarded.body.is_empty() {
                body.clone_from(&exchange.forwarded.body);
            }
            headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
        }
        self.answer(id, Response { status: answer.status, headers, body });
    }

    /// The upstream answers a request now, even an incomplete one; or Envoy does, if there is no upstream.
    pub fn upstream_answers(&mut self, id: Id) {
        self.answer_from_upstream(id);
        self.settle();
    }

    fn answer(&mut self, id: Id, response: Response) {
        let context = self.exchanges[id].context;
        self.exchanges[id].response = Some(response.clone());
        let Response { status, mut headers, mut body } = response;
        headers.insert(0, (":status".to_owned(), status.to_string().into_bytes()));
        headers = self.filter_response_headers(context, headers, body.is_empty());
        let status = number_in(&headers, ":status").unwrap_or(status);
        headers.retain(|(name, _)| name != ":status");
        if !body.is_empty() {
            body = self.filter_response_body(context, body, true);
        }
        // A client reads as many bytes as `content-length` says.
        body.truncate(number_in(&headers, "content-length").unwrap_or(usize::MAX));
        self.exchanges[id].response = Some(Response { status, headers, body });
        self.turns.push_back(Turn::Delete(context));
    }

    pub fn disconnect(&mut self, id: Id) {
        let exchange = &mut self.exchanges[id];
        if !exchange.is_gone {
            exchange.is_gone = true;
            let context = exchange.context;
            self.delete_stream(context);
        }
    }

    pub(crate) fn delete_stream(&mut self, (vm, number): Context) {
        if !self.vms[vm].state().streams.contains_key(&number) {
            return;
        }
        if self.vms[vm].has_export("proxy_on_log") {
            self.call(vm, "proxy_on_log", &[number]);
        }
        if self.vms[vm].has_export("proxy_on_done") {
            let is_done = self.call(vm, "proxy_on_done", &[number]);
            assert_eq!(is_done, 1, "a context that is not done is not modelled");
        }
        self.call(vm, "proxy_on_delete", &[number]);
        let stream = self.vms[vm].state_mut().streams.remove(&number).unwrap_or_default();
        if let Some(id) = self.by_context.remove(&(vm, number)) {
            self.exchanges[id].is_gone = true;
            self.delete_idle_root(vm, stream.root);
        }
    }

    /// The response to a request, if there is one yet.
    pub fn response(&self, id: Id) -> Option<&Response> {
        self.exchanges[id].response.as_ref()
    }

    /// What the upstream has received of a request; `None` if it has not answered it.
    pub fn forwarded(&self, id: Id) -> Option<&Forwarded> {
        let exchange = &self.exchanges[id];
        exchange.is_answered_by_upstream.then_some(&exchange.forwarded)
    }

    /// Requests that were neither answered nor forwarded to their upstream, and whose clients are connected.
    pub fn undecided(&self) -> Vec<Id> {
        let waits = |exchange: &Exchange| {
            exchange.response.is_none() && !exchange.is_gone && exchange.flow != Flow::Open
        };
        (0..self.exchanges.len()).filter(|id| waits(&self.exchanges[*id])).collect()
    }
}

/// What passes through a filter, of a caller or of a bridge.
impl World {
    /// A new stream with its context.
    pub(crate) fn new_stream(&mut self, vm: usize, stream: Stream) -> Context {
        self.last_context += 1;
        let (number, root) = (self.last_context, stream.root);
        self.vms[vm].state_mut().streams.insert(number, stream);
        self.call(vm, "proxy_on_context_create", &[number, root]);
        (vm, number)
    }

    fn stream(&mut self, (vm, number): Context) -> &mut Stream {
        self.vms[vm].state_mut().streams.get_mut(&number).expect("a stream that is not deleted")
    }

    /// Calls a callback of a stream; returns Envoy's action. If the filter has answered any request in it, this request
    /// is held, whatever the callback returns.
    pub(crate) fn call_for_action(
        &mut self,
        (vm, number): Context,
        name: &'static str,
        arguments: &[u32],
    ) -> u32 {
        let before = self.vms[vm].state().replies;
        let action = self.vms[vm].call(name, &[&[number], arguments].concat());
        let has_replied = self.vms[vm].state().replies != before;
        self.carry_out(vm);
        if has_replied { HOLD } else { action }
    }

    /// The filter's action, and the body as it has changed it.
    pub(crate) fn filter_request_body(
        &mut self,
        context: Context,
        body: Vec<u8>,
        is_last: bool,
    ) -> (u32, Vec<u8>) {
        let size = body.len() as u32;
        self.stream(context).request_body = Some(body);
        let action = self.call_for_action(context, "proxy_on_request_body", &[size, is_last.into()]);
        (action, self.stream(context).request_body.take().unwrap_or_default())
    }

    /// The headers as the filter has changed them.
    pub(crate) fn filter_response_headers(
        &mut self,
        context: Context,
        headers: Headers,
        is_last: bool,
    ) -> Headers {
        let count = headers.len() as u32;
        self.stream(context).response_headers = Some(headers);
        let action = self.call_for_action(context, "proxy_on_response_headers", &[count, is_last.into()]);
        assert_eq!(action, CONTINUE, "the filter holds a response");
        self.stream(context).response_headers.take().unwrap_or_default()
    }

    /// The body as the filter has changed it.
    pub(crate) fn filter_response_body(&mut self, context: Context, body: Vec<u8>, is_last: bool) -> Vec<u8> {
        let size = body.len() as u32;
        self.stream(context).response_body = Some(body);
        let action = self.call_for_action(context, "proxy_on_response_body", &[size, is_last.into()]);
        assert_eq!(action, CONTINUE, "the filter holds a response");
        self.stream(context).response_body.take().unwrap_or_default()
    }
}

fn number_in<T: FromStr>(headers: &Headers, name: &str) -> Option<T> {
    str::from_utf8(header(headers, name)?).ok()?.parse().ok()
}

/// The headers of a request as filters see them: names in lower case, no white space around values, and Envoy's own.
fn headers_of(request: &Request) -> Headers {
    let own = [
        (":method", request.method.as_str()),
        (":path", &request.target),
        (":authority", "api"),
        (":scheme", "http"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "1"),
    ];
    let is_sent = |name: &str| name != ":path" || request.method != "CONNECT";
    let own = own.into_iter().filter(|(name, _)| is_sent(name));
    let own = own.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    let sent = request.headers.iter().map(|(name, value)| (name.to_lowercase(), value.trim_ascii().to_vec()));
    own.chain(sent).collect()
}

/// The client's address in Envoy's notation. An address from a header has the port 0; other text is not changed.
fn source_of(request: &Request) -> String {
    match &request.from {
        None => "127.0.0.1:40000".to_owned(),
        Some(from) => match from.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, 0).to_string(),
            Err(_) => from.clone(),
        },
    }
}

/// The response that Envoy sends for a local reply: a gRPC response to a gRPC request.
fn shown(reply: LocalReply, request: &Request) -> Response {
    let LocalReply { status, mut headers, mut body, grpc_status } = reply;
    if is_grpc(request) {
        headers.retain(|(name, _)| name != "content-type");
        headers.push(("content-type".to_owned(), b"application/grpc".to_vec()));
        let code = u32::try_from(grpc_status).unwrap_or(grpc_status_of(status));
        headers.push(("grpc-status".to_owned(), code.to_string().into_bytes()));
        if !body.is_empty() {
            headers.push(("grpc-message".to_owned(), body));
        }
        return Response { status: 200, headers, body: Vec::new() };
    }
    if !body.is_empty() {
        if header(&headers, "content-type").is_none() {
            headers.push(("content-type".to_owned(), b"text/plain".to_vec()));
        }
        headers.push(("content-length".to_owned(), body.len().to_string().into_bytes()));
    }
    if request.method == "HEAD" {
        body.clear();
    }
    Response { status, headers, body }
}

fn is_grpc(request: &Request) -> bool {
    let kind = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    kind.is_some_and(|(_, kind)| kind == b"application/grpc" || kind.starts_with(b"application/grpc+"))
}

/// The gRPC status for an HTTP status.
fn grpc_status_of(status: u16) -> u32 {
    const UNKNOWN: u32 = 2;
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => UNKNOWN,
    }
}
