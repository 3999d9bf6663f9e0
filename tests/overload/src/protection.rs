//! The protection between callers and upstream.

/// A request that has arrived at a worker.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub worker: usize,
    pub cluster: usize,
    pub request: u64,
    pub priority: u8,
    pub caller: u64,
}

/// The end of a request that waits or was sent.
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
    fn end(&mut self, worker: usize, request: u64, end: End, now_us: u64);
    /// The end of a response, which for a stream comes long after its headers.
    fn over(&mut self, _worker: usize, _request: u64, _now_us: u64) {}
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
pub struct Unprotected(Vec<Output>);

impl Protection for Unprotected {
    fn arrive(&mut self, arrival: Arrival, _: u64) {
        self.0.push(Output::Send(arrival.request));
    }

    fn end(&mut self, _: usize, _: u64, _: End, _: u64) {}

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
