//! Many requests at once, counted by status.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Read as _};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::client::{Connection, Request};

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
    let one = request.encode();
    let start = Barrier::new(connections);
    in_threads(connections, |_| {
        let mut connection = Connection::open(to);
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
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(to);
                    let mut tally = Tally::new();
                    while !stop.load(Ordering::Relaxed) {
                        let status = match connection.try_send(request) {
                            Ok(response) => {
                                if response.all("connection").iter().any(|c| c.eq_ignore_ascii_case("close"))
                                {
                                    connection = Connection::open(to);
                                }
                                response.status
                            }
                            Err(_) => {
                                connection = Connection::open(to);
                                0
                            }
                        };
                        *tally.entry(status).or_default() += 1;
                        thread::sleep(pause);
                    }
                    tally
                })
            })
            .collect();
        // A panic in `work` must not leave the threads running: the scope would wait for them.
        let result = {
            let _stop = StopOnDrop(&stop);
            work()
        };
        let tally = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic in a load thread"))
            .fold(Tally::new(), merge);
        (result, tally)
    })
}

/// Adds two tallies.
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
