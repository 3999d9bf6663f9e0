//! What stands between callers and upstream.

use crate::gradient::Gradient;

/// A request that has arrived at a worker.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub worker: usize,
    pub cluster: usize,
    pub request: u64,
    pub priority: u8,
    pub caller: u64,
}

/// How a request that waits or was sent ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Response {
        is_failed: bool,
    },
    /// Envoy's route timeout: 504.
    Timeout,
    /// The client left.
    Left,
}

#[derive(Clone, Copy, Debug)]
pub enum Output {
    Send(u64),
    Shed(u64),
}

pub trait Protection {
    fn arrive(&mut self, arrival: Arrival, now_us: u64);
    fn end(&mut self, worker: usize, cluster: usize, request: u64, end: End, now_us: u64);
    /// A response has ended, long after its headers if it was a stream.
    fn over(&mut self, _worker: usize, _cluster: usize, _request: u64, _now_us: u64) {}
    fn poll_output(&mut self) -> Option<Output>;
    fn next_us(&self, worker: usize) -> Option<u64>;
    fn handle_timeout(&mut self, worker: usize, now_us: u64);
    /// The worker's VM is replaced by a new one.
    fn trap(&mut self, _worker: usize, _now_us: u64) {}
    fn limit(&self, cluster: usize) -> f64;
    fn is_degraded(&self) -> bool {
        false
    }
}

/// No protection: every request is sent.
#[derive(Default)]
pub struct Nothing(Vec<Output>);

impl Protection for Nothing {
    fn arrive(&mut self, arrival: Arrival, _: u64) {
        self.0.push(Output::Send(arrival.request));
    }

    fn end(&mut self, _: usize, _: usize, _: u64, _: End, _: u64) {}

    fn poll_output(&mut self) -> Option<Output> {
        self.0.pop()
    }

    fn next_us(&self, _: usize) -> Option<u64> {
        None
    }

    fn handle_timeout(&mut self, _: usize, _: u64) {}

    fn limit(&self, _: usize) -> f64 {
        f64::INFINITY
    }
}

/// One gradient controller for each cluster.
pub struct Gradients {
    clusters: Vec<Gradient>,
    outputs: Vec<Output>,
    sent: std::collections::HashMap<u64, u64>,
}

impl Gradients {
    pub fn new(clusters: usize, seed: u64) -> Self {
        let clusters = (0..clusters as u64).map(|index| Gradient::new(seed ^ index)).collect();
        Self { clusters, outputs: Vec::new(), sent: Default::default() }
    }
}

impl Protection for Gradients {
    fn arrive(&mut self, arrival: Arrival, now_us: u64) {
        let is_sent = self.clusters[arrival.cluster].admit();
        if is_sent {
            self.sent.insert(arrival.request, now_us);
        }
        let output = if is_sent { Output::Send } else { Output::Shed };
        self.outputs.push(output(arrival.request));
    }

    fn end(&mut self, _: usize, cluster: usize, request: u64, end: End, now_us: u64) {
        let sent_us = self.sent.remove(&request).expect("it waits for nothing before it is sent");
        match end {
            End::Left => self.clusters[cluster].cancelled(),
            End::Response { .. } | End::Timeout => self.clusters[cluster].answered(sent_us, now_us),
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// The first worker's timer runs for all.
    fn next_us(&self, worker: usize) -> Option<u64> {
        let next_us = self.clusters.iter().map(Gradient::next_us).min();
        next_us.filter(|next_us| worker == 0 && *next_us < u64::MAX)
    }

    fn handle_timeout(&mut self, _: usize, now_us: u64) {
        self.clusters.iter_mut().filter(|of| of.next_us() <= now_us).for_each(|of| of.handle_timeout(now_us));
    }

    fn limit(&self, cluster: usize) -> f64 {
        self.clusters[cluster].limit()
    }
}
