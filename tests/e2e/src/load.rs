//! Many requests at once, counted by status.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Connection, Request, Response};
use crate::http1::{self, BodyLength};
use crate::wait::Stalls;

/// How many responses had each status. A broken connection counts as status 0.
pub type StatusCounts = BTreeMap<u16, u64>;

/// How many requests a connection pipelines. Envoy closes the connection of a client with more than two unread
/// responses (`Too many responses queued`).
const DEPTH: usize = 2;

/// Sends `requests` copies of `request` on each of `connections` connections.
///
/// All connections are open before the first request is sent; then they all start at the same moment. That is the
/// hardest case for a bucket that does not exist yet.
pub fn burst(to: SocketAddr, connections: usize, requests: usize, request: &Request) -> StatusCounts {
    burst_on_each(&[to], connections, requests, request)
}

/// [`burst`] on all of these addresses at once, with `connections` to each.
pub fn burst_on_each(
    to: &[SocketAddr],
    connections: usize,
    requests: usize,
    request: &Request,
) -> StatusCounts {
    let one = request.encode();
    let connections = connections * to.len();
    let start = Barrier::new(connections);
    in_threads(connections, |index| {
        let mut connection = Connection::open(to[index % to.len()]);
        start.wait();
        let mut counts = StatusCounts::new();
        let mut left = requests;
        while left > 0 {
            let batch = left.min(DEPTH);
            let written = connection.write(&one.repeat(batch));
            count_answers(&mut connection, batch, written.is_ok(), &mut counts);
            left -= batch;
        }
        counts
    })
}

/// Sends one request for each of `numbers`, encoded by `encode`, over `connections` connections in each of two threads.
pub fn flood(
    to: SocketAddr,
    connections: usize,
    numbers: std::ops::Range<usize>,
    encode: impl Fn(usize, &mut Vec<u8>) + Sync,
) -> StatusCounts {
    const THREADS: usize = 2;
    let share = numbers.len().div_ceil(THREADS);
    in_threads(THREADS, |index| {
        let from = (numbers.start + index * share).min(numbers.end);
        let mut mine = (from..(from + share).min(numbers.end)).peekable();
        let mut all: Vec<_> = (0..connections).map(|_| Connection::open(to)).collect();
        let mut counts = StatusCounts::new();
        let mut bytes = Vec::new();
        while mine.peek().is_some() {
            // First send on every connection, then read every response: Envoy works on the other connections while
            // this thread reads from one.
            let mut sent = Vec::with_capacity(connections);
            for connection in &mut all {
                bytes.clear();
                let batch = mine.by_ref().take(DEPTH).map(|n| encode(n, &mut bytes)).count();
                sent.push((batch, connection.write(&bytes).is_ok()));
            }
            for (connection, (batch, written)) in all.iter_mut().zip(sent) {
                count_answers(connection, batch, written, &mut counts);
            }
        }
        counts
    })
}

/// Sends `request` on each of `connections` connections, one at a time with `pause` in between, while `work` runs.
/// Returns the result of `work` and the responses by status. Waits for the response to every request that was sent.
pub fn during<T>(
    to: SocketAddr,
    connections: usize,
    pause: Duration,
    request: &Request,
    work: impl FnOnce() -> T,
) -> (T, StatusCounts) {
    let (result, exchanges) = observe(&[to], connections, pause, |_, _| request.clone(), work);
    (result, count_by_status(&exchanges))
}

/// A request and its response.
#[derive(Debug)]
pub struct Exchange {
    /// The number of its connection, counted from zero.
    pub connection: usize,
    pub sent: Instant,
    /// How long the response took.
    pub took: Duration,
    /// How much of that time this machine ran neither Envoy nor the test.
    pub stalled: Duration,
    pub answer: io::Result<Response>,
}

impl Exchange {
    /// How long the response took, without the time in which the machine was stalled.
    pub fn delay(&self) -> Duration {
        self.took.saturating_sub(self.stalled)
    }

    /// The status of the response; 0 if the connection broke.
    pub fn status(&self) -> u16 {
        self.answer.as_ref().map_or(0, |response| response.status)
    }
}

/// [`during`] with every response kept. `request` gets the number of the connection and the exchanges on it so far,
/// and returns the next request. Connections use the addresses in turn. Returns the exchanges by connection, in order.
pub fn observe<T>(
    to: &[SocketAddr],
    connections: usize,
    pause: Duration,
    request: impl Fn(usize, &[Exchange]) -> Request + Sync,
    work: impl FnOnce() -> T,
) -> (T, Vec<Exchange>) {
    let stop = AtomicBool::new(false);
    let stalls = Stalls::watch();
    let (stop, request) = (&stop, &request);
    let (result, mut exchanges) = thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|index| scope.spawn(move || keep_sending(to[index % to.len()], index, pause, request, stop)))
            .collect();
        // A panic in `work` must not leave the threads running: the scope would wait for them.
        let result = {
            let _stop = SetOnDrop(stop);
            work()
        };
        let join = |thread: thread::ScopedJoinHandle<'_, Vec<Exchange>>| {
            thread.join().expect("no panic in a load thread")
        };
        (result, threads.into_iter().flat_map(join).collect::<Vec<_>>())
    });
    let stalls = stalls.end();
    for exchange in &mut exchanges {
        exchange.stalled = stalls.within(exchange.sent, exchange.took);
    }
    (result, exchanges)
}

fn keep_sending(
    to: SocketAddr,
    index: usize,
    pause: Duration,
    request: &impl Fn(usize, &[Exchange]) -> Request,
    stop: &AtomicBool,
) -> Vec<Exchange> {
    let mut connection = None;
    let mut exchanges = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let request = request(index, &exchanges);
        let sent = Instant::now();
        let open = connection.take().map_or_else(|| Connection::try_connect(to, None), Ok);
        let answer = open.and_then(|mut open: Connection| {
            let response = open.try_send(&request)?;
            if !response.closes_connection() {
                connection = Some(open);
            }
            Ok(response)
        });
        let took = sent.elapsed();
        exchanges.push(Exchange { connection: index, sent, took, stalled: Duration::ZERO, answer });
        thread::sleep(pause);
    }
    exchanges
}

/// The 99th percentile and the maximum; zero if there are no times.
pub fn p99_and_longest(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    (p99, times.last().copied().unwrap_or_default())
}

pub fn count_by_status<'a>(exchanges: impl IntoIterator<Item = &'a Exchange>) -> StatusCounts {
    let mut counts = StatusCounts::new();
    for exchange in exchanges {
        *counts.entry(exchange.status()).or_default() += 1;
    }
    counts
}

pub fn merge(mut left: StatusCounts, right: StatusCounts) -> StatusCounts {
    for (status, count) in right {
        *left.entry(status).or_default() += count;
    }
    left
}

pub fn count(counts: &StatusCounts, status: u16) -> u64 {
    counts.get(&status).copied().unwrap_or(0)
}

/// Sets a flag when it is dropped, also by a panic: the flag that ends threads beside a test.
#[derive(Debug)]
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn in_threads(threads: usize, work: impl Fn(usize) -> StatusCounts + Sync) -> StatusCounts {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|index| scope.spawn(move || work(index))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("no panic in a load thread"))
            .fold(StatusCounts::new(), merge)
    })
}

/// Reads the responses to a batch of requests; a missing response counts as status 0.
fn count_answers(connection: &mut Connection, batch: usize, written: bool, counts: &mut StatusCounts) {
    for _ in 0..batch {
        let status = if written { read_status(connection).unwrap_or(0) } else { 0 };
        *counts.entry(status).or_default() += 1;
    }
}

/// Reads one response for its status, and keeps nothing else. All responses to a load have a `content-length`.
fn read_status(connection: &mut Connection) -> io::Result<u16> {
    let reader = connection.reader();
    let head = http1::read_head(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&head);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let length = length.ok_or_else(|| io::Error::other("no content-length"))?;
    http1::read_body(reader, BodyLength::Known(length))?;
    head.get(9..12).and_then(|code| code.parse().ok()).ok_or_else(|| io::Error::other("no status"))
}
