//! The upstream: servers with a queue, or processor sharing that thrashes, and its faults.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use fastrand::Rng;

use crate::chance::Spread;

#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    pub servers: f64,
    /// Mean time of a server for one request.
    pub service_us: f64,
    pub spread: Spread,
    pub discipline: Discipline,
    /// Whether it drops requests from its queue when their clients leave. Most servers do not.
    pub notices_leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Discipline {
    /// First come, first served; with this many in the queue, further requests get 503 at once.
    Queue(usize),
    /// All requests share the servers. With more than twice as many requests as servers, throughput declines, to a
    /// third at twelve times as many.
    Thrashing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Condition {
    Healthy,
    /// Every request takes this many times as long.
    Slow(f64),
    /// It has this many times its servers; with 0 it hangs and starts no request.
    Servers(f64),
    /// This share of responses has the status 500.
    Failing(f64),
    /// This share of requests never gets a response.
    Hanging(f64),
    /// It refuses connections.
    Down,
}

impl Upstream {
    /// Requests a second that it can serve in this condition.
    pub fn capacity(&self, condition: Condition) -> f64 {
        let usual = self.servers * 1e6 / self.service_us;
        match condition {
            Condition::Healthy | Condition::Failing(_) | Condition::Hanging(_) => usual,
            Condition::Slow(times) => usual / times,
            Condition::Servers(times) => usual * times,
            Condition::Down => 0.0,
        }
    }
}

/// A request in service, ordered by its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    /// Microseconds; with processor sharing: what each request has been given since the start, in billionths of a
    /// request.
    end: u64,
    request: u64,
    started_us: u64,
    work_ppm: u64,
}

/// A request that the upstream has finished.
pub struct Done {
    pub request: u64,
    pub started_us: u64,
    /// Its size in multiples of the mean.
    pub work: f64,
    pub is_failed: bool,
}

/// The state of an upstream. The n-th request that it starts has the same size with any protection, so that two of them
/// can be compared.
pub struct Work {
    upstream: Upstream,
    condition: Condition,
    rng: Rng,
    running: BinaryHeap<Reverse<Job>>,
    queue: VecDeque<u64>,
    /// With processor sharing: what each request has been given since the start, in requests, and until when that is
    /// counted.
    given: f64,
    given_until_us: u64,
}

impl Work {
    pub fn new(upstream: Upstream, seed: u64) -> Self {
        Self {
            upstream,
            condition: Condition::Healthy,
            rng: Rng::with_seed(seed),
            running: BinaryHeap::new(),
            queue: VecDeque::new(),
            given: 0.0,
            given_until_us: 0,
        }
    }

    pub fn set(&mut self, condition: Condition, now_us: u64) {
        self.share_until(now_us);
        self.condition = condition;
        self.start(now_us);
    }

    /// Whether the upstream accepts the request.
    pub fn submit(&mut self, request: u64, now_us: u64) -> bool {
        let room = match self.upstream.discipline {
            Discipline::Queue(most) => self.queue.len() < most + self.free_servers(),
            Discipline::Thrashing => true,
        };
        if self.condition == Condition::Down || !room {
            return false;
        }
        self.share_until(now_us);
        self.queue.push_back(request);
        self.start(now_us);
        true
    }

    /// The client of this request has left.
    pub fn leave(&mut self, request: u64) {
        if self.upstream.notices_leaving {
            self.queue.retain(|other| *other != request);
        }
    }

    /// The time when the next request is done.
    pub fn next_us(&self) -> Option<u64> {
        let Reverse(job) = self.running.peek()?;
        Some(match self.upstream.discipline {
            Discipline::Queue(_) => job.end,
            Discipline::Thrashing => {
                let seconds = (job.end as f64 / 1e9 - self.given) / self.share();
                self.given_until_us + (seconds.max(0.0) * 1e6).ceil() as u64
            }
        })
    }

    /// The request that is done at [`Work::next_us`], which is now.
    pub fn finish(&mut self, now_us: u64) -> Option<Done> {
        self.share_until(now_us);
        let Reverse(Job { request, started_us, work_ppm, .. }) = self.running.pop()?;
        self.start(now_us);
        let is_failed = match self.condition {
            Condition::Failing(share) => self.rng.f64() < share,
            Condition::Down => true,
            _ => false,
        };
        Some(Done { request, started_us, work: work_ppm as f64 / 1e6, is_failed })
    }

    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn start(&mut self, now_us: u64) {
        while (self.upstream.discipline == Discipline::Thrashing || self.free_servers() > 0)
            && let Some(request) = self.queue.pop_front()
        {
            let work = self.upstream.spread.draw(&mut self.rng);
            let end = match (self.upstream.discipline, self.condition) {
                (Discipline::Thrashing, _) => ((self.given + work) * 1e9) as u64,
                (_, Condition::Hanging(share)) if self.rng.f64() < share => u64::MAX,
                (_, Condition::Slow(times)) => now_us + (work * times * self.upstream.service_us) as u64,
                _ => now_us + (work * self.upstream.service_us) as u64,
            };
            let work_ppm = (work * 1e6) as u64;
            self.running.push(Reverse(Job { end, request, started_us: now_us, work_ppm }));
        }
    }

    fn free_servers(&self) -> usize {
        let servers = match self.condition {
            Condition::Servers(times) => self.upstream.servers * times,
            _ => self.upstream.servers,
        };
        (servers.round() as usize).saturating_sub(self.running.len())
    }

    /// What processor sharing gives to each request, in requests a second.
    fn share(&self) -> f64 {
        let (servers, jobs) = (self.upstream.servers, self.running.len() as f64);
        let whole = (1.0 - (jobs - 2.0 * servers) / (15.0 * servers)).clamp(1.0 / 3.0, 1.0);
        self.upstream.capacity(self.condition) * whole * (jobs / servers).min(1.0) / jobs
    }

    fn share_until(&mut self, now_us: u64) {
        if self.upstream.discipline == Discipline::Thrashing && !self.running.is_empty() {
            self.given += self.share() * (now_us - self.given_until_us) as f64 / 1e6;
        }
        self.given_until_us = now_us;
    }
}

#[cfg(test)]
mod tests {
    use super::{Discipline, Upstream, Work};
    use crate::chance::Spread;

    /// Requests finished a second with this many always in flight.
    fn throughput(discipline: Discipline, in_flight: u64) -> f64 {
        let spread = Spread::Exponential;
        let upstream = Upstream { servers: 5.0, service_us: 1e5, spread, discipline, notices_leaving: false };
        let mut work = Work::new(upstream, 1);
        (0..in_flight).for_each(|request| assert!(work.submit(request, 0)));
        let mut now_us = 0;
        for request in 0..20_000 {
            now_us = work.next_us().expect("requests are in flight");
            work.finish(now_us);
            work.submit(request, now_us);
        }
        20_000.0 / (now_us as f64 / 1e6)
    }

    #[test]
    fn throughput_matches_the_discipline() {
        let cases = [
            (Discipline::Queue(1_000), 4, 40.0),
            (Discipline::Queue(1_000), 60, 50.0),
            (Discipline::Thrashing, 4, 40.0),
            (Discipline::Thrashing, 5, 50.0),
            (Discipline::Thrashing, 10, 50.0),
            (Discipline::Thrashing, 35, 33.3),
            (Discipline::Thrashing, 60, 16.7),
            (Discipline::Thrashing, 200, 16.7),
        ];
        for (discipline, in_flight, wanted) in cases {
            let found = throughput(discipline, in_flight);
            assert!((found / wanted - 1.0).abs() < 0.03, "{discipline:?}, {in_flight} in flight: {found}");
        }
    }
}
