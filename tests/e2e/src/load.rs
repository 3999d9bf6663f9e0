//! Many requests at once, counted by status.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Read as _};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Connection, Request, Response};
use crate::wait::Stalls;

/// How many answers there were of each status. A connection that broke counts as status 0.
pub type Tally = BTreeMap<u16, u64>;

/// How many requests are on the way at once on a connection. Envoy closes on a client that lets
/// more than two answers wait (`Too many responses queued`), which is as far as pipelining goes.
const DEPTH: usize = 2;

/// Sends `requests` copies of `request` down each of `connections` connections.
///
/// All connections are open before the first request of any of them goes out; then they all start
/// in the same instant. That is the hardest case for a bucket that does not exist yet.
pub fn burst(to: SocketAddr, connections: usize, requests: usize, request: &Request) -> Tally {
    burst_on_each(&[to], connections, requests, request)
}

/// [`burst`] on all of these addresses at once, with as many connections to each.
pub fn burst_on_each(to: &[SocketAddr], connections: usize, requests: usize, request: &Request) -> Tally {
    let one = request.encode();
    let connections = connections * to.len();
    let start = Barrier::new(connections);
    in_threads(connections, |index| {
        let mut connection = Connection::open(to[index % to.len()]);
        start.wait();
        let mut tally = Tally::new();
        let mut left = requests;
        while left > 0 {
            let batch = left.min(DEPTH);
            let written = connection.write(&one.repeat(batch));
            count_answers(&mut connection, batch, written.is_ok(), &mut tally);
            left -= batch;
        }
        tally
    })
}

/// Sends one request for each of `numbers`, as `encode` puts it, over `connections` connections in
/// each of two threads.
pub fn flood(
    to: SocketAddr,
    connections: usize,
    numbers: std::ops::Range<usize>,
    encode: impl Fn(usize, &mut Vec<u8>) + Sync,
) -> Tally {
    const THREADS: usize = 2;
    let share = numbers.len().div_ceil(THREADS);
    in_threads(THREADS, |index| {
        let from = (numbers.start + index * share).min(numbers.end);
        let mut mine = (from..(from + share).min(numbers.end)).peekable();
        let mut all: Vec<_> = (0..connections).map(|_| Connection::open(to)).collect();
        let mut tally = Tally::new();
        let mut bytes = Vec::new();
        while mine.peek().is_some() {
            // First every connection gets its requests, then every answer is read: Envoy has work
            // on the other connections while this thread is with one of them.
            let mut sent = Vec::with_capacity(connections);
            for connection in &mut all {
                bytes.clear();
                let batch = mine.by_ref().take(DEPTH).map(|n| encode(n, &mut bytes)).count();
                sent.push((batch, connection.write(&bytes).is_ok()));
            }
            for (connection, (batch, written)) in all.iter_mut().zip(sent) {
                count_answers(connection, batch, written, &mut tally);
            }
        }
        tally
    })
}

/// Keeps `connections` connections busy with `request`, one at a time and `pause` between two,
/// while `work` runs; gives what `work` gave and what came back.
///
/// Every request that was begun is waited for, so nothing is lost by stopping.
pub fn during<T>(
    to: SocketAddr,
    connections: usize,
    pause: Duration,
    request: &Request,
    work: impl FnOnce() -> T,
) -> (T, Tally) {
    let (result, exchanges) = observe(&[to], connections, pause, |_, _| request.clone(), work);
    (result, tally(&exchanges))
}

/// A request and what became of it.
#[derive(Debug)]
pub struct Exchange {
    /// Which of the connections, counted from zero.
    pub connection: usize,
    pub sent: Instant,
    /// How long the answer took.
    pub took: Duration,
    /// How much of that this machine gave to none of us.
    pub stalled: Duration,
    pub answer: io::Result<Response>,
}

impl Exchange {
    /// How long the answer took of the time that there was.
    pub fn delay(&self) -> Duration {
        self.took.saturating_sub(self.stalled)
    }

    /// The answer's status; 0 where the connection broke.
    pub fn status(&self) -> u16 {
        self.answer.as_ref().map_or(0, |response| response.status)
    }
}

/// [`during`] with every answer kept, and a request for each: `request` is told which connection it is for, counted
/// from zero, and what has come on that so far. The connections go to the addresses in turn. Gives what came by
/// connection and in its order.
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
            .map(|index| scope.spawn(move || keep_asking(to[index % to.len()], index, pause, request, stop)))
            .collect();
        // A panic in `work` must not leave the threads running: the scope would wait for them.
        let result = {
            let _stop = StopOnDrop(stop);
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

fn keep_asking(
    to: SocketAddr,
    index: usize,
    pause: Duration,
    request: &impl Fn(usize, &[Exchange]) -> Request,
    stop: &AtomicBool,
) -> Vec<Exchange> {
    let mut connection = Connection::open(to);
    let mut exchanges = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let request = request(index, &exchanges);
        let sent = Instant::now();
        let answer = connection.try_send(&request);
        let took = sent.elapsed();
        let is_over = answer.as_ref().map_or(true, |response| {
            response.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
        });
        if is_over {
            connection = Connection::open(to);
        }
        exchanges.push(Exchange { connection: index, sent, took, stalled: Duration::ZERO, answer });
        thread::sleep(pause);
    }
    exchanges
}

pub fn tally<'a>(exchanges: impl IntoIterator<Item = &'a Exchange>) -> Tally {
    let mut tally = Tally::new();
    for exchange in exchanges {
        *tally.entry(exchange.status()).or_default() += 1;
    }
    tally
}

pub fn merge(mut left: Tally, right: Tally) -> Tally {
    for (status, count) in right {
        *left.entry(status).or_default() += count;
    }
    left
}

/// How many answers of this status are in the tally.
pub fn count(tally: &Tally, status: u16) -> u64 {
    tally.get(&status).copied().unwrap_or(0)
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn in_threads(threads: usize, work: impl Fn(usize) -> Tally + Sync) -> Tally {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|index| scope.spawn(move || work(index))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("no panic in a load thread"))
            .fold(Tally::new(), merge)
    })
}

/// Reads the answers to a batch of requests; those that do not come count as status 0.
fn count_answers(connection: &mut Connection, batch: usize, written: bool, tally: &mut Tally) {
    for _ in 0..batch {
        let status = if written { read_status(connection).unwrap_or(0) } else { 0 };
        *tally.entry(status).or_default() += 1;
    }
}

/// Reads one answer for its status alone. The answers to a load all have a `content-length`.
fn read_status(connection: &mut Connection) -> io::Result<u16> {
    let reader = connection.reader();
    let mut line = Vec::with_capacity(128);
    let mut status = None;
    let mut length = 0_u64;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match status {
            None => {
                status = Some(status_code(&line).ok_or_else(|| io::Error::other("no status"))?);
            }
            Some(status) if line == b"\r\n" => {
                let skipped = io::copy(&mut reader.take(length), &mut io::sink())?;
                return if skipped == length { Ok(status) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            Some(_) => {
                if let Some(value) = line.strip_prefix(b"content-length: ") {
                    length = std::str::from_utf8(value)
                        .ok()
                        .and_then(|value| value.trim().parse().ok())
                        .ok_or_else(|| io::Error::other("no content-length"))?;
                }
            }
        }
    }
}

fn status_code(line: &[u8]) -> Option<u16> {
    std::str::from_utf8(line.get(9..12)?).ok()?.parse().ok()
}
