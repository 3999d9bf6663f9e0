//! A pool of workers with a queue, bounded or not. It does not notice that a client has left: each accepted request is
//! processed. That is why an overloaded service without protection is busy all the time and serves no request in time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// The path to `POST` a [`Condition`] to.
pub const CONDITION_PATH: &str = "/upstream/condition";

/// How many connections the kernel queues until they are accepted. It is large because callers that give up open new
/// connections, and the bench measures a queue of requests, not one of connections.
const BACKLOG: u32 = 4_096;

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Shape {
    /// How many requests it works on at once
    #[arg(long, default_value_t = 10)]
    pub slots: usize,
    /// How long a request takes on average, in milliseconds; lognormal
    #[arg(long, default_value_t = 100)]
    pub service_ms: u64,
    /// How many requests may wait; further ones get 503 at once. Without it the queue is unbounded
    #[arg(long)]
    pub queue: Option<usize>,
}

/// Standard deviation of the logarithm of service times.
const SIGMA: f64 = 0.5;

impl Shape {
    /// Requests a second.
    pub fn capacity(&self) -> f64 {
        self.slots as f64 * 1_000.0 / self.service_ms as f64
    }
}

/// The condition of the server; it can be changed while it runs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Condition {
    /// The factor by which service times are longer than usual.
    pub slowdown: f64,
    /// The share of responses, 0 to 1, that are errors.
    pub failing: f64,
}

impl Default for Condition {
    fn default() -> Self {
        Self { slowdown: 1.0, failing: 0.0 }
    }
}

/// A server in its own thread, which runs until the process ends.
#[derive(Clone, Debug)]
pub struct Upstream {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    shape: Shape,
    condition: Mutex<Condition>,
    slots: Semaphore,
    /// With a fixed seed, so that the n-th processed request takes the same time with every protection.
    rng: Mutex<fastrand::Rng>,
    /// Requests that are processed or wait.
    accepted: AtomicUsize,
}

impl Upstream {
    pub fn start(shape: Shape, address: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            listen(address)?
        };
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            shape,
            condition: Mutex::default(),
            slots: Semaphore::new(shape.slots),
            rng: Mutex::new(fastrand::Rng::with_seed(1)),
            accepted: AtomicUsize::new(0),
        });
        let served = Arc::clone(&state);
        std::thread::spawn(move || runtime.block_on(accept(listener, &served)));
        Ok(Self { address, state })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, condition: Condition) {
        *self.state.condition.lock() = condition;
    }
}

impl State {
    /// Counts a request as accepted, unless the queue is full.
    fn accept(&self) -> bool {
        let most = self.shape.queue.map_or(usize::MAX, |queue| self.shape.slots + queue);
        let more = |accepted| (accepted < most).then_some(accepted + 1);
        self.accepted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Processes one accepted request; returns whether it succeeded.
    async fn work(&self) -> bool {
        // The semaphore is fair, so that requests are processed in the order received, and it is never closed.
        let slot = self.slots.acquire().await;
        let condition = *self.condition.lock();
        let mean = self.shape.service_ms as f64 / 1_000.0 * condition.slowdown;
        let seconds = mean * lognormal(&mut self.rng.lock());
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        drop(slot);
        self.accepted.fetch_sub(1, Ordering::Relaxed);
        fastrand::f64() >= condition.failing
    }
}

fn lognormal(rng: &mut fastrand::Rng) -> f64 {
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
    (SIGMA * normal - SIGMA * SIGMA / 2.0).exp()
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, state: &Arc<State>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Arc::clone(state)));
            }
            // No file descriptor is left until a connection ends.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    // It reduces latency, and is not required.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    // A broken connection is no error here.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == CONDITION_PATH && request.method() == Method::POST {
        return Ok(change(request, &state).await);
    }
    if !state.accept() {
        return Ok(reply(StatusCode::SERVICE_UNAVAILABLE, "the queue is full\n"));
    }
    // In its own task, so that it continues if the connection, and with it this function, ends.
    let work = tokio::spawn(async move { state.work().await });
    Ok(match work.await {
        Ok(true) => reply(StatusCode::OK, "served\n"),
        _ => reply(StatusCode::INTERNAL_SERVER_ERROR, "failing\n"),
    })
}

async fn change(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    match serde_json::from_slice(&body).map(|condition| *state.condition.lock() = condition) {
        Ok(()) => reply(StatusCode::OK, "changed\n"),
        Err(error) => {
            let wanted = r#"{"slowdown": 1.0, "failing": 0.0} with other numbers"#;
            reply(StatusCode::BAD_REQUEST, &format!("found {error}, wanted {wanted}\n"))
        }
    }
}

fn reply(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_owned()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::lognormal;

    #[test]
    fn service_times_have_the_configured_mean() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mean = (0..100_000).map(|_| lognormal(&mut rng)).sum::<f64>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }
}
