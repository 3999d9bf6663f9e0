//! A pool of workers with a queue, bounded or not. It does not notice that a client has left: each accepted request is
//! processed. That is why an overloaded service without protection is busy all the time and serves no request in time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// Where a [`Condition`] is posted to.
pub const CONDITION_PATH: &str = "/upstream/condition";

/// How many connections the kernel keeps for us until we accept them. Callers that give up come back on new ones, and
/// what is measured is a queue of requests and not one of connections.
const BACKLOG: u32 = 4_096;

/// What the server can do.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Shape {
    /// How many requests it works on at once
    #[arg(long, default_value_t = 10)]
    pub slots: usize,
    /// How long a request takes on average, in milliseconds; lognormal
    #[arg(long, default_value_t = 100)]
    pub service_ms: u64,
    /// How many requests may wait; further ones get 503 at once. Without it the queue has no bound
    #[arg(long)]
    pub queue: Option<usize>,
}

/// Standard deviation of the logarithm of service times.
const SIGMA: f64 = 0.5;

impl Shape {
    /// How many requests it can serve in a second.
    pub fn capacity(&self) -> f64 {
        self.slots as f64 * 1_000.0 / self.service_ms as f64
    }
}

/// How the server is doing; it can be changed while it runs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Condition {
    /// How many times longer than usual everything takes.
    pub slowdown: f64,
    /// The share of answers, 0 to 1, that are errors.
    pub failing: f64,
}

impl Default for Condition {
    fn default() -> Self {
        Self { slowdown: 1.0, failing: 0.0 }
    }
}

/// A server that runs in a thread of its own until the process ends.
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
    /// With a fixed seed, so that the n-th request that is processed takes the same time whatever protects the
    /// upstream.
    rng: Mutex<fastrand::Rng>,
    /// Requests that are being worked on or wait.
    accepted: AtomicUsize,
}

impl Upstream {
    /// Starts a server.
    ///
    /// # Errors
    ///
    /// When nothing can listen at this address.
    pub fn start(shape: Shape, address: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            listen(address)?
        };
        let upstream = Self { address: listener.local_addr()?, state: Arc::new(State::new(shape)) };
        let state = Arc::clone(&upstream.state);
        std::thread::spawn(move || runtime.block_on(accept(listener, &state)));
        Ok(upstream)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it is doing, from the next request on.
    pub fn set(&self, condition: Condition) {
        self.state.set(condition);
    }
}

impl State {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            condition: Mutex::default(),
            slots: Semaphore::new(shape.slots),
            rng: Mutex::new(fastrand::Rng::with_seed(1)),
            accepted: AtomicUsize::new(0),
        }
    }

    fn condition(&self) -> Condition {
        *self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, condition: Condition) {
        *self.condition.lock().unwrap_or_else(PoisonError::into_inner) = condition;
    }

    /// Takes a place among those that are worked on or wait, where there is one.
    fn accept(&self) -> bool {
        let most = self.shape.queue.map_or(usize::MAX, |queue| self.shape.slots + queue);
        let more = |accepted| (accepted < most).then_some(accepted + 1);
        self.accepted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Works on one accepted request; gives whether that went well.
    async fn work(&self) -> bool {
        // The semaphore is fair, so that requests are worked on in the order in which they came, and never closed.
        let slot = self.slots.acquire().await;
        let condition = self.condition();
        let mean = self.shape.service_ms as f64 / 1_000.0 * condition.slowdown;
        let seconds = mean * lognormal(&mut self.rng.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        drop(slot);
        self.accepted.fetch_sub(1, Ordering::Relaxed);
        fastrand::f64() >= condition.failing
    }
}

/// With a mean of 1.
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
            // No file is left: one comes free when a connection ends.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    // It makes answers a little quicker, and its absence is no reason not to serve.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, Arc::clone(&state)));
    // A connection that breaks is the other end's business.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == CONDITION_PATH && request.method() == Method::POST {
        return Ok(change(request, &state).await);
    }
    if !state.accept() {
        return Ok(reply(StatusCode::SERVICE_UNAVAILABLE, "the queue is full\n"));
    }
    // In a task of its own, so that it goes on when the connection, and with it this function, ends.
    let work = tokio::spawn(async move { state.work().await });
    Ok(match work.await {
        Ok(true) => reply(StatusCode::OK, "served\n"),
        _ => reply(StatusCode::INTERNAL_SERVER_ERROR, "failing\n"),
    })
}

async fn change(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    match serde_json::from_slice(&body) {
        Ok(condition) => {
            state.set(condition);
            reply(StatusCode::OK, "changed\n")
        }
        Err(error) => reply(
            StatusCode::BAD_REQUEST,
            &format!("found {error}, wanted {{\"slowdown\": 1.0, \"failing\": 0.0}} with other numbers\n"),
        ),
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
    fn service_times_have_the_mean_that_was_asked_for() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mean = (0..100_000).map(|_| lognormal(&mut rng)).sum::<f64>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }
}
