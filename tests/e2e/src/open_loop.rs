//! Open-loop load: clients that send without waiting for earlier responses. It is the load of `bench/loadgen`, in a
//! thread beside the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use loadgen::callers;
use loadgen::plan::Plan;
use loadgen::report::Outcome;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How often the load checks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// A load that runs until its plan is over or [`OpenLoopLoad::stop`].
#[derive(Debug)]
pub struct OpenLoopLoad {
    stop: Arc<AtomicBool>,
    started: std::time::Instant,
    thread: JoinHandle<Vec<Outcome>>,
}

impl OpenLoopLoad {
    pub fn start(to: SocketAddr, plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let started = std::time::Instant::now();
        let thread = std::thread::spawn(move || runtime.block_on(run(to, plan, started, &stopped)));
        Self { stop, started, thread }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Stops, even before the plan is over; returns the outcomes of all requests that were answered.
    pub fn stop(self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic in the load")
    }
}

async fn run(to: SocketAddr, plan: Plan, started: std::time::Instant, stop: &AtomicBool) -> Vec<Outcome> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move { callers::run(to, &plan, Instant::from_std(started), sender).await });
    let mut outcomes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match timeout(STOP_CHECK, receiver.recv()).await {
            Ok(Some(outcome)) => outcomes.push(outcome),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    outcomes
}
