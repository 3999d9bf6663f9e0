//! The hostile host as the scenarios want it: [`scenarios::Host`].

use std::net::IpAddr;
use std::time::Duration;

use scenarios::{Answer, Body, Gateway, Host, Request, Response};
use wasm_host::{Id, World};

/// Longer than any request waits.
const PATIENCE_MS: u64 = 20_000;

/// Between two looks at whether an answer is there.
const LOOK_MS: u64 = 5;

/// Starts hostile hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostileHost;

impl Host for HostileHost {
    fn start(&self, setup: &scenarios::Setup) -> Box<dyn Gateway> {
        let mut world = boot(setup);
        let configuration = configuration(setup);
        for worker in 0..setup.workers as usize {
            assert!(world.configure(worker, &configuration), "refused: {:?}", world.processes[0].log);
        }
        world.settle();
        Box::new(Running { world, setup: setup.clone(), turn: 0, passed_on: Vec::new() })
    }

    fn start_refused(&self, setup: &scenarios::Setup) -> String {
        let mut world = boot(setup);
        assert!(!world.configure(0, &configuration(setup)), "the configuration is taken");
        world.processes[0].log.borrow().iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

fn configuration(setup: &scenarios::Setup) -> Vec<u8> {
    setup.config.as_ref().map(|config| config.to_string().into_bytes()).unwrap_or_default()
}

/// An Envoy whose workers have not been configured yet.
fn boot(wanted: &scenarios::Setup) -> World {
    let variables = wanted.variables.iter().map(|(name, value)| (name.clone(), value.clone().into()));
    let mut world = World::boot(wasm_host::Setup {
        environment: variables.collect(),
        workers: wanted.workers as usize,
        allows_stop: wanted.passes_bodies,
        ..wasm_host::Setup::new("")
    });
    world.processes[0].keeps_stats.set(wanted.keeps_stats);
    for (path, document) in &wanted.documents {
        world.documents.insert(path.clone(), (200, document.clone().into()));
    }
    world
}

struct Running {
    world: World,
    setup: scenarios::Setup,
    /// The worker that gets the next request: each in its turn.
    turn: usize,
    passed_on: Vec<String>,
}

impl Running {
    fn send_to(&mut self, worker: usize, request: &Request) -> Response {
        let answer = self.upstream_answer(request);
        let is_whole = match &request.body {
            Body::None => true,
            Body::Sized(body) => body.is_empty(),
            Body::Chunked(_) => false,
        };
        let id = self.world.begin(worker, &self.encoded(request, &answer), is_whole);
        match &request.body {
            Body::Sized(body) if !is_whole => self.world.body(id, body, true),
            Body::Chunked(chunks) => {
                chunks.iter().for_each(|chunk| self.world.body(id, chunk, false));
                self.world.body(id, b"", true);
            }
            Body::Sized(_) | Body::None => {}
        }
        self.world.settle();
        if answer.after > Duration::ZERO && self.world.response(id).is_none() {
            self.pass(answer.after);
            self.world.upstream_answers(id);
        }
        self.await_response(id, request)
    }

    fn await_response(&mut self, id: Id, request: &Request) -> Response {
        for _ in 0..PATIENCE_MS / LOOK_MS {
            if let Some(response) = self.world.response(id).cloned() {
                if response.upstream_got.is_some() {
                    self.passed_on.push(request.target.clone());
                }
                let status = u16::try_from(response.status).expect("an HTTP status");
                return Response { status, headers: response.headers, body: response.body };
            }
            self.world.advance_ms(LOOK_MS);
        }
        panic!("no answer to {request:?}")
    }

    /// What the upstream answers, as Envoy shows it to filters: names in lower case, no body for `HEAD`.
    fn upstream_answer(&self, request: &Request) -> Answer {
        let mut answer = self.setup.answer_to(&request.target);
        if self.setup.is_grpc {
            let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            answer.headers = vec![header("content-type", "application/grpc"), header("grpc-status", "0")];
        }
        if request.method == "HEAD" {
            answer.body.clear();
        }
        answer.headers.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
        answer
    }

    /// The request as Envoy shows it to filters: names in lower case, no white space around values, and the address and
    /// port of the client.
    fn encoded(&self, request: &Request, answer: &Answer) -> wasm_host::Request {
        let source = match &request.from {
            None => "127.0.0.1:40000".to_owned(),
            Some(address) => {
                assert!(self.setup.has_addresses, "from {address}, where callers have no addresses");
                match address.parse().expect("an address") {
                    IpAddr::V4(address) => format!("{address}:0"),
                    IpAddr::V6(address) => format!("[{address}]:0"),
                }
            }
        };
        let headers: Vec<_> =
            answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut encoded = wasm_host::Request::new(&request.method, &request.target)
            .from(source)
            .answered_with(answer.status.into(), &headers, &answer.body);
        for (name, value) in &request.headers {
            encoded = encoded.with(&name.to_lowercase(), value.trim_ascii());
        }
        if answer.after > Duration::ZERO { encoded.upstream_waits() } else { encoded }
    }
}

impl Gateway for Running {
    fn send(&mut self, request: &Request) -> Response {
        self.turn = (self.turn + 1) % self.setup.workers as usize;
        self.send_to(self.turn, request)
    }

    fn send_to_every_worker(&mut self, request: &Request) -> Vec<Response> {
        (0..self.setup.workers as usize).map(|worker| self.send_to(worker, request)).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.world.advance_us(u64::try_from(time.as_micros()).expect("a short time"));
    }

    fn now(&self) -> f64 {
        self.world.clock.wall_ns.get() as f64 / 1e9
    }

    fn metric(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut wanted: Vec<_> = labels.to_vec();
        wanted.sort_unstable();
        let names = self.stats();
        let stat = names.iter().find(|stat| {
            let Some(rest) = stat.strip_prefix(name) else { return false };
            let parts: Vec<_> = rest.split('.').skip(1).collect();
            let mut found: Vec<_> = parts.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            found.sort_unstable();
            (rest.is_empty() || rest.starts_with('.')) && found == wanted
        })?;
        Some(self.world.processes[0].stat(stat) as f64)
    }

    fn stats(&mut self) -> Vec<String> {
        let process = &self.world.processes[0];
        if process.keeps_stats.get() { process.stat_names() } else { Vec::new() }
    }

    fn passed_on(&mut self) -> Vec<String> {
        self.passed_on.clone()
    }

    fn serve(&mut self, path: &str, document: &str) {
        self.world.documents.insert(path.to_owned(), (200, document.into()));
    }
}
